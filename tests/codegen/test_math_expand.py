"""Transcendental functions: errors in units in the last place against higher precision, and the special values.

f32 is compared with NumPy in f64, f64 with NumPy in extended precision, both over random bit patterns, a range where the
function does its work, and special values. The limits are those that the modules state.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from tcompile.codegen.math_expand import expand
from tcompile.ir import dtypes
from tcompile.ir.dtypes import BF16, F16, F32, F64, I8, I32, I64, U8
from tcompile.ir.elementwise import apply
from tcompile.ir.loops import Op, Var
from tcompile.ir.loops_evaluate import Evaluator, postorder

SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1, -1, 0.5, -0.5, 2, -2, 3, -3, 1.5, 1e10, -1e10, 1e-10, 1e-40, -1e-40, 3e38, -3e38, 1e-45]
PRIMITIVE = {
    "add", "sub", "mul", "div", "fma", "round", "floor", "trunc", "sqrt", "abs", "neg", "min", "max", "and", "or", "xor", "not",
    "shl", "shr", "eq", "ne", "lt", "le", "gt", "ge",
}  # fmt: skip


def silu(x):
    infinite = 127.5 * math.log(2) if x.dtype == np.float64 else math.log(np.finfo(np.float64).max)  # where exp(-x) of f32, of f64 is
    return np.where((x < -infinite) & np.isfinite(x), -0.0, x / (1 + np.exp(-x)))


LEAST_SIGMOID = math.sqrt(0.5) * 2.0**-126  # of f32 that is not 0: the exponent rounds to that of the least normal number


def sigmoid(x):
    e = np.exp(-np.abs(x))
    exact = np.where(x < 0, e, 1) / (1 + e)
    return np.where(exact < LEAST_SIGMOID, 0, exact) if x.dtype == np.float64 else exact


# function: reference, the range where it works, ULP in f32 and f64
UNARY = {
    "exp": (np.exp, (-105, 90), 1.1, 1.0),
    "expm1": (np.expm1, (-3, 3), 1.6, 1.9),
    "sigmoid": (sigmoid, (-105, 20), 5.1, 2.4),
    "silu": (silu, (-105, 20), 6.7, 2.4),
    "log": (np.log, (0, 2), 0.9, 0.9),
    "log1p": (np.log1p, (-1, 2), 1.5, 0.9),
    "sin": (np.sin, (-50, 50), 0.9, 0.8),
    "cos": (np.cos, (-50, 50), 0.9, 0.8),
    "tan": (np.tan, (-20, 20), 2.3, 2.3),
    "asin": (np.arcsin, (-1, 1), 1.7, 1.7),
    "acos": (np.arccos, (-1, 1), 1.3, 1.3),
    "atan": (np.arctan, (-3, 3), 1.9, 1.9),
    "sinh": (np.sinh, (-4, 4), 2.3, 2.4),
    "cosh": (np.cosh, (-90, 90), 1.5, 1.5),
    "tanh": (np.tanh, (-10, 10), 5.4, 2.4),
    "asinh": (np.arcsinh, (-4, 4), 1.9, 1.9),
    "acosh": (np.arccosh, (1, 4), 2.1, 2.1),
    "atanh": (np.arctanh, (-1, 1), 2.2, 2.2),
    "rsqrt": (lambda x: 1 / np.sqrt(x), (0, 10), 1.6, 1.6),
    "recip": (lambda x: 1 / x, (-10, 10), 0.5, 0.5),
}
BINARY = {
    "pow": (np.power, (0, 10), (-40, 40), 0.6, 1.2),
    "atan2": (np.arctan2, (-3, 3), (-3, 3), 1.8, 1.5),
}


def expression(fn, *dtypes_):
    return expand(Op(fn, tuple(Var(f"x{k}", dtype) for k, dtype in enumerate(dtypes_)), dtypes_[0]))


def run(fn, *arrays):
    expr = expression(fn, *(dtypes.from_numpy(array.dtype) for array in arrays))
    with np.errstate(all="ignore"):
        return Evaluator({f"x{k}": array for k, array in enumerate(arrays)}, {})(expr)[0]


def samples(dtype, count, low, high, seed=0):
    rng = np.random.default_rng(seed)
    unsigned = np.dtype(f"u{dtype.bytes}")
    bits = rng.integers(0, np.iinfo(unsigned).max, count, unsigned, endpoint=True).view(dtype.numpy)
    return np.concatenate([np.array(SPECIAL, dtype.numpy), bits, rng.uniform(low, high, count).astype(dtype.numpy)])


def ulps(got, reference):
    """|got - reference| in units of the last place that ``reference`` has in the type of ``got``; the wrong special value is inf."""
    info = np.finfo(got.dtype)
    with np.errstate(all="ignore"):
        rounded = reference.astype(got.dtype)
        exponent = np.where(rounded == 0, info.minexp, np.frexp(np.abs(reference))[1] - 1)
        unit = np.ldexp(np.longdouble(1), np.maximum(exponent, info.minexp) - info.nmant)
        error = np.abs(got.astype(np.longdouble) - reference.astype(np.longdouble)) / unit
    same = (np.isnan(got) & np.isnan(rounded)) | ((got == rounded) & ~np.isfinite(rounded))
    error = np.where(same, 0, error)
    return np.where(np.isnan(error), np.inf, error)


def check(fn, arrays, reference, limit):
    got = run(fn, *arrays)
    wide = np.float64 if got.dtype == np.float32 else np.longdouble
    with np.errstate(all="ignore"):
        expected = reference(*(array.astype(wide) for array in arrays))
    error = ulps(got, expected)
    worst = np.argmax(error)
    assert error[worst] <= limit, (fn, [array[worst] for array in arrays], got[worst], expected[worst], error[worst])
    zero = (got == 0) & (expected == 0)
    np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(expected[zero]))


@pytest.mark.parametrize("fn", UNARY)
def test_f32_functions_stay_within_their_ulp(fn):
    reference, (low, high), limit, _ = UNARY[fn]
    check(fn, [samples(F32, 60_000, low, high)], reference, limit)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="needs NumPy's extended precision as the reference")
@pytest.mark.parametrize("fn", UNARY)
def test_f64_functions_stay_within_their_ulp(fn):
    reference, (low, high), _, limit = UNARY[fn]
    check(fn, [samples(F64, 3_000, low, high)], reference, limit)


@pytest.mark.parametrize("fn", BINARY)
def test_binary_functions_stay_within_their_ulp(fn):
    reference, first, second, narrow, wide = BINARY[fn]
    grid = [array.ravel().astype(np.float32) for array in np.meshgrid(SPECIAL, SPECIAL)]
    check(fn, grid, reference, narrow)
    check(fn, [samples(F32, 40_000, *first), samples(F32, 40_000, *second, seed=1)], reference, narrow)
    if np.finfo(np.longdouble).nmant >= 63:
        check(fn, [array.astype(np.float64) for array in grid], reference, wide)
        check(fn, [samples(F64, 2_000, *first), samples(F64, 2_000, *second, seed=1)], reference, wide)


def test_pow_keeps_its_precision_where_the_exponent_is_large():
    rng = np.random.default_rng(2)
    check("pow", [rng.uniform(0.9, 1.1, 4000), rng.uniform(-3000, 3000, 4000)], np.power, 1.2)


@pytest.mark.parametrize(("dtype", "limit"), [(F32, 5.9), (F64, 2.0)], ids=str)
def test_erf_stays_within_its_ulp(dtype, limit):
    x = samples(dtype, 3_000, -6, 6)
    error = ulps(run("erf", x), np.array([math.erf(value) for value in x.tolist()], np.longdouble))
    assert error.max() <= limit, x[np.argmax(error)]


def test_tanh_erf_and_sigmoid_never_leave_their_range():
    x = np.concatenate([np.linspace(2, 12, 200_000), np.geomspace(12, 3e38, 1000)]).astype(np.float32)
    for fn in ("tanh", "erf", "sigmoid"):
        assert run(fn, x).max() == 1, fn


@pytest.mark.parametrize(("dtype", "count"), [(F32, 20_000), (F64, 300)], ids=str)
def test_fmod_is_exact_for_every_ratio(dtype, count):
    x, y = samples(dtype, count, -1e6, 1e6), samples(dtype, count, -30, 30, seed=1)
    with np.errstate(all="ignore"):
        expected = np.fmod(x, y)
    np.testing.assert_array_equal(run("fmod", x, y), expected)
    np.testing.assert_array_equal(np.signbit(run("fmod", x, y)[expected == 0]), np.signbit(expected[expected == 0]))


def test_float_mod_takes_the_sign_of_the_divisor():
    x, y = np.array([5.5, -5.5, 5.5, -5.5, -1e-10, 6], np.float32), np.array([3, 3, -3, -3, 3, -3], np.float32)
    np.testing.assert_array_equal(run("mod", x, y), np.mod(x, y))


def test_sin_and_cos_reduce_the_hardest_arguments():
    # neighbours of multiples of pi/2 at every exponent, where the reduced argument is smallest
    turns = np.geomspace(1, 1e38, 3000).round() * (np.pi / 2)
    x = turns.astype(np.float32)
    with np.errstate(all="ignore"):
        check("sin", [x], np.sin, 0.9)
        check("cos", [x], np.cos, 0.9)
    # closest of all doubles to a multiple of pi/2 (Muller, Elementary Functions): cos is about -4.69e-19
    x = np.array([6381956970095103.0 * 2.0**797])
    np.testing.assert_allclose(run("cos", x), -4.68716592425462761112e-19, rtol=2e-16)


@pytest.mark.parametrize("dtype", [I8, U8, I32, I64], ids=str)
def test_integer_pow_wraps_and_truncates_negative_exponents(dtype):
    base = np.array([0, 1, 2, 3, 5, 7, 10, -1, -2, -3, 100], np.int64).astype(dtype.numpy)
    x, y = (array.ravel() for array in np.meshgrid(base, np.array([0, 1, 2, 3, 7, 8, 31, -1, -2], np.int64).astype(dtype.numpy)))
    np.testing.assert_array_equal(run("pow", x, y), apply("pow", [x, y]))


@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_narrow_floats_go_through_f32(dtype):
    x = np.linspace(-4, 4, 1000).astype(dtype.numpy)
    with np.errstate(all="ignore"):
        expected = np.tanh(x.astype(np.float32)).astype(dtype.numpy)
    difference = np.abs(run("tanh", x).view(np.int16).astype(int) - expected.view(np.int16).astype(int))
    assert difference.max() <= 1


@pytest.mark.parametrize("fn", [*UNARY, "erf"])
def test_expansions_are_straight_line_primitives(fn):
    for dtype in (F32, F64):
        fns = {node.fn for node in postorder(expression(fn, dtype)) if isinstance(node, Op)}
        assert fns <= PRIMITIVE


def test_primitives_do_not_expand():
    assert expand(Op("add", (Var("a", F32), Var("b", F32)), F32)) is None
    assert expand(Op("fmod", (Var("a", I32), Var("b", I32)), I32)) is None
