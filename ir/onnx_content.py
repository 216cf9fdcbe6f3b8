"""What is known of small tensors at import time: exact integers and expressions over dimension symbols.

ONNX computes shapes with tensors (Shape -> Gather -> Mul -> Concat -> Reshape). The content of such a tensor is
an array that holds, per element, an int, a ``Dim``, a ``Ratio`` (in float tensors) or ``UNKNOWN``. ``evaluate``
carries contents through core ops, so that a shape chain becomes dimensions while the model is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Ranges
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import TensorType

LIMIT = 4096  # elements; larger tensors are no shapes


class _Unknown:
    """An element that only the run decides."""

    def __repr__(self) -> str:
        return "?"


UNKNOWN = _Unknown()


@dataclass(frozen=True)
class Ratio:
    """num / den as a float: what Cast(n) * 0.5 is. Exact while num stays below 2**24, as shapes do."""

    num: DimLike
    den: int


def is_known(content: np.ndarray | None) -> bool:
    """Whether every element is known."""
    return content is not None and (content.dtype != object or all(item is not UNKNOWN for item in content.flat))


def settle(content: np.ndarray, dtype: DType) -> np.ndarray:
    """The content as an array of its element type where no expression is left in it."""
    if content.dtype == object and all(isinstance(item, int | float | np.generic) for item in content.flat):
        return content.astype(dtype.numpy)
    return content


def unknown(shape: Sequence[int]) -> np.ndarray:
    """A content of which nothing is known."""
    return np.full(tuple(shape), UNKNOWN, object)


def evaluate(
    op: str, contents: Sequence[np.ndarray | None], types: Sequence[TensorType], attrs: Mapping[str, Any], ranges: Ranges
) -> np.ndarray | None:
    """The content of a core op's output; None where the op is not followed or nothing is known."""
    rule = _RULES.get(op)
    if rule is None or all(content is None for content in contents) or not all(map(_small, types)):
        return None
    arrays = [unknown(type_.shape) if content is None else _objects(content) for content, type_ in zip(contents, types, strict=True)]
    result = rule(arrays, types, attrs, ranges)
    return None if result is None or (all(item is UNKNOWN for item in result.flat) and result.size) else result


def _small(type_: TensorType) -> bool:
    return type_.is_static and math.prod(type_.shape) <= LIMIT


def _objects(content: np.ndarray) -> np.ndarray:
    return content if content.dtype == object else content.astype(object)


def _elementwise(function: Callable[..., Any], arrays: Sequence[np.ndarray]) -> np.ndarray:
    result = np.empty(arrays[0].shape, object)
    for index in np.ndindex(result.shape):
        result[index] = function(*(array[index] for array in arrays))
    return result


# Scalars ----------------------------------------------------------------------------------------------


def _map(arrays: Sequence[np.ndarray], types: Sequence[TensorType], attrs: Mapping[str, Any], ranges: Ranges) -> np.ndarray | None:
    fn = attrs["fn"]
    if fn == "where":
        return _elementwise(_where, arrays)
    rule = _FLOAT.get(fn) if types[0].dtype.is_float else _INTEGER.get(fn)
    if rule is None or types[0].dtype.kind == "b":
        return None
    return _elementwise(lambda *items: UNKNOWN if any(item is UNKNOWN for item in items) else rule(ranges, *items), arrays)


def _where(cond: Any, a: Any, b: Any) -> Any:
    if cond is UNKNOWN:
        return a if a is b or (a is not UNKNOWN and b is not UNKNOWN and a == b) else UNKNOWN
    return a if cond else b


def _div(ranges: Ranges, a: DimLike, b: DimLike) -> Any:
    # truncation and floor agree where neither is negative
    if dims.nonnegative(a, ranges) and dims.nonnegative(b - 1, ranges):
        return dims.floordiv(a, b, ranges)
    return UNKNOWN


def _mod(ranges: Ranges, a: DimLike, b: DimLike) -> Any:
    return dims.mod(a, b, ranges) if dims.nonnegative(b - 1, ranges) else UNKNOWN


def _decide(true: DimLike, false: DimLike, ranges: Ranges) -> Any:
    """True where ``true`` >= 0 is proved, False where ``false`` >= 0 is."""
    return True if dims.nonnegative(true, ranges) else False if dims.nonnegative(false, ranges) else UNKNOWN


def _equal(ranges: Ranges, a: DimLike, b: DimLike) -> Any:
    if a == b:
        return True
    return False if dims.nonnegative(a - b - 1, ranges) or dims.nonnegative(b - a - 1, ranges) else UNKNOWN


def _unequal(ranges: Ranges, a: DimLike, b: DimLike) -> Any:
    equal = _equal(ranges, a, b)
    return UNKNOWN if equal is UNKNOWN else not equal


def _sign(ranges: Ranges, a: DimLike) -> Any:
    return 1 if dims.nonnegative(a - 1, ranges) else -1 if dims.nonnegative(-1 - a, ranges) else 0 if a == 0 else UNKNOWN


def _abs(ranges: Ranges, a: DimLike) -> Any:
    return a if dims.nonnegative(a, ranges) else -a if dims.nonnegative(-a, ranges) else UNKNOWN


_INTEGER: dict[str, Callable[..., Any]] = {
    "add": lambda r, a, b: a + b,
    "sub": lambda r, a, b: a - b,
    "mul": lambda r, a, b: a * b,
    "neg": lambda r, a: -a,
    "abs": _abs,
    "sign": _sign,
    "div": _div,
    "mod": _mod,
    "min": lambda r, a, b: dims.minimum(a, b, r),
    "max": lambda r, a, b: dims.maximum(a, b, r),
    "eq": _equal,
    "ne": _unequal,
    "le": lambda r, a, b: _decide(b - a, a - b - 1, r),
    "lt": lambda r, a, b: _decide(b - a - 1, a - b, r),
    "ge": lambda r, a, b: _decide(a - b, b - a - 1, r),
    "gt": lambda r, a, b: _decide(a - b - 1, b - a, r),
}


def ratio(item: Any) -> Ratio | None:
    """A float element as an exact ratio; None for what is none (infinities, long fractions)."""
    if isinstance(item, Ratio):
        return item
    if not math.isfinite(item):
        return None
    num, den = float(item).as_integer_ratio()
    return Ratio(num, den) if abs(num) < 2**24 and den <= 2**20 else None


def _ratios(function: Callable[[Ratio, Ratio], Any]) -> Callable[..., Any]:
    def apply(ranges: Ranges, *items: Any) -> Any:
        ratios = [ratio(item) for item in items]
        return UNKNOWN if any(found is None for found in ratios) else function(*ratios)

    return apply


def _reduced(num: DimLike, den: int) -> Ratio:
    factors = (num,) if isinstance(num, int) else tuple(factor for _, factor in num.terms)
    common = math.gcd(den, *factors)
    return Ratio(num if common == 1 else dims.floordiv(num, common), den // common)


def _divide(a: Ratio, b: Ratio) -> Any:
    # (a / d) / (b / e) == a e / (d b), where b is a positive constant or divides exactly
    if isinstance(b.num, int):
        return _reduced(a.num * b.den, a.den * b.num) if b.num > 0 else UNKNOWN
    quotient = dims.floordiv(a.num, b.num)
    return _reduced(quotient * b.den, a.den) if quotient * b.num == a.num else UNKNOWN


def _whole(direction: Callable[[DimLike, int, Ranges], DimLike]) -> Callable[..., Any]:
    return lambda ranges, item: UNKNOWN if (exact := ratio(item)) is None else Ratio(direction(exact.num, exact.den, ranges), 1)


def _compared(fn: str) -> Callable[..., Any]:
    # a / d < b / e where a e < b d
    def apply(ranges: Ranges, *items: Any) -> Any:
        ratios = [ratio(item) for item in items]
        if any(found is None for found in ratios):
            return UNKNOWN
        a, b = ratios
        return _INTEGER[fn](ranges, a.num * b.den, b.num * a.den)

    return apply


_FLOAT: dict[str, Callable[..., Any]] = {
    **{fn: _compared(fn) for fn in ("eq", "ne", "lt", "le", "gt", "ge")},
    "add": _ratios(lambda a, b: _reduced(a.num * b.den + b.num * a.den, a.den * b.den)),
    "sub": _ratios(lambda a, b: _reduced(a.num * b.den - b.num * a.den, a.den * b.den)),
    "mul": _ratios(lambda a, b: _reduced(a.num * b.num, a.den * b.den)),
    "div": _ratios(_divide),
    "floor": _whole(dims.floordiv),
    "ceil": _whole(dims.ceildiv),
}


def _convert(arrays: Sequence[np.ndarray], types: Sequence[TensorType], attrs: Mapping[str, Any], ranges: Ranges) -> np.ndarray | None:
    source, target = types[0].dtype, attrs["dtype"]
    if source.kind == "b" or (target.is_integer and target.bits < 32) or (target.is_float and target.bits < 32):
        return None

    def item_of(item: Any) -> Any:
        if item is UNKNOWN:
            return UNKNOWN
        if target.kind == "b":
            return _unequal(ranges, item, 0) if source.is_integer else UNKNOWN
        if source.is_integer == target.is_integer:
            return item
        if target.is_float:
            return Ratio(item, 1)
        exact = ratio(item)
        return dims.floordiv(exact.num, exact.den, ranges) if exact and dims.nonnegative(exact.num, ranges) else UNKNOWN

    return _elementwise(item_of, arrays)


# Arrays -----------------------------------------------------------------------------------------------


def _static(shape: Sequence[DimLike]) -> bool:
    return all(isinstance(extent, int) for extent in shape) and math.prod(shape) <= LIMIT


def _broadcast(arrays: Sequence[np.ndarray], types: Any, attrs: Mapping[str, Any], ranges: Ranges) -> np.ndarray | None:
    shape = attrs["shape"]
    if not _static(shape):
        return None
    spread = [1] * len(shape)
    for axis, extent in zip(attrs["axes"], arrays[0].shape, strict=True):
        spread[axis] = extent
    return np.broadcast_to(arrays[0].reshape(spread), shape)


def _reshape(arrays: Sequence[np.ndarray], types: Any, attrs: Mapping[str, Any], ranges: Ranges) -> np.ndarray | None:
    return arrays[0].reshape(attrs["shape"]) if _static(attrs["shape"]) else None


def _slice(arrays: Sequence[np.ndarray], types: Any, attrs: Mapping[str, Any], ranges: Ranges) -> np.ndarray | None:
    if not all(isinstance(item, int) for item in (*attrs["start"], *attrs["size"])):
        return None
    result = arrays[0]
    for axis, (start, size, step) in enumerate(zip(attrs["start"], attrs["size"], attrs["step"], strict=True)):
        result = np.take(result, [start + k * step for k in range(size)], axis)
    return result


def _integers(array: np.ndarray) -> np.ndarray | None:
    """Indices, where all of them are constants."""
    return array.astype(np.int64) if all(isinstance(item, int | np.integer) for item in array.flat) else None


def _gather(arrays: Sequence[np.ndarray], types: Any, attrs: Mapping[str, Any], ranges: Ranges) -> np.ndarray | None:
    indices = _integers(arrays[1])
    extent = arrays[0].shape[attrs["axis"]]
    if indices is None or not all(0 <= index < extent for index in indices.flat):
        return None
    return np.take(arrays[0], indices, attrs["axis"])


def _scatter_nd(arrays: Sequence[np.ndarray], types: Any, attrs: Mapping[str, Any], ranges: Ranges) -> np.ndarray | None:
    x, raw, updates = arrays
    indices = _integers(raw)
    if indices is None or attrs["combiner"] != "set" or indices.ndim == 0:
        return None
    if not np.all((indices >= 0) & (indices < x.shape[: indices.shape[-1]])):
        return None
    result = x.copy()
    for index in np.ndindex(indices.shape[:-1]):
        result[tuple(indices[index])] = updates[index]
    return result


def _reduce(arrays: Sequence[np.ndarray], types: Sequence[TensorType], attrs: Mapping[str, Any], ranges: Ranges) -> np.ndarray | None:
    start = {"add": 0, "mul": 1}.get(attrs["fn"])
    if not types[0].dtype.is_integer or (start is None and attrs["fn"] not in ("min", "max")):
        return None
    axes = attrs["axes"]
    moved = np.moveaxis(arrays[0], axes, range(len(axes)))
    rows = moved.reshape(math.prod(moved.shape[: len(axes)]), *moved.shape[len(axes) :])
    if start is None and not len(rows):
        return None
    result = np.full(rows.shape[1:], start, object) if start is not None else rows[0]
    for row in rows if start is not None else rows[1:]:
        result = _map([np.asarray(result, object), np.asarray(row, object)], types, {"fn": attrs["fn"]}, ranges)
    return np.asarray(result, object)


def _cumulative(arrays: Sequence[np.ndarray], types: Sequence[TensorType], attrs: Mapping[str, Any], ranges: Ranges) -> np.ndarray | None:
    if attrs["fn"] != "add" or attrs["exclusive"] or attrs["reverse"] or not types[0].dtype.is_integer:
        return None
    rows = np.moveaxis(arrays[0].copy(), attrs["axis"], 0)
    for k in range(1, len(rows)):
        rows[k] = _map([np.asarray(rows[k - 1], object), np.asarray(rows[k], object)], types, {"fn": "add"}, ranges)
    return np.moveaxis(rows, 0, attrs["axis"])


_RULES: dict[str, Callable[..., np.ndarray | None]] = {
    "map": _map,
    "convert": _convert,
    "broadcast": _broadcast,
    "reshape": _reshape,
    "transpose": lambda arrays, types, attrs, ranges: np.transpose(arrays[0], attrs["perm"]),
    "slice": _slice,
    "concat": lambda arrays, types, attrs, ranges: np.concatenate(arrays, attrs["axis"]),
    "gather": _gather,
    "scatter_nd": _scatter_nd,
    "reduce": _reduce,
    "cumulative": _cumulative,
}
