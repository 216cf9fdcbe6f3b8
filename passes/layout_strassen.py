"""Pointwise convolutions of many channels by Strassen's algorithm, where that is faster.

conv(x, w) --> conv_strassen(pack(x), u)     u: seven sums of quarters of w
"""

from __future__ import annotations

import math

import numpy as np

from tcompile.ir.choices import Option, choose
from tcompile.ir.dtypes import F32
from tcompile.ir.graph import Node
from tcompile.ir.strassen import transform_weights
from tcompile.ir.tiles import pointwise_cycles, strassen_cycles
from tcompile.passes.layout_forms import Forms

_MARGIN = 0.97  # of the direct estimate that the other must stay below


def assign_strassen(node: Node, packed: np.ndarray, forms: Forms) -> bool:
    """Computes a convolution with weights [O/B, I/B, kernel, B, B] by the algorithm, where it pays; tells whether it did."""
    attrs, size = node.attrs, node.output.shape[2:]
    even = packed.shape[0] % 2 == 0 == packed.shape[1] % 2
    if not even or any(extent != 1 for extent in packed.shape[2:-2]) or attrs["groups"] != 1 or not size:
        return False
    if any(dtype != F32 for dtype in (attrs["dtype"], *(value.dtype for value in node.inputs))):
        return False
    if any((*attrs["low"], *attrs["high"])) or not all(isinstance(extent, int) for extent in size):
        return False
    channels = packed.shape[1] * forms.block, packed.shape[0] * forms.block
    options = [
        Option("direct", _MARGIN * pointwise_cycles(forms.target, math.prod(size), *channels, strided=max(attrs["strides"]) > 1), False),
        Option("strassen", strassen_cycles(forms.target, math.prod(size), *channels), True),
    ]
    if not choose("pointwise convolution", options):
        return False
    u = forms.b.constant(transform_weights(packed.reshape(*packed.shape[:2], *packed.shape[-2:])))
    result = forms.b.emit("conv_strassen", forms.finite(node.inputs[0]), u, strides=attrs["strides"], dtype=attrs["dtype"])
    forms.set_blocked(node.output, result, 0.0)
    return True
