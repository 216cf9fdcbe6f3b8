"""Limits of 32-bit indices: never below the size of an index expression or of a part of it, and checked before a launch."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.codegen.cuda_c import emit_limited, emit_module
from tcompile.codegen.cuda_emit_limits import INT_MAX, limit, undominated
from tcompile.codegen.cuda_limits import MESSAGE, dim_ranges, with_limits
from tcompile.ir import dims
from tcompile.ir.dims import Range, floordiv, maximum, minimum, mod, symbol
from tcompile.ir.loops_parse import parse_kernel
from tcompile.ir.program import Require
from tcompile.ir.program_parse import parse_program

n, m, i, j, k = map(symbol, "nmijk")


def drawn(rng: np.random.Generator, depth: int):
    """An index expression over loop variables and dims."""
    if depth == 0:
        return [i, j, k, n, m, int(rng.integers(-20, 20))][rng.integers(6)]
    a, b = drawn(rng, depth - 1), drawn(rng, depth - 1)
    c = int(rng.choice([1, 2, 7, 8, 32]))
    choices = [lambda: a + b, lambda: a * c - b, lambda: floordiv(a, c), lambda: mod(a, c), lambda: minimum(a, b), lambda: a * b]
    choices += [lambda: maximum(a, b), lambda: floordiv(a, n), lambda: mod(a, 3 * m), lambda: floordiv(a, n * 4) * n * 8]
    choices += [lambda: floordiv(minimum(a, 50), (n + 2) * (m + 3)) * (n + b) * (2 * m + 7), lambda: floordiv(a, m * n - n) * (3 * m - 1)]
    return choices[rng.integers(len(choices))]()


@pytest.mark.parametrize("seed", range(40))
def test_a_limit_is_never_below_the_size_of_its_expression(seed):
    rng = np.random.default_rng(seed)
    ranges = {"n": Range(0), "m": Range(0), "i": Range(0, n * 5 - 1), "j": Range(0, floordiv(m + 7, 8) - 1), "k": Range(i + 3, i + 3)}
    for _ in range(20):
        expr = drawn(rng, int(rng.integers(1, 4)))
        found = limit(expr, frozenset("nm"), ranges)
        assert found is not None
        for _ in range(10):
            sizes = {"n": int(rng.integers(0, 9)), "m": int(rng.integers(0, 30))}
            if not sizes["n"] or sizes["m"] < 2:  # divisors of 0 do not come to a run
                continue
            place = {"i": int(rng.integers(0, sizes["n"] * 5)), "j": int(rng.integers(0, (sizes["m"] + 7) // 8))}
            value = dims.evaluate(expr, sizes | place | {"k": place["i"] + 3})
            assert abs(value) <= dims.evaluate(found, sizes), (str(expr), str(found), sizes, place)


def test_the_place_in_a_padded_image_is_limited_by_its_size():
    rows, columns = n + 5, m + 2  # of an output; the input has two more of each
    flat = {"f": Range(0, k * rows * columns - 1)}
    f = symbol("f")
    place = floordiv(f, rows * columns) * (rows + 2) * (columns + 2) + floordiv(mod(f, rows * columns), columns) * (columns + 2)
    found = limit(place, frozenset("nmk"), flat)
    sizes = {"n": 1000, "m": 1000, "k": 8}
    assert 8 * 1007 * 1004 <= dims.evaluate(found, sizes) <= 3 * 8 * 1007 * 1004


def test_what_is_clamped_is_limited_by_its_ends():
    at = symbol("at")
    assert limit(maximum(0, minimum(at - 9, n)) * m, frozenset("nm"), {"at": Range(-(2**63), 2**63 - 1)}) == n * m
    assert limit(maximum(-1, minimum(0, at - 9)) * m, frozenset("nm"), {"at": Range(-(2**63), 2**63 - 1)}) == m


def test_a_data_dependent_symbol_has_no_limit():
    assert limit(n + i, frozenset("n"), {"i": Range(-(2**63), 2**63 - 1)}) is None


def test_limits_that_others_imply_are_dropped():
    assert undominated([n * m, n * m + n + 3, m, m + n]) == (n * m + n + 3, m + n)


KERNEL = """
kernel scale(p0: in f32[n, 8], p1: out f32[n, 8]) dims (n) {
  grid g in 0..floordiv(8*n + 127, 128) { block t in 0..128 {
    let f = index(128*g + t)
    if lt(f, index(8*n)) { store p1[floordiv(f, 8), mod(f, 8)] = mul(2.0:f32, load p0[floordiv(f, 8), mod(f, 8)]) }
  } }
}
"""


def test_indices_are_wide_unless_limits_are_checked():
    kernel = parse_kernel(KERNEL)
    assert "(long long)" in emit_module([kernel])
    emitted = emit_limited([kernel], {})
    body = emitted.text[emitted.text.index("{\n    const int n") :]
    assert "long long" not in body
    assert any(dims.evaluate(one, {"n": 2**28}) > INT_MAX for one in emitted.limits[kernel])
    assert all(dims.evaluate(one, {"n": 2**27}) <= INT_MAX for one in emitted.limits[kernel])


def test_numbers_that_are_no_extents_are_wide():
    text = KERNEL.replace("dims (n)", "dims (n, at)")
    text = text.replace("load p0[floordiv(f, 8), mod(f, 8)]", "load p0[max(0, min(at, n - 1)), mod(f, 8)]")
    kernel = parse_kernel(text)
    emitted = emit_limited([kernel], {kernel: {"n": Range(1), "at": Range()}})
    assert "const long long at," in emitted.text and "const int n = (int)n_arg" in emitted.text
    assert all("at" not in dims.symbols(one) for one in emitted.limits[kernel])


def test_known_bounds_need_no_limit():
    kernel = parse_kernel(KERNEL)
    assert emit_limited([kernel], {kernel: {"n": Range(0, 1000)}}).limits[kernel] == ()
    assert "(long long)" in emit_limited([kernel], {kernel: {"n": Range(0, 2**40)}}).text


PROGRAM = """\
program sample(x: f32[b, 8]) -> (y: f32[b, 8])
  entry symbol b in 1..
  call scale(x, t0) dims (b)
  call scale(t0, y) dims (b)

  temp t0: f32[b, 8]
"""


def test_a_program_checks_the_limits_once():
    program = parse_program(PROGRAM + KERNEL, {})
    kernel = program.body[0].kernel
    ranges = dim_ranges(program)
    emitted = emit_limited([kernel], ranges)
    checked = with_limits(program, emitted.limits)
    found = [instruction for instruction in checked.body if isinstance(instruction, Require)]
    assert 1 <= len(found) <= 2
    assert all(one.message == MESSAGE for one in found)
    assert min(dims.evaluate(one.expr, {"b": 2**28}) for one in found) < 0
    assert isinstance(checked.body[0], Require)
    assert not isinstance(checked.body[-1], Require)
