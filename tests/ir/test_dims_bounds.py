"""Bounds of index expressions: proofs that loops need, and that a bound is never wrong."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcompile.ir.dims import Range, evaluate, floordiv, lower_bound, maximum, minimum, mod, nonnegative, symbol, upper_bound

N, I0, I1 = symbol("n"), symbol("i"), symbol("j")


@pytest.mark.parametrize(
    ("expr", "ranges"),
    [
        (N - 1 - I0, {"n": Range(1), "i": Range(0, N - 1)}),
        # chunks: i of ceil(n / 64), j inside the chunk, whose last one is short
        (N - 1 - 64 * I0 - I1, {"n": Range(1), "i": Range(0, floordiv(N + 63, 64) - 1), "j": Range(0, minimum(64, N - 64 * I0) - 1)}),
        (N * 8 - 1 - I0 * 8 - I1, {"n": Range(1), "i": Range(0, N - 1), "j": Range(0, 7)}),
        (minimum(8, maximum(0, I0 - 1)), {"i": Range(0, 10)}),
        (8 - minimum(8, maximum(0, I0 - 1)), {"i": Range(0, 10)}),
        (N - 1 - mod(I0, N), {"n": Range(1), "i": Range(0, 100)}),
        ((N - 2) * (I0 - 3) * 8, {"n": Range(3), "i": Range(3)}),
        ((floordiv(N + 1, 2) - 2) * (I0 - 1), {"n": Range(4), "i": Range(1)}),
    ],
)
def test_what_loops_need_is_proved(expr, ranges):
    assert nonnegative(expr, ranges)


def expressions():
    leaf = st.one_of(st.integers(-4, 4), st.sampled_from([N, I0, I1]))

    def grow(inner):
        pair = st.tuples(inner, inner)
        return st.one_of(
            pair.map(lambda p: p[0] + p[1]),
            pair.map(lambda p: p[0] - p[1]),
            st.tuples(inner, st.integers(-3, 3)).map(lambda p: p[0] * p[1]),
            st.tuples(inner, st.integers(1, 4)).map(lambda p: floordiv(*p)),
            st.tuples(inner, st.integers(1, 4)).map(lambda p: mod(*p)),
            pair.map(lambda p: minimum(*p)),
            pair.map(lambda p: maximum(*p)),
            pair.map(lambda p: p[0] * p[1]),
        )

    return st.recursive(leaf, grow, max_leaves=6)


@given(expressions(), st.integers(0, 2), st.integers(-2, 2))
@settings(max_examples=300, deadline=None)
def test_bounds_hold_for_every_value_in_range(expr, low, shift):
    ranges = {"n": Range(low, 4), "i": Range(0, N - 1), "j": Range(shift, I0 + 2)}
    below, above = lower_bound(expr, ranges), upper_bound(expr, ranges)
    for n, i, j in itertools.product(range(low, 5), range(4), range(-2, 7)):
        if i < n and shift <= j <= i + 2:
            value = evaluate(expr, {"n": n, "i": i, "j": j})
            assert below is None or below <= value
            assert above is None or value <= above
            assert value >= 0 or not nonnegative(expr, ranges)
