"""Every elementwise function and conversion, on every dtype it takes, through LLVM against its NumPy meaning."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.ir import dtypes, elementwise
from tcompile.ir.casts import bitcast, convert, wrap
from tcompile.ir.dims import symbol
from tcompile.ir.dtypes import ALL, BOOL, F32, F64, DType
from tcompile.ir.loops import Access, Bitcast, Cast, Expr, For, Kernel, Load, LoopKind, Op, Param, Store
from tests.codegen.kernel_runs import assert_same, load

i, n = symbol("i"), symbol("n")
RNG = np.random.default_rng(3)
WIDTHS = (1, 16)


def specials(dtype: DType) -> np.ndarray:
    """Values where operations go wrong: limits, zeros, infinities, NaN, halves, and random ones."""
    if dtype.kind == "b":
        return np.array([False, True])
    if dtype.is_float:
        with np.errstate(all="ignore"):
            limit = float(np.asarray(convert(np.float64(1e308)[None], dtype), np.float64)[0]) if dtype != dtypes.F8E8M0 else 2.0**127
            chosen = [0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 1, -1, 3, -7, 100, -100, 1e-5, 65504, 3e9, -3e9, 1e19, -1e19, limit, -limit]
            chosen += [np.inf, -np.inf, np.nan, 127.5, -128.5, 255.5, 0.49999997, 1e-40, 2.0**-149, *(RNG.standard_normal(12) * 3)]
            return np.array(chosen, np.float64).astype(np.float32 if dtype.bits < 64 else np.float64).astype(dtype.numpy)
    bits = dtype.bits
    low = 0 if dtype.kind == "u" else -(1 << (bits - 1))
    high = (1 << bits) - 1 + low
    numbers = [low, low + 1, high, high - 1, 0, 1, 2, 3, 7, 8, 31, 32, 63, 64, -1, -2, -7, -64, *map(int, RNG.integers(-100, 100, 8))]
    return wrap(np.array([number & (2**64 - 1) for number in numbers], np.uint64), dtype)


def operands(fn: str, dtype: DType) -> list[np.ndarray]:
    """All pairs (or triples of a few) of special values."""
    arity = elementwise.TABLE[fn].arity
    values = specials(dtype)
    if fn == "where":
        return [RNG.integers(0, 2, len(values)).astype(bool), values, values[::-1].copy()]
    if arity == 1:
        return [values]
    if arity == 2:
        return [np.repeat(values, len(values)), np.tile(values, len(values))]
    return [RNG.choice(values, 300) for _ in range(arity)]


def kernel(name: str, expr_of, inputs: list[DType], output: DType, width: int) -> Kernel:
    """y[i] = expr_of(x0[i], x1[i], ...)"""
    params = [Param(f"x{k}", dtype, (n,)) for k, dtype in enumerate(inputs)]
    loads = [Load(f"x{k}", (i,), dtype) for k, dtype in enumerate(inputs)]
    body = (For("i", n, (Store("y", (i,), expr_of(*loads)),), LoopKind.VECTOR, width),)
    return Kernel(name, (*params, Param("y", output, (n,), Access.OUT)), ("n",), body)


Case = tuple[Kernel, list[np.ndarray], np.ndarray, float]  # (kernel, inputs, expected, ulp)


def run_all(cases: list[Case]) -> None:
    """Compiles the kernels of all cases together and compares each with what is expected."""
    loaded = load(*(case[0] for case in cases))
    for made, arrays, expected, ulp in cases:
        result = np.zeros(expected.shape, expected.dtype)
        assert loaded.run(made, [*map(np.ascontiguousarray, arrays), result], [expected.size]) == 0
        assert_same(result, expected, made.name, ulp)


DIRECT = [
    name
    for name in elementwise.TABLE
    if name not in ("pow", "exp", "log", "log1p", "expm1", "sin", "cos", "tan", "asin", "acos", "atan", "atan2")
    and name not in ("sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "sigmoid", "silu")
]


def function_cases(fn: str) -> list[Case]:
    """A function on every dtype it takes, scalars and lanes."""
    row = elementwise.TABLE[fn]
    cases = []
    for dtype in ALL:
        if not row.takes(dtype) or dtype == dtypes.F8E8M0 or (fn == "fmod" and dtype.is_float):
            continue
        arrays = operands(fn, dtype)
        expected = elementwise.apply(fn, arrays)
        inputs = [dtypes.from_numpy(array.dtype) for array in arrays]
        output = dtypes.from_numpy(expected.dtype)
        ulp = 2 if fn == "rsqrt" and dtype in (F32, F64) else 0
        for width in WIDTHS:
            made = kernel(f"{fn}_{dtype}_{width}", lambda *args, to=output: Op(fn, args, to), inputs, output, width)
            cases.append((made, arrays, expected, ulp))
    return cases


@pytest.mark.parametrize("fn", DIRECT)
def test_function_on_every_dtype(fn):
    run_all(function_cases(fn))


def conversion_cases(source: DType) -> list[Case]:
    """Conversions of every value of a dtype, or of those where rounding decides, to every dtype."""
    values = specials(source)
    if source.bits <= 16:  # every bit pattern
        storage = np.arange(1 << source.bits, dtype=np.uint32).astype(f"u{source.bytes}")
        values = storage.astype(bool) if source == BOOL else bitcast(storage, source) if source.bits >= 8 else wrap_bits(storage, source)
    elif source.is_float:
        values = np.concatenate([values, near_halfway(source)])
    cases = []
    for target in ALL:
        for saturate in (True, False) if target.is_float and target.bits == 8 else (True,):
            expected = convert(values, target, saturate=saturate)
            for width in WIDTHS:
                name = f"{source}_{target}_{saturate}_{width}"
                made = kernel(name, lambda x, to=target, s=saturate: Cast(x, to, s) if to != source else x, [source], target, width)
                cases.append((made, [values], expected, 0))
    return cases


@pytest.mark.parametrize("source", ALL, ids=str)
def test_conversion_to_every_dtype(source):
    run_all(conversion_cases(source))


def wrap_bits(storage: np.ndarray, dtype: DType) -> np.ndarray:
    return bitcast(storage.astype(np.uint8), dtype)


def near_halfway(source: DType) -> np.ndarray:
    """Values on, just below and just above the midpoints between neighbours of narrow floats."""
    narrow = np.concatenate(
        [
            np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64),
            bitcast(np.arange(0, 0x7F80, 5, dtype=np.uint16), dtypes.BF16).astype(np.float64),
            bitcast(np.arange(0, 0x7F, dtype=np.uint8), dtypes.F8E4M3FN).astype(np.float64),
            bitcast(np.arange(0, 0x7C, dtype=np.uint8), dtypes.F8E5M2).astype(np.float64),
            bitcast(np.arange(0, 0x7F, dtype=np.uint8), dtypes.F8E4M3FNUZ).astype(np.float64),
            bitcast(np.arange(0, 0x7F, dtype=np.uint8), dtypes.F8E5M2FNUZ).astype(np.float64),
        ]
    )
    middle = ((narrow[1:] + narrow[:-1]) / 2).astype(source.numpy)
    away = np.array(np.inf, source.numpy)
    every = np.concatenate([middle, np.nextafter(middle, away), np.nextafter(middle, -away)])
    return np.concatenate([every, -every])


@pytest.mark.parametrize("bits", [4, 8, 16, 32, 64])
def test_bitcasts_keep_the_bits(bits):
    same = [dtype for dtype in ALL if dtype.bits == bits]
    cases = []
    for source in same:
        values = specials(source)
        for target in same:
            expected = bitcast(values, target)
            for width in WIDTHS:
                made = kernel(f"{source}_{target}_{width}", lambda x, to=target: Bitcast(x, to), [source], target, width)
                cases.append((made, [values], expected, 0))
    run_all(cases)


def test_a_copy_keeps_every_bit_of_narrow_floats():
    for dtype in (dtypes.F16, dtypes.BF16, dtypes.F8E5M2):
        patterns = np.arange(1 << dtype.bits, dtype=np.uint32).astype(f"u{dtype.bytes}")
        made = kernel("copy", lambda x: x, [dtype], dtype, 16)
        result = np.zeros_like(patterns)
        load(made).run(made, [patterns, result], [patterns.size])
        np.testing.assert_array_equal(result, patterns)


def expression_depth(depth: int) -> Expr:
    x: Expr = Load("x0", (i,), F32)
    for _ in range(depth):
        x = Op("add", (x, x), F32)
    return x


def test_deep_expressions_and_shared_ones():
    made = kernel("deep", lambda x: expression_depth(2000), [F32], F32, 1)
    result = np.ones(3, np.float32)
    load(made).run(made, [np.zeros(3, np.float32), result], [3])
    np.testing.assert_array_equal(result, 0)
