"""Square convolutions at stride 1 by Winograd's algorithm, where that is faster.

conv(x, w) --> conv_winograd(pack(x), u)     u = G w Gt, packed; the kernel reads zeros around the input
"""

from __future__ import annotations

import numpy as np

from tcompile.ir.dims import ceildiv
from tcompile.ir.dtypes import F32
from tcompile.ir.graph import Node
from tcompile.ir.tiles import direct_cycles, winograd_cycles
from tcompile.ir.winograd import BY_KERNEL, Winograd
from tcompile.passes.layout_forms import Forms, pack_array

_MARGIN = 0.85  # of the direct estimate that the other must stay below


def winograd_pays(node: Node, weights: np.ndarray, forms: Forms) -> bool:
    """Whether a convolution has the shape, and enough channels, for the transforms to pay."""
    attrs, size = node.attrs, node.output.shape[2:]
    if len(size) != 2 or weights.shape[2] != weights.shape[3] or weights.shape[2] not in BY_KERNEL or any(n != 1 for n in attrs["strides"]):
        return False
    if attrs["dtype"] != F32 or not all(isinstance(n, int) for n in (*size, *attrs["low"])) or min(attrs["low"]) < 0:
        return False
    form, block = BY_KERNEL[weights.shape[2]], forms.block
    outputs, inputs = (-(-channels // block) * block for channels in weights.shape[:2])
    tiles = 1
    for extent, step in zip(size, attrs["dilation"], strict=True):
        tiles *= ceildiv(ceildiv(extent, step), form.outputs) * step
    direct = direct_cycles(forms.target, size[0] * size[1], form.kernel**2, inputs, outputs)
    return winograd_cycles(forms.target, form, tiles, inputs, outputs) < _MARGIN * direct


def assign_winograd(node: Node, weights: np.ndarray, forms: Forms) -> None:
    """Computes the convolution; ``winograd_pays`` said that it may."""
    attrs, form, b = node.attrs, BY_KERNEL[weights.shape[2]], forms.b
    u = b.constant(pack_transformed(weights, form, forms.block))
    common = {"low": tuple(attrs["low"]), "dilation": tuple(attrs["dilation"]), "dtype": attrs["dtype"]}
    x = forms.finite(node.inputs[0])
    result = b.emit("conv_winograd", x, u, kernel=form.kernel, size=node.output.shape[2:], **common)
    forms.set_blocked(node.output, result, 0.0)


def pack_transformed(weights: np.ndarray, form: Winograd, block: int) -> np.ndarray:
    """[O, I, r, r] -> [n * n, O/B, I/B, B of I, B of O], a block of O at a time: the transform works in f64."""
    outputs, inputs = (-(-channels // block) for channels in weights.shape[:2])
    packed = np.zeros((form.values, outputs, inputs, block, block), weights.dtype)
    for k in range(outputs):
        part = form.transform_weights(weights[k * block : (k + 1) * block])  # [n * n, o, I]
        packed[:, k, ..., : part.shape[1]] = np.moveaxis(pack_array(part, 2, block), 1, -1)
    return packed
