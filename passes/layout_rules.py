"""Ops that follow their operand into blocked form: elementwise work, pooling, spatial reductions and movement.

Each rule answers whether it computed the node blocked; what it leaves is computed plain. A rule acts only where an
operand was computed blocked, so plain models stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tcompile.ir import elementwise
from tcompile.ir.dims import DimLike, product
from tcompile.ir.graph import Node, Value
from tcompile.passes.layout_conv import assign_conv
from tcompile.passes.layout_dot import assign_dot
from tcompile.passes.layout_forms import AXIS, Forms

Rule = Callable[[Node, Forms], bool]


def _elementwise(node: Node, forms: Forms) -> bool:
    if not any(forms.native(value) for value in node.inputs) or not _has_channels(node.output):
        return False
    operands = [forms.blocked(value) for value in node.inputs]
    lanes = _lane_value(node, [forms.lanes(value) for value in node.inputs])
    forms.set_blocked(node.output, forms.b.emit(node.op, *operands, **node.attrs), lanes)
    return True


def _lane_value(node: Node, lanes: list[float]) -> float:
    """What an elementwise function leaves in pad lanes."""
    if any(math.isnan(number) for number in lanes):
        return math.nan
    arrays = [np.asarray(number).astype(value.dtype.numpy) for number, value in zip(lanes, node.inputs, strict=True)]
    if node.op == "map":
        return float(elementwise.apply(node.attrs["fn"], arrays))
    return lanes[0] if node.op == "convert" and lanes[0] == 0 else math.nan


def _window(node: Node, forms: Forms) -> bool:
    """reduce_window that leaves channels apart: the lanes get a window of one."""
    (x,) = node.inputs
    attrs = node.attrs
    if not forms.native(x) or any(attrs[name][AXIS] != 1 for name in ("window", "strides", "dilation")):
        return False
    if attrs["low"][AXIS] != 0 or attrs["high"][AXIS] != 0:
        return False
    wide = {name: (*attrs[name], 1) for name in ("window", "strides", "dilation")}
    wide |= {name: (*attrs[name], 0) for name in ("low", "high")}
    padded = any(amount != 0 for amount in (*attrs["low"], *attrs["high"]))
    lanes = forms.lanes(x)
    kept = lanes == 0 and not (padded and attrs["fn"] == "mul")
    forms.set_blocked(node.output, forms.b.emit("reduce_window", forms.blocked(x), fn=attrs["fn"], **wide), 0.0 if kept else math.nan)
    return True


def _reduce(node: Node, forms: Forms) -> bool:
    """Reductions of spatial axes only, where channels stay axis 1."""
    (x,) = node.inputs
    axes = node.attrs["axes"]
    if not forms.native(x) or min(axes, default=0) <= AXIS:
        return False
    lanes = 0.0 if forms.lanes(x) == 0 and node.attrs["fn"] == "add" else math.nan
    forms.set_blocked(node.output, forms.b.emit("reduce", forms.blocked(x), fn=node.attrs["fn"], axes=axes), lanes)
    return True


def _reshape(node: Node, forms: Forms) -> bool:
    """Reshapes of the spatial axes only."""
    (x,) = node.inputs
    shape = node.attrs["shape"]
    if not forms.native(x) or len(shape) < 2 or shape[:2] != x.shape[:2] or product(shape[2:]) != product(x.shape[2:]):
        return False
    blocked = forms.blocked(x)
    forms.set_blocked(node.output, forms.b.reshape(blocked, (*blocked.shape[:2], *shape[2:], forms.block)), forms.lanes(x))
    return True


def _pad(node: Node, forms: Forms) -> bool:
    """Borders around spatial axes (and images); those that repeat elements repeat whole lanes."""
    x, *fills = node.inputs
    low, high = node.attrs["low"], node.attrs["high"]
    if not forms.native(x) or low[AXIS] != 0 or high[AXIS] != 0:
        return False
    attrs = {**node.attrs, "low": (*low, 0), "high": (*high, 0)}
    if not fills:
        forms.set_blocked(node.output, forms.b.emit("pad", forms.blocked(x), **attrs), forms.lanes(x))
        return True
    (fill,) = fills
    number = forms.constant(forms.plain(fill))
    same = number is not None and float(number.reshape(-1)[0]) == forms.lanes(x)
    forms.set_blocked(node.output, forms.b.emit("pad", forms.blocked(x), forms.plain(fill), **attrs), forms.lanes(x) if same else math.nan)
    return True


def _slice(node: Node, forms: Forms) -> bool:
    """Slices of spatial axes, and of whole channel blocks."""
    (x,) = node.inputs
    start, size, step = (node.attrs[name] for name in ("start", "size", "step"))
    if not forms.native(x) or not _is_block_range(start[AXIS], size[AXIS], step[AXIS], x.shape[AXIS], forms.block):
        return False
    blocks = -(-size[AXIS] // forms.block)
    attrs = {
        "start": (start[0], start[AXIS] // forms.block, *start[2:], 0),
        "size": (size[0], blocks, *size[2:], forms.block),
        "step": (*step, 1),
    }
    forms.set_blocked(node.output, forms.b.emit("slice", forms.blocked(x), **attrs), forms.lanes(x))
    return True


def _is_block_range(start: DimLike, size: DimLike, step: int, extent: DimLike, block: int) -> bool:
    if not (isinstance(start, int) and isinstance(size, int)) or step != 1 or start % block or not size:
        return False
    return size % block == 0 or start + size == extent


def _concat(node: Node, forms: Forms) -> bool:
    """Joins along spatial axes, or of whole channel blocks (the last may be ragged)."""
    axis = node.attrs["axis"]
    if not any(forms.native(value) for value in node.inputs) or not all(map(_has_channels, node.inputs)):
        return False
    if axis == AXIS and any(value.shape[AXIS] % forms.block for value in node.inputs[:-1]):
        return False
    operands = [forms.blocked(value) for value in node.inputs]
    lanes = {forms.lanes(value) for value in (node.inputs[-1:] if axis == AXIS else node.inputs)}
    forms.set_blocked(node.output, forms.b.emit("concat", *operands, axis=axis), lanes.pop() if len(lanes) == 1 else math.nan)
    return True


def _gather(node: Node, forms: Forms) -> bool:
    """Gathers along a spatial axis: nearest-neighbour resizing."""
    x, indices = node.inputs
    axis = node.attrs["axis"]
    if not forms.native(x) or axis <= AXIS:
        return False
    forms.set_blocked(node.output, forms.b.emit("gather", forms.blocked(x), forms.plain(indices), axis=axis), forms.lanes(x))
    return True


def _has_channels(value: Value) -> bool:
    return value.rank >= 2 and isinstance(value.shape[AXIS], int) and value.shape[AXIS] > 0


RULES: dict[str, Rule] = {
    "conv": assign_conv,
    "dot_general": assign_dot,
    "map": _elementwise,
    "convert": _elementwise,
    "reduce_window": _window,
    "reduce": _reduce,
    "reshape": _reshape,
    "pad": _pad,
    "slice": _slice,
    "concat": _concat,
    "gather": _gather,
}
