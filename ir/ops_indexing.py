"""Core ops that read and write at indices: gather, gather_nd, gather_elements, scatter_nd, scatter_elements.

Indices are integers in [0, extent); one outside stops the run. Importers wrap negative ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tcompile.errors import ExecutionError
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import TensorType
from tcompile.ir.opspec import (
    Arrays,
    Attrs,
    Env,
    OpSpec,
    RuleError,
    Tolerance,
    Types,
    differ,
    need,
    need_axis,
    need_choice,
    register,
    shapes_differ,
)

COMBINERS = {"set": None, "add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum}


def _need_indices(type_: TensorType) -> None:
    need(type_.dtype.is_integer and type_.dtype.bits >= 8, "indices of an integer type", type_.dtype)


def _checked(indices: np.ndarray, extent: int, op: str) -> np.ndarray:
    """The indices as NumPy's own index type, proved to be in range."""
    if indices.size:
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= extent:
            raise ExecutionError(f"{op}: index {low if low < 0 else high} is outside [0, {extent})")
    return indices.astype(np.intp)


def _infer_gather(types: Types, attrs: Attrs, regions: object) -> Types:
    (x, indices), axis = types, attrs["axis"]
    need_axis(axis, x.rank)
    _need_indices(indices)
    return (TensorType(x.dtype, (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])),)


def _evaluate_gather(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    (x, indices), axis = arrays, attrs["axis"]
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    if 0 in shape:  # nothing is read
        return (np.empty(shape, x.dtype),)
    return (np.take(x, _checked(indices, x.shape[axis], "gather"), axis),)


register(
    OpSpec(
        "gather",
        "gather(x, indices) {axis, proved}: numpy.take. Where the result has no elements none is read, and no index is out of range."
        " ``proved`` says that all indices are in range: code does not check them.",
        operands=(2, 2),
        attrs={"axis": "int", "proved": "bool"},
        defaults={"proved": False},
        infer=_infer_gather,
        evaluate=_evaluate_gather,
    )
)


def _infer_gather_nd(types: Types, attrs: Attrs, regions: object) -> Types:
    (x, indices), batch = types, attrs["batch"]
    _need_indices(indices)
    need(0 <= batch < indices.rank and batch <= x.rank, "batch axes of both operands", batch)
    need(not shapes_differ(x.shape[:batch], indices.shape[:batch]), "equal batch extents", f"{x}, {indices}")
    depth = indices.shape[-1]
    need(isinstance(depth, int) and 0 <= depth <= x.rank - batch, f"a constant last extent of at most {x.rank - batch}", depth)
    return (TensorType(x.dtype, (*indices.shape[:-1], *x.shape[batch + depth :])),)


def _evaluate_gather_nd(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, indices = arrays
    batch = attrs["batch"]
    shape = (*indices.shape[:-1], *x.shape[batch + indices.shape[-1] :])
    if 0 in shape:  # nothing is read
        return (np.empty(shape, x.dtype),)
    grid = _grid(indices.shape[:batch], indices.ndim - 1)
    found = x[(*grid, *_columns(indices, x.shape[batch:], "gather_nd"))]
    # no column to index by: every result is the whole of what is left
    return (np.broadcast_to(found, shape),)


def _grid(extents: Sequence[int], rank: int) -> tuple[np.ndarray, ...]:
    """The index along each of the first axes, shaped to broadcast over ``rank`` axes."""
    return tuple(np.arange(extent).reshape([-1 if k == axis else 1 for k in range(rank)]) for axis, extent in enumerate(extents))


def _columns(indices: np.ndarray, extents: Sequence[int], op: str) -> tuple[np.ndarray, ...]:
    """The index arrays along each axis that the last axis of ``indices`` holds."""
    return tuple(_checked(indices[..., k], extents[k], op) for k in range(indices.shape[-1]))


register(
    OpSpec(
        "gather_nd",
        "gather_nd(x, indices) {batch, proved}: the last axis of indices indexes the axes of x after the batch axes (ONNX GatherND). Where"
        " the result has no elements none is read, and no index is out of range.",
        operands=(2, 2),
        attrs={"batch": "int", "proved": "bool"},
        defaults={"batch": 0, "proved": False},
        infer=_infer_gather_nd,
        evaluate=_evaluate_gather_nd,
    )
)


def _infer_gather_elements(types: Types, attrs: Attrs, regions: object) -> Types:
    x, indices = types
    need_axis(attrs["axis"], x.rank)
    _need_indices(indices)
    need(x.rank == indices.rank, f"indices of rank {x.rank}", indices)
    return (TensorType(x.dtype, indices.shape),)


def _elements_index(x: np.ndarray, indices: np.ndarray, axis: int, op: str) -> tuple[np.ndarray, ...]:
    """The full index of each element that ``indices`` names along an axis."""
    if any(n > m for k, (n, m) in enumerate(zip(indices.shape, x.shape, strict=True)) if k != axis):
        raise ExecutionError(f"{op}: indices of shape {list(indices.shape)} leave a tensor of shape {list(x.shape)}")
    grid = _grid(indices.shape, indices.ndim)
    return (*grid[:axis], _checked(indices, x.shape[axis], op), *grid[axis + 1 :])


def _evaluate_gather_elements(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, indices = arrays
    return (x[_elements_index(x, indices, attrs["axis"], "gather_elements")],)


register(
    OpSpec(
        "gather_elements",
        "gather_elements(x, indices) {axis, proved}: numpy.take_along_axis; other axes of indices may be shorter than x's.",
        operands=(2, 2),
        attrs={"axis": "int", "proved": "bool"},
        defaults={"proved": False},
        infer=_infer_gather_elements,
        evaluate=_evaluate_gather_elements,
    )
)


def _need_combiner(combiner: str, dtype: DType) -> None:
    need_choice(combiner, tuple(COMBINERS))
    need(combiner == "set" or dtype.kind != "b", "numbers to combine", dtype)


def _scatter(x: np.ndarray, index: tuple[np.ndarray, ...], updates: np.ndarray, combiner: str) -> np.ndarray:
    """A copy of x, updated in the order of the updates, rounding to the dtype after each."""
    out = x.copy()
    function = COMBINERS[combiner]
    if function is None:
        out[index] = updates  # the last of several wins, as NumPy promises
    else:
        with np.errstate(all="ignore"):
            function.at(out, index, updates)
    return out


def _infer_scatter_nd(types: Types, attrs: Attrs, regions: object) -> Types:
    x, indices, updates = types
    _need_indices(indices)
    _need_combiner(attrs["combiner"], x.dtype)
    need(indices.rank >= 1, "indices of rank 1 or more", indices)
    depth = indices.shape[-1]
    need(isinstance(depth, int) and 0 <= depth <= x.rank, f"a constant last extent of at most {x.rank}", depth)
    shape = (*indices.shape[:-1], *x.shape[depth:])
    if updates.dtype != x.dtype or shapes_differ(updates.shape, shape):
        raise RuleError(f"updates {TensorType(x.dtype, shape)}", updates)
    return (x,)


def _evaluate_scatter_nd(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, indices, updates = arrays
    if indices.shape[-1] == 0:  # every update is a whole tensor: fold them in over an axis of extent 1
        index = (np.zeros(indices.shape[:-1], np.intp),)
        return (_scatter(x[None], index, updates, attrs["combiner"])[0],)
    if updates.size == 0:  # nothing is written
        return (x,)
    return (_scatter(x, _columns(indices, x.shape, "scatter_nd"), updates, attrs["combiner"]),)


register(
    OpSpec(
        "scatter_nd",
        "scatter_nd(x, indices, updates) {combiner}: x with updates combined in, in order (ONNX ScatterND).",
        operands=(3, 3),
        attrs={"combiner": "str"},
        infer=_infer_scatter_nd,
        evaluate=_evaluate_scatter_nd,
        tolerance=Tolerance(),
    )
)


def _infer_scatter_elements(types: Types, attrs: Attrs, regions: object) -> Types:
    x, indices, updates = types
    need_axis(attrs["axis"], x.rank)
    _need_indices(indices)
    _need_combiner(attrs["combiner"], x.dtype)
    need(x.rank == indices.rank, f"indices of rank {x.rank}", indices)
    if updates.dtype != x.dtype or updates.rank != x.rank or any(map(differ, updates.shape, indices.shape)):
        raise RuleError(f"updates {TensorType(x.dtype, indices.shape)}", updates)
    return (x,)


def _evaluate_scatter_elements(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, indices, updates = arrays
    return (_scatter(x, _elements_index(x, indices, attrs["axis"], "scatter_elements"), updates, attrs["combiner"]),)


register(
    OpSpec(
        "scatter_elements",
        "scatter_elements(x, indices, updates) {axis, combiner}: the inverse of gather_elements, in row-major order of updates.",
        operands=(3, 3),
        attrs={"axis": "int", "combiner": "str"},
        infer=_infer_scatter_elements,
        evaluate=_evaluate_scatter_elements,
    )
)
