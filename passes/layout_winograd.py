"""3x3 convolutions by Winograd's F(4x4, 3x3), where that is faster.

conv(x, w) --> conv_winograd(pad(pack(x)), u)     u = G w Gt, packed; the border reaches to whole tiles
"""

from __future__ import annotations

import numpy as np

from tcompile.ir.dtypes import F32
from tcompile.ir.graph import Node
from tcompile.ir.ops_winograd import padded_extent
from tcompile.ir.target import Target
from tcompile.ir.tiles import direct_cycles, winograd_cycles
from tcompile.ir.winograd import INPUT, KERNEL, OUTPUT, transform_weights
from tcompile.passes.layout_forms import BLOCK, Forms, pack_array

_MARGIN = 0.85  # of the direct estimate that the other must stay below


def winograd_pays(node: Node, weights: np.ndarray, target: Target) -> bool:
    """Whether a convolution has the shape, and enough channels, for the transforms to pay."""
    attrs, size = node.attrs, node.output.shape[2:]
    if weights.shape[2:] != (KERNEL, KERNEL) or any(n != 1 for n in (*attrs["strides"], *attrs["dilation"])):
        return False
    if attrs["dtype"] != F32 or not all(isinstance(n, int) for n in (*size, *attrs["low"], *attrs["high"])):
        return False
    outputs, inputs = (-(-channels // BLOCK) * BLOCK for channels in weights.shape[:2])
    tiles = (-(-size[0] // OUTPUT)) * (-(-size[1] // OUTPUT))
    direct = direct_cycles(target, size[0] * size[1], inputs, outputs)
    return winograd_cycles(target, tiles, inputs, outputs) < _MARGIN * direct


def assign_winograd(node: Node, weights: np.ndarray, forms: Forms) -> None:
    """Computes the convolution; ``winograd_pays`` said that it may."""
    x, size, b = node.inputs[0], node.output.shape[2:], forms.b
    low = tuple(node.attrs["low"])
    high = tuple(padded_extent(out) - extent - before for out, extent, before in zip(size, x.shape[2:], low, strict=True))
    blocked = forms.finite(x)
    padded = b.emit("pad", blocked, b.constant(0, x.dtype), low=(0, 0, *low, 0), high=(0, 0, *high, 0), mode="constant")
    result = b.emit("conv_winograd", padded, b.constant(pack_transformed(weights)), size=size, dtype=node.attrs["dtype"])
    forms.set_blocked(node.output, result, 0.0)


def pack_transformed(weights: np.ndarray) -> np.ndarray:
    """[O, I, 3, 3] -> [36, O/16, I/16, 16 of I, 16 of O], a block of O at a time: the transform works in f64."""
    outputs, inputs = (-(-channels // BLOCK) for channels in weights.shape[:2])
    packed = np.zeros((INPUT * INPUT, outputs, inputs, BLOCK, BLOCK), weights.dtype)
    for block in range(outputs):
        part = transform_weights(weights[block * BLOCK : (block + 1) * BLOCK])  # [36, o, I]
        packed[:, block, ..., : part.shape[1]] = np.moveaxis(pack_array(part, 2), 1, -1)
    return packed
