"""Convolutions with constant weights in blocked form: which kind fits, and how the weights are packed.

    conv(x, w)  -->  conv_blocked(pad(pack(x)), w')          channels in blocks of B
                     conv_pointwise(x, w')                   plain input, plain output: kernels of one element
                     depthwise_blocked(pad(pack(x)), w')     groups of one channel or a few
                     conv_stem(pad(x), w')                   few input channels: plain input, blocked output
                     conv_winograd(pad(pack(x)), u)          3x3 and others where the products outweigh the transforms
                     conv_strassen(pack(x), u)               pointwise, many channels

Other narrow groups are joined until a block is full: the weights between them are zero, and
kernels skip blocks of them.
"""

from __future__ import annotations

import math

import numpy as np

from tcompile.ir.graph import Node
from tcompile.passes.layout_bytes import conv_bytes
from tcompile.passes.layout_depthwise import assign_depthwise
from tcompile.passes.layout_forms import Forms, pack_array, padded, padded_to
from tcompile.passes.layout_integer import conv_interleaved, word_parts
from tcompile.passes.layout_joined import joined_input
from tcompile.passes.layout_pointwise import assign_pointwise
from tcompile.passes.layout_strassen import assign_strassen
from tcompile.passes.layout_transposed import assign_transposed
from tcompile.passes.layout_whole import assign_whole_winograd
from tcompile.passes.layout_winograd import assign_winograd, winograd_form

STEM_CHANNELS = 8  # a plain input of fewer channels than this is read as it lies


def assign_conv(node: Node, forms: Forms) -> bool:
    """Computes a convolution blocked, where its weights are constant; tells whether it did."""
    weights = forms.constant(forms.plain(node.inputs[1]))
    if weights is None or not _supported(node):
        return False
    if any(d != 1 for d in node.attrs["lhs_dilation"]):
        return assign_transposed(node, forms)
    with joined_input(node, forms, weights) as spread:
        return _assign(node, forms, spread)


def _assign(node: Node, forms: Forms, weights: np.ndarray) -> bool:
    x, _ = node.inputs
    groups, channels = node.attrs["groups"], x.shape[1]
    common = {name: node.attrs[name] for name in ("strides", "dilation", "dtype")}
    b = forms.b
    if assign_pointwise(node, weights, forms):
        return True
    if groups == 1 and channels < STEM_CHANNELS and not forms.native(x) and word_parts(node, forms) is None:
        bordered = padded(b, forms.plain(x), node, lanes=False)
        result = b.emit("conv_stem", bordered, b.constant(pack_array(weights, 0, forms.block)), **common)
    elif assign_depthwise(node, weights, forms):
        return True
    else:
        joined = _join_groups(weights, groups, forms.block)
        if joined is None:
            return False
        parted = joined[1] < groups
        weights, groups = joined
        parts = word_parts(node, forms)
        if parts == 2 and groups == 1 and assign_whole_winograd(node, weights, forms):
            return True
        on_bytes = conv_bytes(node, forms, weights) if parts == 2 and groups == 1 else None
        if on_bytes is not None:
            forms.set_blocked(node.output, on_bytes, 0.0)
            return True
        if parts is not None:
            forms.set_blocked(node.output, conv_interleaved(node, forms, weights, groups, parts), 0.0)
            return True
        form = winograd_form(node, weights, forms) if groups == 1 and forms.winograd else None
        if form is not None:
            assign_winograd(node, weights, form, forms)
            return True
        packed = pack_weights(weights, forms.block)
        if forms.winograd and not parted and assign_strassen(node, packed, forms):
            return True
        bordered = padded(b, forms.finite(x), node, lanes=True)
        reads = read_blocks(packed) if parted else ()
        result = b.emit("conv_blocked", bordered, b.constant(packed), groups=groups, reads=reads, **common)
    forms.set_blocked(node.output, result, 0.0)  # zero weights, zero lanes
    return True


def pack_weights(weights: np.ndarray, block: int) -> np.ndarray:
    """[O, I, kernel] -> [O/B, I/B, kernel, B of I, B of O]."""
    outputs, inputs = (-(-extent // block) for extent in weights.shape[:2])
    full = padded_to(padded_to(weights, 0, outputs * block), 1, inputs * block)
    split = full.reshape(outputs, block, inputs, block, *weights.shape[2:])
    return np.ascontiguousarray(np.moveaxis(split, (3, 1), (-2, -1)))


def read_blocks(packed: np.ndarray) -> tuple[int, ...]:
    """For each output block of packed weights the first input block of weights that are not zero, and how many there are up to the last."""
    used = packed.reshape(*packed.shape[:2], -1).any(axis=-1)
    starts = used.argmax(axis=1)
    sizes = used.shape[1] - used[:, ::-1].argmax(axis=1) - starts
    pairs = zip(starts, np.where(used.any(axis=1), sizes, 0), strict=True)
    return tuple(int(number) for pair in pairs for number in pair)


def _supported(node: Node) -> bool:
    x, w = node.inputs
    known = isinstance(x.shape[1], int) and w.type.is_static and w.type.size > 0
    zeros = all(np.zeros((), value.dtype.numpy) == 0 for value in (x, w))  # f8e8m0 has none to pad with
    return known and zeros and min(x.dtype.bits, w.dtype.bits) >= 8


def _join_groups(weights: np.ndarray, groups: int, block: int) -> tuple[np.ndarray, int] | None:
    """Weights whose groups are whole blocks, and their number; None where that would waste most of the work."""
    outputs, inputs = weights.shape[0] // groups, weights.shape[1]
    if groups == 1 or (inputs % block == 0 and outputs % block == 0):
        return weights, groups
    join = block // math.gcd(inputs, outputs, block)
    if join > 4 or groups % join:
        return None
    merged = np.zeros((weights.shape[0], inputs * join, *weights.shape[2:]), weights.dtype)
    for group in range(groups):
        start = group % join * inputs
        rows = slice(group * outputs, (group + 1) * outputs)
        merged[rows, start : start + inputs] = weights[rows]
    return merged, groups // join
