"""Operators that move or compare elements, for strings: what NumPy does with object arrays, under ONNX's rules."""

from __future__ import annotations

from typing import Any

import numpy as np

from tcompile.runtime.host_ops import HostNode, host_op, objects


def _operand(inputs: list[Any], k: int) -> Any:
    return inputs[k] if k < len(inputs) else None


def _ints(value: Any) -> list[int] | None:
    return None if value is None else [int(item) for item in np.asarray(value).reshape(-1)]


def _array(value: Any) -> np.ndarray:
    """NumPy gives single elements of object arrays bare."""
    return value if isinstance(value, np.ndarray) else objects([value], ())


@host_op("Equal")
def equal(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Equal (opset 19)."""
    a, b = np.broadcast_arrays(*inputs)
    return np.array([x == y for x, y in zip(a.flat, b.flat, strict=True)], bool).reshape(a.shape)


@host_op("Where")
def where(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Where (opset 9)."""
    return _array(np.where(*inputs))


@host_op("Shape")
def shape(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Shape (opset 1, 15)."""
    extents = inputs[0].shape
    return np.array(extents[slice(node.get("start", 0), node.get("end"))], np.int64)


@host_op("Size")
def size(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Size (opset 1)."""
    return np.array(inputs[0].size, np.int64)


@host_op("Reshape")
def reshape(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Reshape (opset 5): 0 keeps an extent, unless ``allowzero``."""
    x, wanted = inputs[0], _ints(inputs[1])
    if not node.get("allowzero", 0):
        wanted = [x.shape[k] if extent == 0 else extent for k, extent in enumerate(wanted)]
    return x.reshape(wanted)


@host_op("Flatten")
def flatten(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Flatten (opset 1)."""
    x, axis = inputs[0], node.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis])), -1) if x.size else x.reshape(int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))


@host_op("Transpose")
def transpose(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Transpose (opset 1)."""
    return np.transpose(inputs[0], node.get("perm"))


@host_op("Squeeze")
def squeeze(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Squeeze (opset 1, 13)."""
    axes = _ints(_operand(inputs, 1)) if len(inputs) > 1 else node.get("axes")
    return np.squeeze(inputs[0], None if axes is None else tuple(axes))


@host_op("Unsqueeze")
def unsqueeze(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Unsqueeze (opset 1, 13)."""
    return np.expand_dims(inputs[0], tuple(_ints(inputs[1]) if len(inputs) > 1 else node.get("axes")))


@host_op("Expand")
def expand(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Expand (opset 8)."""
    return np.broadcast_to(inputs[0], np.broadcast_shapes(inputs[0].shape, tuple(_ints(inputs[1])))).copy()


@host_op("Tile")
def tile(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Tile (opset 6)."""
    return np.tile(inputs[0], _ints(inputs[1]))


@host_op("Concat")
def concat(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Concat (opset 4)."""
    return np.concatenate(inputs, node.get("axis"))


@host_op("Split")
def split(inputs: list[Any], node: HostNode) -> tuple[np.ndarray, ...]:
    """Split (opset 2, 13, 18): by sizes, or into equal parts, the last one smaller where it must be."""
    x, axis = inputs[0], node.get("axis", 0)
    sizes = _ints(_operand(inputs, 1)) if len(inputs) > 1 else node.get("split")
    if sizes is None:
        part = -(-x.shape[axis] // node.results)
        return tuple(np.split(x, [min(part * k, x.shape[axis]) for k in range(1, node.results)], axis))
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis))


@host_op("Slice")
def slice_(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Slice (opset 1, 10)."""
    x = inputs[0]
    if node.opset < 10:
        starts, ends, axes, steps = node.get("starts"), node.get("ends"), node.get("axes"), None
    else:
        starts, ends, axes, steps = (_ints(_operand(inputs, k)) for k in (1, 2, 3, 4))
    place = [slice(None)] * x.ndim
    steps = steps or [1] * len(starts)
    for axis, start, end, step in zip(axes or range(len(starts)), starts, ends, steps, strict=True):
        # below the first element, which Python would count from the end
        stop = None if step < 0 and end < -x.shape[axis] else end
        place[axis] = slice(start, stop, step)
    return x[tuple(place)]


@host_op("Gather")
def gather(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Gather (opset 1, 11): negative indices count from the end."""
    return _array(np.take(inputs[0], inputs[1].astype(np.int64), node.get("axis", 0)))


@host_op("GatherElements")
def gather_elements(inputs: list[Any], node: HostNode) -> np.ndarray:
    """GatherElements (opset 11)."""
    return np.take_along_axis(inputs[0], inputs[1].astype(np.int64), node.get("axis", 0))


@host_op("GatherND")
def gather_nd(inputs: list[Any], node: HostNode) -> np.ndarray:
    """GatherND (opset 11, 12)."""
    x, indices, batch = inputs[0], inputs[1], node.get("batch_dims", 0)
    result = np.empty((*indices.shape[:-1], *x.shape[batch + indices.shape[-1] :]), x.dtype)
    for at in np.ndindex(indices.shape[:-1]):
        result[at] = x[(*at[:batch], *indices[at])]
    return result


@host_op("ScatterElements")
def scatter_elements(inputs: list[Any], node: HostNode) -> np.ndarray:
    """ScatterElements (opset 11, 16, 18) without a reduction."""
    if node.get("reduction", "none") != "none":
        raise ValueError("strings cannot be reduced")
    result = inputs[0].copy()
    np.put_along_axis(result, inputs[1].astype(np.int64), inputs[2], node.get("axis", 0))
    return result


@host_op("ScatterND")
def scatter_nd(inputs: list[Any], node: HostNode) -> np.ndarray:
    """ScatterND (opset 11, 16, 18) without a reduction."""
    if node.get("reduction", "none") != "none":
        raise ValueError("strings cannot be reduced")
    result = inputs[0].copy()
    for at in np.ndindex(inputs[1].shape[:-1]):
        result[tuple(inputs[1][at])] = inputs[2][at]
    return result


@host_op("Compress")
def compress(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Compress (opset 9)."""
    return np.compress(inputs[1], inputs[0], node.get("axis"))


@host_op("Unique")
def unique(inputs: list[Any], node: HostNode) -> tuple[np.ndarray, ...]:
    """Unique (opset 11): elements, or slices along an axis, in order of their values or of their first places."""
    x, axis = inputs[0], node.get("axis")
    rows = list(x.reshape(-1, 1)) if axis is None else [np.moveaxis(x, axis, 0)[k].reshape(-1) for k in range(x.shape[axis])]
    first: dict[tuple[Any, ...], int] = {}
    for place, row in enumerate(rows):
        first.setdefault(tuple(row), place)
    order = sorted(first) if node.get("sorted", 1) else list(first)
    rank = {key: k for k, key in enumerate(order)}
    places = np.array([first[key] for key in order], np.int64)
    inverse = np.array([rank[tuple(row)] for row in rows], np.int64)
    kept = np.take(x.reshape(-1) if axis is None else x, places, 0 if axis is None else axis)
    return kept, places, inverse, np.bincount(inverse, minlength=len(order)).astype(np.int64)
