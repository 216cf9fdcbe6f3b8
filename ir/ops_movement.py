"""Core ops that move elements and change none: broadcast, reshape, transpose, slice, pad, concat."""

from __future__ import annotations

import math

import numpy as np

from tcompile.errors import ExecutionError
from tcompile.ir import dims
from tcompile.ir.graph import TensorType
from tcompile.ir.opspec import (
    Arrays,
    Attrs,
    Env,
    OpSpec,
    RuleError,
    Types,
    concrete,
    differ,
    need,
    need_axes,
    need_axis,
    need_choice,
    need_extents,
    need_length,
    register,
    shapes_differ,
)

PAD_MODES = ("constant", "edge", "reflect", "wrap")


def _infer_broadcast(types: Types, attrs: Attrs, regions: object) -> Types:
    (x,), shape, axes = types, attrs["shape"], attrs["axes"]
    need_extents(shape)
    need_length("axes", axes, x.rank)
    need_axes(axes, len(shape))
    for extent, axis in zip(x.shape, axes, strict=True):
        # an unproved pair is decided when it runs
        if extent != 1 and isinstance(extent, int) and differ(extent, shape[axis]):
            raise RuleError(f"extent {extent} to be 1 or that of output axis {axis}", shape)
    return (TensorType(x.dtype, shape),)


def _evaluate_broadcast(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    shape = concrete(attrs["shape"], env)
    aligned = [1] * len(shape)
    for extent, axis in zip(arrays[0].shape, attrs["axes"], strict=True):
        if extent not in (1, shape[axis]):
            raise ExecutionError(f"broadcast: extent {extent} does not broadcast to {shape[axis]} (output axis {axis})")
        aligned[axis] = extent
    return (np.broadcast_to(arrays[0].reshape(aligned), shape),)


register(
    OpSpec(
        "broadcast",
        "broadcast(x) {shape, axes}: input axis k becomes output axis axes[k]; its extent is the output's, or 1.",
        operands=(1, 1),
        attrs={"shape": "dims", "axes": "ints"},
        infer=_infer_broadcast,
        evaluate=_evaluate_broadcast,
    )
)


def _infer_reshape(types: Types, attrs: Attrs, regions: object) -> Types:
    need_extents(attrs["shape"])
    if differ(types[0].size, dims.product(attrs["shape"])):
        raise RuleError(f"a shape of {types[0].size} elements", attrs["shape"])
    return (TensorType(types[0].dtype, attrs["shape"]),)


def _evaluate_reshape(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    shape = concrete(attrs["shape"], env)
    if math.prod(shape) != arrays[0].size:
        raise ExecutionError(f"reshape: {arrays[0].size} elements do not fit the shape {list(shape)}")
    return (arrays[0].reshape(shape),)


register(
    OpSpec(
        "reshape",
        "reshape(x) {shape}: the same elements in row-major order under another shape.",
        operands=(1, 1),
        attrs={"shape": "dims"},
        infer=_infer_reshape,
        evaluate=_evaluate_reshape,
    )
)


def _infer_transpose(types: Types, attrs: Attrs, regions: object) -> Types:
    (x,), perm = types, attrs["perm"]
    need(sorted(perm) == list(range(x.rank)), f"a permutation of {x.rank} axes", perm)
    return (TensorType(x.dtype, tuple(x.shape[axis] for axis in perm)),)


register(
    OpSpec(
        "transpose",
        "transpose(x) {perm}: out.shape[k] == x.shape[perm[k]].",
        operands=(1, 1),
        attrs={"perm": "ints"},
        infer=_infer_transpose,
        evaluate=lambda arrays, attrs, regions, env: (arrays[0].transpose(attrs["perm"]),),
    )
)


def _infer_slice(types: Types, attrs: Attrs, regions: object) -> Types:
    (x,), start, size, step = types, attrs["start"], attrs["size"], attrs["step"]
    for name in ("start", "size", "step"):
        need_length(name, attrs[name], x.rank)
    need_extents(size)
    need(0 not in step, "steps other than 0", step)
    for axis, extent in enumerate(x.shape):
        if (isinstance(size[axis], int) and size[axis] == 0) or (isinstance(extent, int) and extent == 0):
            continue  # nothing is read; a symbolic size of an empty axis is checked when it runs
        last = start[axis] + (size[axis] - 1) * step[axis]
        for index in (start[axis], last):
            if (isinstance(index, int) and index < 0) or (isinstance(extent - 1 - index, int) and extent - 1 - index < 0):
                raise RuleError(f"elements inside axis {axis} of extent {extent}", f"index {index}")
    return (TensorType(x.dtype, size),)


def _evaluate_slice(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    start, size = concrete(attrs["start"], env), concrete(attrs["size"], env)
    parts = map(_axis_slice, start, size, attrs["step"], arrays[0].shape)
    return (arrays[0][tuple(parts)],)


def _axis_slice(start: int, size: int, step: int, extent: int) -> slice:
    if size == 0:
        return slice(0, 0)
    last = start + (size - 1) * step
    if size < 0 or not (0 <= start < extent and 0 <= last < extent):
        raise ExecutionError(f"slice: {size} elements from {start} by {step} leave an axis of extent {extent}")
    stop = last + (1 if step > 0 else -1)
    return slice(start, stop if stop >= 0 else None, step)


register(
    OpSpec(
        "slice",
        "slice(x) {start, size, step}: out[i...] = x[start + i * step, ...], always inside x; steps may be negative.",
        operands=(1, 1),
        attrs={"start": "dims", "size": "dims", "step": "ints"},
        infer=_infer_slice,
        evaluate=_evaluate_slice,
    )
)


def _infer_pad(types: Types, attrs: Attrs, regions: object) -> Types:
    x, low, high = types[0], attrs["low"], attrs["high"]
    need_choice(attrs["mode"], PAD_MODES)
    need_length("low", low, x.rank)
    need_length("high", high, x.rank)
    need_extents(low)
    need_extents(high)
    need(len(types) == (2 if attrs["mode"] == "constant" else 1), "a fill operand for the mode constant only", len(types))
    if len(types) == 2 and (types[1].dtype != x.dtype or types[1].shape):
        raise RuleError(f"a scalar fill of {x.dtype}", types[1])
    return (TensorType(x.dtype, tuple(a + n + b for a, n, b in zip(low, x.shape, high, strict=True))),)


def _evaluate_pad(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, low, high = arrays[0], concrete(attrs["low"], env), concrete(attrs["high"], env)
    if min((*low, *high), default=0) < 0:
        raise ExecutionError(f"pad: negative amounts {low}, {high}")
    if attrs["mode"] == "constant":
        out = np.full([a + n + b for a, n, b in zip(low, x.shape, high, strict=True)], arrays[1], x.dtype)
        out[tuple(slice(a, a + n) for a, n in zip(low, x.shape, strict=True))] = x
        return (out,)
    for axis, (before, extent, after) in enumerate(zip(low, x.shape, high, strict=True)):
        if before or after:
            x = np.take(x, source_indices(attrs["mode"], before, extent, after), axis)
    return (x,)


def source_indices(mode: str, low: int, extent: int, high: int) -> np.ndarray:
    """Which element of an axis each element of the padded axis copies; reflection and wrapping go on periodically."""
    index = np.arange(-low, extent + high)
    if extent == 0:
        raise ExecutionError(f"pad: the mode {mode} needs an axis with elements")
    if mode == "edge" or extent == 1:
        return np.clip(index, 0, extent - 1)
    if mode == "wrap":
        return index % extent
    folded = index % (2 * extent - 2)
    return np.minimum(folded, 2 * extent - 2 - folded)


register(
    OpSpec(
        "pad",
        "pad(x, fill?) {low, high, mode}: amounts >= 0; mode constant takes the fill, edge, reflect and wrap copy.",
        operands=(1, 2),
        attrs={"low": "dims", "high": "dims", "mode": "str"},
        infer=_infer_pad,
        evaluate=_evaluate_pad,
    )
)


def _infer_concat(types: Types, attrs: Attrs, regions: object) -> Types:
    first, axis = types[0], attrs["axis"]
    need_axis(axis, first.rank)
    shape = list(first.shape)
    for type_ in types[1:]:
        other = (*type_.shape[:axis], shape[axis], *type_.shape[axis + 1 :])
        if type_.dtype != first.dtype or type_.rank != first.rank or shapes_differ(other, tuple(shape)):
            raise RuleError(f"operands that agree but for axis {axis}", ", ".join(map(str, types)))
        # a constant extent says more than an expression
        shape = [b if isinstance(b, int) else a for a, b in zip(shape, other, strict=True)]
    shape[axis] = sum((type_.shape[axis] for type_ in types), start=0)
    return (TensorType(first.dtype, tuple(shape)),)


def _evaluate_concat(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    axis = attrs["axis"]
    if len({(*array.shape[:axis], *array.shape[axis + 1 :]) for array in arrays}) > 1:
        raise ExecutionError(f"concat: the shapes {', '.join(str(list(array.shape)) for array in arrays)} do not fit on axis {axis}")
    return (np.concatenate(arrays, axis),)


register(
    OpSpec(
        "concat",
        "concat(operands...) {axis}: joins tensors that agree on all other axes.",
        operands=(1, None),
        attrs={"axis": "int"},
        infer=_infer_concat,
        evaluate=_evaluate_concat,
    )
)
