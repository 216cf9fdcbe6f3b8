"""Arrays that operations meet: any bits, moderate numbers, awkward numbers, indices. All draw from a seeded generator."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.casts import bitcast, convert, float_max, integer_limits, wrap
from tcompile.ir.dtypes import DType

Fill = Callable[[np.random.Generator, DType, tuple[int, ...]], np.ndarray]

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def bits(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Any bit pattern of the type: NaNs with payloads, infinities, subnormals."""
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    kind = _UNSIGNED[dtype.bytes]
    raw = np.asarray(rng.integers(0, np.iinfo(kind).max, shape, kind, endpoint=True))
    return wrap(raw, dtype) if dtype.is_integer else bitcast(raw, dtype)


def numbers(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that sums and products of a few hundred neither overflow nor cancel to nothing but noise."""
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype == dtypes.F8E8M0:  # powers of two, no sign
        return convert(np.asarray(2.0 ** rng.integers(-2, 3, shape)), dtype)
    if dtype.is_float:
        return convert(np.asarray(rng.standard_normal(shape)), dtype)
    low, high = integer_limits(dtype)
    return wrap(np.asarray(rng.integers(max(low, -9), min(high, 9), shape, np.int64, endpoint=True)), dtype)


def codes(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Differences of 8-bit codes."""
    return rng.integers(-255, 256, shape).astype(dtype.numpy)


def codes_from(low: int) -> Fill:
    """256 numbers from ``low`` on, the extremes often."""

    def fill(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
        numbers = np.where(rng.random(shape) < 0.3, rng.choice((0, 255), shape), rng.integers(0, 256, shape))
        return (low + numbers).astype(dtype.numpy)

    return fill


def awkward(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of every size, with limits, zeros of both signs, infinities and NaN among them."""
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    chosen = _awkward_floats(rng, dtype, shape) if dtype.is_float else _awkward_integers(rng, dtype, shape)
    return np.where(rng.random(shape) < 0.4, numbers(rng, dtype, shape), chosen)


def _awkward_floats(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    limit = float_max(dtype)
    points = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 1.5, 2.5, -2.5, 3.0, 127.5, -128.5, 1e-5, -1e-3, 88.0, -88.0, 1e4, -3e9, 1e19]
    points += [limit, -limit, np.inf, -np.inf, np.nan, 1e-40, 0.99999994]
    return convert(rng.choice(np.array(points), shape), dtype)


def _awkward_integers(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    low, high = integer_limits(dtype)
    points = [low, low + 1, high, high - 1, 0, 1, 2, 3, 7, 8, 31, 32, 63, 64, -1, -2, -8]
    return wrap(rng.choice(np.array([point % 2**64 for point in points], np.uint64), shape), dtype)


def indices_below(extent: int, rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Indices in [0, extent). An extent of 0 has none: then nothing may be asked for."""
    assert extent > 0 or math.prod(shape) == 0, "an index into nothing"
    return np.asarray(rng.integers(0, max(extent, 1), shape)).astype(dtype.numpy)


def scrambled(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same elements in memory that is not row-major: strided, reversed, column-major, offset, or broadcast."""
    choice = int(rng.integers(5))
    if choice == 0 and array.ndim:
        wide = np.empty((*array.shape[:-1], array.shape[-1] * 2), array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if choice == 1 and array.ndim:
        return np.ascontiguousarray(array[::-1])[::-1]
    if choice == 2 and array.ndim:
        return np.asfortranarray(array)
    if choice == 3:
        raw = np.empty(array.nbytes + 1, np.uint8)  # not even aligned
        moved = np.ndarray(array.shape, array.dtype, raw.data, offset=1) if array.size else array
        moved[...] = array
        return moved
    return array
