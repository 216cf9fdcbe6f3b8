"""Channels that are the same at every position; part of ``passes/recognise.py``.

    %p = broadcast(%v) {axes = (0, 1), ...}                  %s = conv(%x, %w[:, :Cx])
    %j = concat(%x, %p) {axis = 1}                 -->       %t = dot_general(%v, sum of %w[:, Cx:] over its positions)
    %y = conv(%j, %w)                                        %y = map(%s, broadcast(%t)) {fn = "add"}

What global pooling gives every position (of a segmentation network's image-level features) is a bias for the convolution behind it.
"""

from __future__ import annotations

import numpy as np

from tcompile.ir.graph import Node, Value
from tcompile.passes.rewrite import Context, Patch, patch, rule


@rule("conv")
def constant_channels(node: Node, context: Context) -> Patch | None:
    # conv(concat(x, v), w) == conv(x, w_x) + sum over k of w_v[k] * v, where no position of v is padded
    joined = context.producer(node.inputs[0], "concat")
    weights = context.constant(node.inputs[1])
    if joined is None or joined.attrs["axis"] != 1 or weights is None or not _reads_each_position(node):
        return None
    vectors = [_vector(value, context) for value in joined.inputs]
    if all(vector is None for vector in vectors) or all(vector is not None for vector in vectors):
        return None
    extents = [value.shape[1] for value in joined.inputs]
    if not all(isinstance(extent, int) for extent in extents):
        return None
    b = context.build(node)
    parts = np.split(weights, np.cumsum(extents)[:-1], axis=1)
    kept = [k for k, vector in enumerate(vectors) if vector is None]
    x = joined.inputs[kept[0]] if len(kept) == 1 else b.emit("concat", *(joined.inputs[k] for k in kept), axis=1)
    result = b.emit("conv", x, b.constant(np.concatenate([parts[k] for k in kept], axis=1)), **node.attrs)
    for vector, part in zip(vectors, parts, strict=True):
        if vector is not None:
            matrix = np.ascontiguousarray(part.sum(axis=tuple(range(2, part.ndim)), dtype=part.dtype).T)
            bias = b.emit("dot_general", vector, b.constant(matrix), batch=((), ()), contract=((1,), (0,)), dtype=node.attrs["dtype"])
            result = b.map("add", result, b.emit("broadcast", bias, shape=result.shape, axes=(0, 1)))
    return patch("channels that are the same at every position", b, result)


def _reads_each_position(node: Node) -> bool:
    """Whether every result is a sum over the whole kernel: there is no border, and nothing between the positions."""
    attrs = node.attrs
    plain = attrs["groups"] == 1 and node.inputs[0].dtype.is_float
    return plain and all(d == 1 for d in attrs["lhs_dilation"]) and not any((*attrs["low"], *attrs["high"]))


def _vector(value: Value, context: Context) -> Value | None:
    """The [N, C] that a value repeats at every position."""
    made = context.producer(value, "broadcast")
    return made.inputs[0] if made is not None and made.attrs["axes"] == (0, 1) else None


RULES = (constant_channels,)
