"""Division of index expressions: what simplifies, and that it stays equal."""

from hypothesis import given
from hypothesis import strategies as st

from tcompile.ir import dims
from tcompile.ir.dims import Range, floordiv, mod, symbol

X, Y, LANE = symbol("x"), symbol("y"), symbol("lane")
LANES = {"lane": Range(0, 15)}


def test_quotient_and_remainder_join():
    assert floordiv(X, 7) * 7 + mod(X, 7) == X
    assert (floordiv(X, 7) * 7 + mod(X, 7)) * Y + 1 == X * Y + 1


def test_three_axes_join():
    shape = (5, 3, 4)
    index = (floordiv(X, 12), mod(floordiv(X, 4), 3), mod(X, 4))
    assert (index[0] * shape[1] + index[1]) * shape[2] + index[2] == X


def test_lanes_stay_in_their_block():
    flat = X * 48 + Y * 16 + LANE
    assert floordiv(flat, 64, LANES) == floordiv(X * 3 + Y, 4)
    assert mod(flat, 64, LANES) == mod(X * 3 + Y, 4) * 16 + LANE


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(0, 15), st.integers(1, 6), st.integers(1, 60), st.integers(-60, 60))
def test_values_stay(x, y, lane, scale, divisor, offset):
    values = {"x": x, "y": y, "lane": lane}
    flat = X * (16 * scale) + Y * scale + LANE + offset
    exact = 16 * scale * x + scale * y + lane + offset
    known = {"lane": Range(0, 15), "x": Range(-50, 50), "y": Range(-50, 50)}
    quotient, rest = floordiv(flat, divisor, known), mod(flat, divisor, known)
    assert dims.evaluate(quotient + 0 * X, values) == exact // divisor
    assert dims.evaluate(rest + 0 * X, values) == exact % divisor
    assert dims.evaluate(quotient * divisor + rest, values) == exact
