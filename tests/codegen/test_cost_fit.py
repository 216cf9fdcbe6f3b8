"""Fits of long estimates: short, near, and exact where the estimate is a polynomial."""

import pytest

from tcompile.codegen.cost_fit import fitted
from tcompile.ir import dims
from tcompile.ir.dims import parse

VALUES = (1, 2, 7, 24, 32, 100, 256, 1000, 4096)


@pytest.mark.parametrize("text", ["3*n + 5", "2*n*n + n + 7", "4*m*n*n + 12*m*n + 9", "17"])
def test_polynomials_are_found_again(text):
    extent = parse(text)
    for n in VALUES:
        for m in (1, 3, 40):
            sizes = {name: value for name, value in (("n", n), ("m", m)) if name in dims.symbols(extent)}
            assert abs(dims.evaluate(fitted(extent), sizes) - dims.evaluate(extent, sizes)) <= 1


def test_tiles_and_chunks_become_a_line():
    """A product in tiles of four rows with halves for the rest, a task for each 120 rows."""
    extent = parse("1000*floordiv(n, 4) + 700*floordiv(mod(n, 4), 2) + 400*mod(n, 2) + 50*(floordiv(n + 119, 120))")
    short = fitted(extent)
    assert len(str(short)) < 60
    for n in VALUES:
        assert dims.evaluate(short, {"n": n}) == pytest.approx(dims.evaluate(extent, {"n": n}), rel=0.4 if n < 8 else 0.1), n


def test_a_fit_is_never_nothing():
    """0 would say that there is no estimate."""
    assert dims.evaluate(fitted(parse("max(0, n - 300)")), {"n": 1}) == 1


def test_too_many_symbols_have_no_fit():
    assert fitted(parse("a*b*c*d")) is None


def test_symbols_that_must_be_equal_have_no_fit():
    """Two extents that broadcast cannot take values one by one."""
    assert fitted(parse("7*bcast(n, m) + 1")) is None
