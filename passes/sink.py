"""Reshapes and transposes move behind elementwise functions; part of ``passes/canonicalise.py``.

Elementwise work then stands next to the contraction or reduction that made its operand, where it joins its kernel, and
movements meet: what NHWC exporters wrap around every NCHW convolution cancels.

    %t = transpose(%c) {perm = (0, 2, 3, 1)}                 %b = broadcast(%k) {axes = (1,), ...}
    %b = broadcast(%k) {axes = (3,), ...}            -->     %m = map(%c, %b) {fn = "add"}
    %m = map(%t, %b) {fn = "add"}                            %t = transpose(%m) {perm = (0, 2, 3, 1)}
"""

from __future__ import annotations

from collections.abc import Sequence

from tcompile.ir.build import Builder
from tcompile.ir.graph import Node, Value
from tcompile.passes.rewrite import Context, Patch, patch, rule


@rule("map", "convert")
def sink_reshape(node: Node, context: Context) -> Patch | None:
    # f(reshape(x), reshape(y), splat) == reshape(f(x, y, splat)), where x and y have one shape
    inner = [context.producer(value, "reshape") for value in node.inputs]
    shapes = {made.inputs[0].shape for made in inner if made}
    splats = [_splat(value, context) for value in node.inputs]
    if len(shapes) != 1 or any(made is None and splat is None for made, splat in zip(inner, splats, strict=True)):
        return None
    (shape,) = shapes
    b = context.build(node)
    operands = [made.inputs[0] if made else b.broadcast_to(splat, shape) for made, splat in zip(inner, splats, strict=True)]
    return patch("reshape behind elementwise", b, b.reshape(_again(b, node, operands), node.output.shape))


@rule("map", "convert")
def sink_transpose(node: Node, context: Context) -> Patch | None:
    # f(transpose(x), transpose(y), broadcast(z)) == transpose(f(x, y, broadcast'(z))), for one permutation
    inner = [context.producer(value, "transpose") for value in node.inputs]
    perms = {made.attrs["perm"] for made in inner if made}
    if len(perms) != 1:
        return None
    (perm,) = perms
    shape = next(made.inputs[0].shape for made in inner if made)
    b = context.build(node)
    operands = []
    for value, made in zip(node.inputs, inner, strict=True):
        operand = made.inputs[0] if made else _permuted_broadcast(b, context.producer(value, "broadcast"), perm, shape)
        if operand is None:
            return None
        operands.append(operand)
    return patch("transpose behind elementwise", b, b.transpose(_again(b, node, operands), perm))


@rule("reduce")
def sink_transpose_reduce(node: Node, context: Context) -> Patch | None:
    # reduce(transpose(x)) == transpose of reduce(x) over the axes that they were
    inner = context.producer(node.inputs[0], "transpose")
    if inner is None:
        return None
    perm, axes = inner.attrs["perm"], node.attrs["axes"]
    b = context.build(node)
    reduced = b.emit("reduce", inner.inputs[0], fn=node.attrs["fn"], axes=tuple(sorted(perm[axis] for axis in axes)))
    left = [perm[axis] for axis in range(len(perm)) if axis not in axes]
    order = sorted(left)
    return patch("transpose behind reduce", b, b.transpose(reduced, [order.index(axis) for axis in left]))


def _splat(value: Value, context: Context) -> Value | None:
    """The scalar that a value repeats."""
    made = context.producer(value, "broadcast")
    return made.inputs[0] if made and not made.inputs[0].rank else None


def _permuted_broadcast(b: Builder, made: Node | None, perm: Sequence[int], shape: Sequence) -> Value | None:
    """The operand before a permutation that a broadcast is after it, where that is a broadcast too."""
    if made is None:
        return None
    axes = tuple(perm[axis] for axis in made.attrs["axes"])
    return b.emit("broadcast", made.inputs[0], shape=tuple(shape), axes=axes) if axes == tuple(sorted(axes)) else None


def _again(b: Builder, node: Node, operands: Sequence[Value]) -> Value:
    return b.emit(node.op, *operands, **node.attrs)


RULES = (sink_reshape, sink_transpose, sink_transpose_reduce)
