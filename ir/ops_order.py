"""Core ops whose result depends on the order or the truth of elements: sort, compact."""

from __future__ import annotations

import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.casts import convert
from tcompile.ir.dtypes import BOOL, I64
from tcompile.ir.graph import TensorType
from tcompile.ir.opspec import Arrays, Attrs, Env, OpSpec, Types, need, need_axis, register


def _infer_sort(types: Types, attrs: Attrs, regions: object) -> Types:
    key = types[0]
    need_axis(attrs["axis"], key.rank)
    need(all(type_.shape == key.shape for type_ in types), f"payloads of shape {key.shape}", ", ".join(map(str, types)))
    return types


def _evaluate_sort(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    order = sort_order(arrays[0], attrs["axis"], descending=attrs["descending"])
    return tuple(np.take_along_axis(array, order, attrs["axis"]) for array in arrays)


def sort_order(key: np.ndarray, axis: int, *, descending: bool) -> np.ndarray:
    """The stable order along an axis. NaN is the largest value, -0 equals 0."""
    dtype = dtypes.from_numpy(key.dtype)
    if dtype.is_float and dtype.bits < 32:
        key = convert(key, dtypes.F32)
    elif dtype.bits < 8:
        key = key.astype(np.int8)  # bool and sub-byte integers keep their order
    if not descending:
        return np.argsort(key, axis, kind="stable")
    # stable and descending: the ascending order of the reversed axis, read backwards
    order = np.argsort(np.flip(key, axis), axis, kind="stable")
    return key.shape[axis] - 1 - np.flip(order, axis)


register(
    OpSpec(
        "sort",
        "sort(key, payloads...) {axis, descending}: key and payloads in the stable order of the key; NaN is the largest.",
        operands=(1, None),
        attrs={"axis": "int", "descending": "bool"},
        infer=_infer_sort,
        evaluate=_evaluate_sort,
    )
)


def _infer_compact(types: Types, attrs: Attrs, regions: object) -> Types:
    (mask,) = types
    need(mask.dtype == BOOL and mask.rank == 1, "a bool vector", mask)
    return TensorType(I64, mask.shape), TensorType(I64, ())


def _evaluate_compact(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    found = np.flatnonzero(arrays[0])
    indices = np.zeros(arrays[0].shape, np.int64)
    indices[: found.size] = found
    return indices, np.array(found.size, np.int64)


register(
    OpSpec(
        "compact",
        "compact(mask) -> (indices, count): the indices of true elements in front, 0 behind; and how many they are.",
        operands=(1, 1),
        infer=_infer_compact,
        evaluate=_evaluate_compact,
    )
)
