"""Core ops that fold axes: reduce, arg_reduce, reduce_window, cumulative.

Each fold is a row of ``FOLDS``. Floats up to 32 bits add and multiply in a wider type here (f64 for f32, so that the
oracle does not depend on an order), and round once; backends accumulate in the dtype's compute type.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce as fold_left

import numpy as np

from tcompile.errors import ExecutionError
from tcompile.ir import dtypes
from tcompile.ir.casts import convert, integer_limits, wrap
from tcompile.ir.dtypes import I64, DType
from tcompile.ir.graph import TensorType
from tcompile.ir.ops_contraction import window_count
from tcompile.ir.opspec import (
    Arrays,
    Attrs,
    Env,
    OpSpec,
    Tolerance,
    Types,
    concrete,
    need,
    need_axes,
    need_axis,
    need_choice,
    need_extents,
    need_length,
    register,
)

_SUMS = Tolerance(ulp=2, grows=True)


@dataclass(frozen=True)
class Fold:
    """An associative function with an identity, and the dtype kinds it takes."""

    function: np.ufunc
    identity: Callable[[DType], float | int | bool]
    kinds: str


def _lowest(dtype: DType) -> float | int | bool:
    return -np.inf if dtype.is_float else integer_limits(dtype)[0]


def _highest(dtype: DType) -> float | int | bool:
    return np.inf if dtype.is_float else integer_limits(dtype)[1]


FOLDS: Mapping[str, Fold] = {
    "add": Fold(np.add, lambda dtype: 0, "fiu"),
    "mul": Fold(np.multiply, lambda dtype: 1, "fiu"),
    "min": Fold(np.minimum, _highest, "fiu"),
    "max": Fold(np.maximum, _lowest, "fiu"),
    "and": Fold(np.bitwise_and, lambda dtype: True if dtype.kind == "b" else integer_limits(dtype)[1] if dtype.kind == "u" else -1, "biu"),
    "or": Fold(np.bitwise_or, lambda dtype: dtype.kind == "b" and False, "biu"),
}


def identity(fn: str, dtype: DType) -> float | int | bool:
    """The value that a fold of no elements gives."""
    return FOLDS[fn].identity(dtype)


def _need_fold(fn: str, dtype: DType, choices: tuple[str, ...]) -> None:
    need_choice(fn, choices)
    need(dtype.kind in FOLDS[fn].kinds, f"for {fn} a dtype of the kinds {', '.join(FOLDS[fn].kinds)}", dtype)


def _wide(array: np.ndarray, fn: str, dtype: DType) -> np.ndarray:
    """The array in the type that the oracle folds in."""
    if dtype.is_float:
        return convert(array, dtypes.F64 if fn in ("add", "mul") else dtype.compute)
    if dtype.is_integer and dtype.bits < 8:
        return convert(array, I64)
    return array


def _narrow(array: np.ndarray, dtype: DType) -> np.ndarray:
    return wrap(array, dtype) if dtype.is_integer else convert(array, dtype, saturate=False)


# reduce, arg_reduce -----------------------------------------------------------------------------------------


def _infer_reduce(types: Types, attrs: Attrs, regions: object) -> Types:
    (x,), axes = types, attrs["axes"]
    _need_fold(attrs["fn"], x.dtype, tuple(FOLDS))
    need_axes(axes, x.rank)
    return (TensorType(x.dtype, tuple(extent for axis, extent in enumerate(x.shape) if axis not in axes)),)


def _evaluate_reduce(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    (x,), fn = arrays, attrs["fn"]
    dtype = dtypes.from_numpy(x.dtype)
    wide = x if dtype == dtypes.F32 else _wide(x, fn, dtype)
    # NumPy widens f32 to f64 by itself, without a copy; an integer sum must stay in its own type
    kind = np.float64 if dtype.is_float and fn in ("add", "mul") else wide.dtype
    with np.errstate(all="ignore"):
        start = np.dtype(kind).type(identity(fn, dtype))
        return (_narrow(np.asarray(FOLDS[fn].function.reduce(wide, attrs["axes"], dtype=kind, initial=start)), dtype),)


register(
    OpSpec(
        "reduce",
        "reduce(x) {fn, axes}: add, mul, min, max, and, or over axes, which go; the identity where they are empty.",
        operands=(1, 1),
        attrs={"fn": "str", "axes": "ints"},
        infer=_infer_reduce,
        evaluate=_evaluate_reduce,
        tolerance=_SUMS,
    )
)


def _infer_arg_reduce(types: Types, attrs: Attrs, regions: object) -> Types:
    (x,), axis = types, attrs["axis"]
    need_choice(attrs["fn"], ("max", "min"))
    need_axis(axis, x.rank)
    return (TensorType(I64, (*x.shape[:axis], *x.shape[axis + 1 :])),)


def _evaluate_arg_reduce(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    (x,), axis = arrays, attrs["axis"]
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    if 0 in shape:
        return (np.empty(shape, np.int64),)
    if x.shape[axis] == 0:
        raise ExecutionError(f"arg_reduce: axis {axis} is empty")
    x = _wide(x, attrs["fn"], dtypes.from_numpy(x.dtype))
    find = np.argmax if attrs["fn"] == "max" else np.argmin
    if not attrs["last"]:
        return (find(x, axis).astype(np.int64),)
    return ((x.shape[axis] - 1 - find(np.flip(x, axis), axis)).astype(np.int64),)


register(
    OpSpec(
        "arg_reduce",
        "arg_reduce(x) {fn, axis, last}: the i64 index of the first (or last) max or min; a NaN wins, as in NumPy.",
        operands=(1, 1),
        attrs={"fn": "str", "axis": "int", "last": "bool"},
        infer=_infer_arg_reduce,
        evaluate=_evaluate_arg_reduce,
    )
)

# reduce_window ----------------------------------------------------------------------------------------------

_WINDOW_FOLDS = ("add", "max", "min", "mul")


def _infer_reduce_window(types: Types, attrs: Attrs, regions: object) -> Types:
    (x,) = types
    _need_fold(attrs["fn"], x.dtype, _WINDOW_FOLDS)
    for name in ("window", "strides", "dilation", "low", "high"):
        need_length(name, attrs[name], x.rank)
    positive = all(not isinstance(n, int) or n >= 1 for name in ("window", "strides", "dilation") for n in attrs[name])
    need(positive, "windows, strides and dilations of at least 1", attrs["window"])
    need_extents((*attrs["low"], *attrs["high"]))
    shape = tuple(map(window_count, x.shape, attrs["window"], attrs["strides"], attrs["dilation"], attrs["low"], attrs["high"]))
    need_extents(shape)
    return (TensorType(x.dtype, shape),)


def _evaluate_reduce_window(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    (x,), fn = arrays, attrs["fn"]
    dtype = dtypes.from_numpy(x.dtype)
    window, low, high = (concrete(attrs[name], env) for name in ("window", "low", "high"))
    out = _wide(x, fn, dtype)
    with np.errstate(all="ignore"):
        for axis in range(x.ndim):  # every fold is separable: one axis after the other
            out = _pad_axis(out, axis, low[axis], high[axis], identity(fn, dtype))
            out = _fold_axis(FOLDS[fn].function, out, axis, window[axis], attrs["strides"][axis], attrs["dilation"][axis])
    return (_narrow(out, dtype),)


def _pad_axis(x: np.ndarray, axis: int, low: int, high: int, fill: float | int | bool) -> np.ndarray:
    if low == high == 0:
        return x
    blocks = [np.full((*x.shape[:axis], extent, *x.shape[axis + 1 :]), fill, x.dtype) for extent in (low, high)]
    return np.concatenate((blocks[0], x, blocks[1]), axis)


def _fold_axis(function: np.ufunc, x: np.ndarray, axis: int, window: int, stride: int, dilation: int) -> np.ndarray:
    count = window_count(x.shape[axis], window, stride, dilation, 0, 0)
    if count == 1 and dilation == 1:
        return function.reduce(x[(slice(None),) * axis + (slice(0, window),)], axis, dtype=x.dtype, keepdims=True)
    span = stride * (count - 1) + 1 if count else 0
    shifted = (x[(slice(None),) * axis + (slice(t * dilation, t * dilation + span, stride),)] for t in range(window))
    return fold_left(function, shifted)


register(
    OpSpec(
        "reduce_window",
        "reduce_window(x) {fn, window, strides, dilation, low, high}: folds windows over all axes; pads are the identity.",
        operands=(1, 1),
        attrs={"fn": "str", "window": "dims", "strides": "ints", "dilation": "ints", "low": "dims", "high": "dims"},
        infer=_infer_reduce_window,
        evaluate=_evaluate_reduce_window,
        tolerance=_SUMS,
    )
)

# cumulative -------------------------------------------------------------------------------------------------


def _infer_cumulative(types: Types, attrs: Attrs, regions: object) -> Types:
    _need_fold(attrs["fn"], types[0].dtype, _WINDOW_FOLDS)
    need_axis(attrs["axis"], types[0].rank)
    return types


def _evaluate_cumulative(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    (x,), fn, axis = arrays, attrs["fn"], attrs["axis"]
    dtype = dtypes.from_numpy(x.dtype)
    wide = _wide(np.flip(x, axis) if attrs["reverse"] else x, fn, dtype)
    if attrs["exclusive"]:  # shifted by one: the first result folds nothing
        kept = wide[(slice(None),) * axis + (slice(0, max(x.shape[axis] - 1, 0)),)]
        wide = _pad_axis(kept, axis, min(x.shape[axis], 1), 0, identity(fn, dtype))
    with np.errstate(all="ignore"):
        out = FOLDS[fn].function.accumulate(wide, axis, dtype=wide.dtype)
        return (_narrow(np.flip(out, axis) if attrs["reverse"] else out, dtype),)


register(
    OpSpec(
        "cumulative",
        "cumulative(x) {fn, axis, exclusive, reverse}: the running fold along an axis, without the own element if exclusive.",
        operands=(1, 1),
        attrs={"fn": "str", "axis": "int", "exclusive": "bool", "reverse": "bool"},
        infer=_infer_cumulative,
        evaluate=_evaluate_cumulative,
        tolerance=_SUMS,
    )
)
