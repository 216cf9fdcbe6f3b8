"""The elementwise table and the conversions: corner cases that NumPy, C and ONNX disagree on."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcompile.errors import InvalidModelError
from tcompile.ir import dtypes
from tcompile.ir.casts import bitcast, convert, integer_limits, wrap
from tcompile.ir.elementwise import TABLE, apply, result_dtype

INTEGERS = [dtype for dtype in dtypes.ALL if dtype.is_integer]


def as_type(value: int, dtype: dtypes.DType) -> int:
    """An integer wrapped to a type's range."""
    low = value & ((1 << dtype.bits) - 1)
    return low - (1 << dtype.bits) if dtype.kind == "i" and low >> (dtype.bits - 1) else low


def exact(fn: str, a: int, b: int, dtype: dtypes.DType) -> int:
    """What an integer function means, in Python's unbounded integers."""
    if fn in ("div", "mod", "fmod") and b == 0:
        return 0
    if fn in ("shl", "shr") and not 0 <= b < dtype.bits:
        return 0
    quotient = lambda: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)  # noqa: E731
    meaning = {
        "add": lambda: a + b,
        "sub": lambda: a - b,
        "mul": lambda: a * b,
        "div": quotient,
        "mod": lambda: a % b,
        "fmod": lambda: a - b * quotient(),
        "min": lambda: min(a, b),
        "max": lambda: max(a, b),
        "and": lambda: a & b,
        "or": lambda: a | b,
        "xor": lambda: a ^ b,
        "shl": lambda: a << b,
        "shr": lambda: a >> b,
    }
    return as_type(meaning[fn](), dtype)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@given(data=st.data())
def test_integer_functions_wrap_and_never_trap(dtype: dtypes.DType, data: st.DataObject) -> None:
    low, high = integer_limits(dtype)
    number = st.sampled_from([low, high, 0, 1, low + 1, dtype.bits]) | st.integers(low, high)
    pairs = [(as_type(a, dtype), as_type(b, dtype)) for a, b in data.draw(st.lists(st.tuples(number, number), min_size=1, max_size=8))]
    a, b = (np.array(column, dtype=object).astype(np.int64 if dtype.kind == "i" else np.uint64) for column in zip(*pairs, strict=True))
    for fn in ("add", "sub", "mul", "div", "mod", "fmod", "min", "max", "and", "or", "xor", "shl", "shr"):
        got = apply(fn, [wrap(a, dtype), wrap(b, dtype)])
        assert got.dtype == dtype.numpy
        assert [int(v) for v in got] == [exact(fn, x, y, dtype) for x, y in pairs], fn


def test_negative_exponents_of_integers_truncate() -> None:
    a, b = np.array([2, 1, -1, -1, 0, 3]), np.array([-1, -5, -3, -2, -1, 4])
    assert apply("pow", [a, b]).tolist() == [0, 1, -1, 1, 0, 81]


def test_round_is_half_to_even_and_sign_keeps_nan() -> None:
    assert apply("round", [np.array([0.5, 1.5, -2.5])]).tolist() == [0, 2, -2]
    assert math.isnan(apply("sign", [np.array(np.nan)]))


def test_min_and_max_propagate_nan() -> None:
    a, b = np.array([np.nan, 1.0]), np.array([1.0, np.nan])
    assert np.isnan(apply("min", [a, b])).all() and np.isnan(apply("max", [a, b])).all()


def test_narrow_floats_compute_in_f32_and_round_once() -> None:
    x = np.array([60000, 3.14159], np.float16)
    assert apply("add", [x, x]).tolist() == [np.inf, np.float16(np.float32(x[1]) * 2)]
    half = np.array([1.0, 0.00390625], ml_dtypes.bfloat16)
    assert apply("add", [half, half[::-1]]).dtype == ml_dtypes.bfloat16


@given(st.lists(st.floats(-7, 7), min_size=1, max_size=20))
def test_erf_is_that_of_the_c_library(values: list[float]) -> None:
    expected = [math.erf(v) for v in values]
    np.testing.assert_allclose(apply("erf", [np.array(values)]), expected, rtol=5e-15, atol=0)


@given(st.lists(st.tuples(*[st.floats(width=32, allow_nan=False, allow_infinity=False)] * 3), min_size=1))
def test_fma_of_f32_rounds_once(triples: list[tuple[float, float, float]]) -> None:
    from fractions import Fraction

    for a, b, c in triples:
        total = Fraction(a) * Fraction(b) + Fraction(c)
        got = float(apply("fma", [np.float32(a), np.float32(b), np.float32(c)]))
        if math.isfinite(got) and total:
            near = [float(np.nextafter(np.float32(got), np.float32(side))) for side in (-np.inf, np.inf)]
            assert all(not math.isfinite(other) or abs(Fraction(got) - total) <= abs(Fraction(other) - total) for other in near)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("a", "b", "c", "expected"),
    [
        (1, 1, -np.inf, -np.inf),
        (1, -1, np.inf, np.inf),
        (1, 1, -1, np.inf),
        (-1, 1, 1, -np.inf),
        (np.inf, 1, -np.inf, np.nan),
        (np.inf, 0, 1, np.nan),
    ],
)
def test_fma_beyond_the_largest_number(a: float, b: float, c: float, expected: float, dtype: type) -> None:
    """The product of finite operands is finite before it is rounded."""
    largest = np.finfo(dtype).max
    operands = [dtype(x * largest if abs(x) == 1 else x) for x in (a, b, c)]
    np.testing.assert_array_equal(apply("fma", operands), dtype(expected))


@pytest.mark.parametrize(
    ("fn", "operands", "words"),
    [
        ("adds", (dtypes.F32, dtypes.F32), "elementwise table"),
        ("add", (dtypes.F32,), "2 operands"),
        ("add", (dtypes.F32, dtypes.F64), "one dtype"),
        ("exp", (dtypes.I32,), "kinds f"),
        ("where", (dtypes.I8, dtypes.F32, dtypes.F32), "bool condition"),
    ],
)
def test_wrong_operands_are_named(fn: str, operands: tuple, words: str) -> None:
    with pytest.raises(InvalidModelError, match=words):
        result_dtype(fn, operands)


def test_predicates_give_bool_and_the_rest_its_operand() -> None:
    for row in TABLE.values():
        kind = next(dtype for dtype in dtypes.ALL if dtype.kind == row.kinds[-1] and row.takes(dtype))
        operands = [dtypes.BOOL, kind, kind] if row.name == "where" else [kind] * row.arity
        arrays = [np.ones(3, dtype.numpy) for dtype in operands]
        assert dtypes.from_numpy(apply(row.name, arrays).dtype) == result_dtype(row.name, operands)


# Conversions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_float_to_int_truncates_saturates_and_takes_nan_for_zero(dtype: dtypes.DType) -> None:
    low, high = integer_limits(dtype)
    given_ = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 1.9, -1.9])
    expected = [0, high, low, high, low, 1, max(low, -1)]
    assert [int(v) for v in convert(given_, dtype)] == expected


def test_f8_overflow_saturates_or_has_what_the_format_has() -> None:
    x = np.array([np.inf, 1e9, -1e9], np.float32)
    assert convert(x, dtypes.F8E4M3FN).astype(np.float32).tolist() == [448, 448, -448]
    assert np.isnan(convert(x, dtypes.F8E4M3FN, saturate=False).astype(np.float32)).all()
    assert convert(x, dtypes.F8E5M2, saturate=False).astype(np.float32).tolist() == [np.inf, np.inf, -np.inf]


@given(st.floats(allow_nan=False))
def test_f64_to_bf16_rounds_once(value: float) -> None:
    from fractions import Fraction

    got = convert(np.array([value]), dtypes.BF16).astype(np.float64)[0]
    if math.isfinite(got) and math.isfinite(value):
        bits = np.array([got]).astype(ml_dtypes.bfloat16).view(np.int16)
        for step in (-1, 1):
            other = float((bits + np.int16(step)).view(ml_dtypes.bfloat16).astype(np.float64)[0])
            if math.isfinite(other):
                assert abs(Fraction(got) - Fraction(value)) <= abs(Fraction(other) - Fraction(value))


def test_sub_byte_bitcast_keeps_the_bits() -> None:
    x = np.array([-8, -1, 7], np.int8).astype(ml_dtypes.int4)
    assert [int(v) for v in bitcast(x, dtypes.U4)] == [8, 15, 7]
    assert [int(v) for v in bitcast(bitcast(x, dtypes.U4), dtypes.I4)] == [-8, -1, 7]
