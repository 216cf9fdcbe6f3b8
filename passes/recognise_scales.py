"""Scales and biases after a contraction with constant weights; part of ``passes/recognise.py``.

``channels`` below are the output axes that the weights alone span: axis 1 of a convolution, the axes of a
``dot_general`` that come from its constant operand. A scale that varies along channels only can be moved into the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tcompile.ir import elementwise
from tcompile.ir.build import Builder
from tcompile.ir.graph import Node, Value
from tcompile.ir.ops_contraction import free_axes
from tcompile.passes.rewrite import Context, Patch, patch, rule


@dataclass(frozen=True)
class Weighted:
    """A contraction with constant weights: operand ``position`` holds them, its axis ``axes[k]`` is output axis ``channels[k]``."""

    node: Node
    position: int
    weights: np.ndarray
    channels: tuple[int, ...]
    axes: tuple[int, ...]


def weighted(value: Value, context: Context) -> Weighted | None:
    """The contraction that makes a value, where it is float, has constant weights and no other user."""
    node = context.producer(value, "conv", "dot_general")
    if node is None or not context.used_once(value) or not value.dtype.is_float:
        return None
    if node.op == "conv":
        weights = context.constant(node.inputs[1])
        return None if weights is None else Weighted(node, 1, weights, (1,), (0,))
    for position in (1, 0):
        weights = context.constant(node.inputs[position])
        if weights is not None:
            return _weighted_dot(node, position, weights)
    return None


def _weighted_dot(node: Node, position: int, weights: np.ndarray) -> Weighted:
    batch, contract = node.attrs["batch"], node.attrs["contract"]
    free = [free_axes(value.rank, batch[k], contract[k]) for k, value in enumerate(node.inputs)]
    first = len(batch[0]) + (len(free[0]) if position else 0)
    return Weighted(node, position, weights, tuple(range(first, first + len(free[position]))), free[position])


def channel_constant(value: Value, channels: tuple[int, ...], context: Context) -> np.ndarray | None:
    """A constant that varies along ``channels`` only, with one axis for each of them (of extent 1 where it does not vary)."""
    made = context.producer(value, "broadcast")
    source = context.producer(made.inputs[0] if made else value, "constant")
    if source is None:
        return None
    axes = made.attrs["axes"] if made else tuple(range(value.rank))
    array = source.attrs["value"]
    if any(extent != 1 and axis not in channels for extent, axis in zip(array.shape, axes, strict=True)):
        return None
    extents = dict(zip(axes, array.shape, strict=True))
    return array.reshape([extents.get(axis, 1) for axis in channels])


def _emit_channel(b: Builder, array: np.ndarray, channels: tuple[int, ...], like: Value) -> Value:
    return b.emit("broadcast", b.constant(array), shape=like.shape, axes=channels)


@rule("map")
def scale_into_weights(node: Node, context: Context) -> Patch | None:
    # (x . w) * s == x . (w * s), up to the rounding of w * s
    found = weighted(node.inputs[0], context) if node.attrs["fn"] == "mul" else None
    scale = channel_constant(node.inputs[1], found.channels, context) if found else None
    if scale is None or not np.isfinite(scale.astype(np.float64)).all():
        return None
    aligned = np.ones(found.weights.ndim, np.intp)
    aligned[list(found.axes)] = scale.shape
    b = context.build(found.node)
    scaled = b.constant(elementwise.apply("mul", [found.weights, scale.astype(found.weights.dtype).reshape(aligned)]))
    operands = [scaled if k == found.position else value for k, value in enumerate(found.node.inputs)]
    return patch("scale into weights", b, b.emit(found.node.op, *operands, **found.node.attrs))


@rule("map")
def scale_before_bias(node: Node, context: Context) -> Patch | None:
    # (x . w + c) * s == (x . w) * s + c * s, so that the scale meets the weights
    found, bias = _biased(node.inputs[0], context) if node.attrs["fn"] == "mul" else (None, None)
    scale = channel_constant(node.inputs[1], found.channels, context) if found else None
    if bias is None or scale is None:
        return None
    b = context.build(node)
    scaled = b.map("mul", found.node.output, node.inputs[1])
    moved = _emit_channel(b, elementwise.apply("mul", [bias, scale]), found.channels, scaled)
    return patch("scale before bias", b, b.map("add", scaled, moved))


@rule("map")
def bias_of_bias(node: Node, context: Context) -> Patch | None:
    # (x . w + c) + d == x . w + (c + d)
    found, bias = _biased(node.inputs[0], context) if node.attrs["fn"] == "add" else (None, None)
    other = channel_constant(node.inputs[1], found.channels, context) if found else None
    if bias is None or other is None:
        return None
    b = context.build(node)
    both = _emit_channel(b, elementwise.apply("add", [bias, other]), found.channels, node.output)
    return patch("bias of a bias", b, b.map("add", found.node.output, both))


def _biased(value: Value, context: Context) -> tuple[Weighted | None, np.ndarray | None]:
    """The contraction and the constant whose sum a value is, where nothing else reads either."""
    add = context.producer(value, "map")
    if add is None or add.attrs["fn"] != "add" or not context.used_once(value):
        return None, None
    found = weighted(add.inputs[0], context)
    return found, channel_constant(add.inputs[1], found.channels, context) if found else None


@rule("map")
def division_into_weights(node: Node, context: Context) -> Patch | None:
    # (x . w) / c == (x . w) * (1 / c), up to the rounding of 1 / c, which then folds into w
    found = weighted(node.inputs[0], context) if node.attrs["fn"] == "div" else None
    divisor = channel_constant(node.inputs[1], found.channels, context) if found else None
    if divisor is None:
        return None
    inverse = elementwise.apply("recip", [divisor])
    if not np.isfinite(inverse.astype(np.float64)).all():
        return None
    b = context.build(node)
    return patch("division after a contraction", b, b.map("mul", node.inputs[0], _emit_channel(b, inverse, found.channels, node.output)))


RULES = (scale_into_weights, scale_before_bias, bias_of_bias, division_into_weights)
