"""Gathers that repeat every element become broadcasts; run with the constant folding after layouts.

    %y = gather(%x, 0 0 1 1 2 2 ...) {axis = 2}     -->     %b = broadcast(%x) to [N, C, H, 2, W]; %y = reshape(%b)

Nearest-neighbour resizing by whole factors is such a gather. Layouts know gathers along spatial axes, so this comes after them;
a broadcast reads no indices and checks none.
"""

from __future__ import annotations

import numpy as np

from tcompile.ir.graph import Node
from tcompile.passes.rewrite import Context, Patch, patch, rule


@rule("gather")
def gather_of_repeats(node: Node, context: Context) -> Patch | None:
    # gather(x, [0, 0, 1, 1, ...]) == reshape(broadcast(x along a new axis))
    x, axis = node.inputs[0], node.attrs["axis"]
    extent, indices = x.shape[axis], context.constant(node.inputs[1])
    if indices is None or indices.ndim != 1 or not isinstance(extent, int) or not extent or indices.size % extent:
        return None
    times = indices.size // extent
    if times < 2 or not np.array_equal(indices, np.repeat(np.arange(extent), times)):
        return None
    b = context.build(node)
    shape = (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
    spread = b.emit("broadcast", x, shape=shape, axes=tuple(k for k in range(len(shape)) if k != axis + 1))
    return patch("gather of repeats", b, b.reshape(spread, node.output.shape))


RULES = (gather_of_repeats,)
