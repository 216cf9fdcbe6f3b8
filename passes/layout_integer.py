"""Integer contractions with constant weights: words of 2 or 4 neighbouring terms, for the target's dot products.

    conv(x, w) {dtype = i32}         -->  conv_interleaved(pad(pack(x)), w')
    dot_general(x, k) {dtype = i32}  -->  dot_interleaved(pad(reshape(x)), k')     terms up to a multiple of the parts

Halves (i16) serve any codes of 8 bits; bytes are u8 by i8. Few channels are packed into a block of a word or two.
"""

from __future__ import annotations

import numpy as np

from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import I8, I16, I32, U8, DType
from tcompile.ir.graph import Node, Value
from tcompile.ir.ops_interleaved import interleave, word_products
from tcompile.ir.ops_layout import pack_panels
from tcompile.ir.tiles import dot_step, panel_width
from tcompile.passes.layout_forms import Forms, pack_array, padded_to
from tcompile.passes.layout_ranges import code_range

FEWEST_OUTPUTS = 64  # channels, from which the products of inputs among themselves cost less than multiplying sums saves
SMALL_BLOCK = 8  # channels, up to which an input that is not blocked yet is packed into a block of its own size


def word_parts(node: Node, forms: Forms) -> int | None:
    """The parts of the words that a contraction's factors fit into; None where it is none of integers, or the target has no dot product."""
    x, w = node.inputs
    if node.attrs["dtype"] != I32 or not forms.target.dot_parts:
        return None
    if forms.target.dot_parts == 4 and (x.dtype, w.dtype) == (U8, I8):
        return 4
    return 2 if _is_half(x.dtype) and _is_half(w.dtype) and forms.target.arch == "x86_64" else None


def _is_half(dtype: DType) -> bool:
    return dtype.is_integer and (dtype.bits == 8 or dtype == I16)


def conv_interleaved(node: Node, forms: Forms, weights: np.ndarray, groups: int, parts: int) -> Value:
    """The blocked result of a convolution of whole groups."""
    x, b = node.inputs[0], forms.b
    block = input_block(x, forms, groups, parts)
    source = forms.finite(x) if block == forms.block else b.emit("pack", forms.plain(x), axis=1, block=block)
    source = b.convert(source, I16 if parts == 2 else U8)
    padded = spatial_border(forms, source, node)
    packed = interleaved_weights(weights.astype(np.int16 if parts == 2 else np.int8), block, forms.block, parts)
    common = {name: node.attrs[name] for name in ("strides", "dilation")}
    operands = [padded, b.constant(packed)]
    many = weights.shape[0] >= FEWEST_OUTPUTS and groups == 1 and block // parts % 2 == 0
    if parts == 2 and many and sums_fit(x, weights, forms):
        operands.append(b.constant(_conv_products(packed)))
    return b.emit("conv_interleaved", *operands, groups=groups, **common)


def _conv_products(packed: np.ndarray) -> np.ndarray:
    """``word_products`` of the weights of every output channel: [O/B, B]."""
    return word_products(packed).sum(axis=tuple(range(1, packed.ndim - 3)), dtype=np.int32)


def sums_fit(x: Value, weights: np.ndarray, forms: Forms) -> bool:
    """Whether an activation and a weight add up to an i16, whatever the activation is."""
    low, high = code_range(x, forms)
    return low + min(int(weights.min()), 0) >= -(2**15) and high + max(int(weights.max()), 0) < 2**15


def input_block(x: Value, forms: Forms, groups: int, parts: int) -> int:
    """The channels of a block of a convolution's input."""
    if groups > 1 or forms.native(x) or x.shape[1] > SMALL_BLOCK:
        return forms.block
    return -(-x.shape[1] // parts) * parts


def spatial_border(forms: Forms, x: Value, node: Node) -> Value:
    """A blocked input with zeros around it."""
    low, high = node.attrs["low"], node.attrs["high"]
    if all(amount == 0 for amount in (*low, *high)):
        return x
    return forms.b.emit("pad", x, forms.b.constant(0, x.dtype), low=(0, 0, *low, 0), high=(0, 0, *high, 0), mode="constant")


def interleaved_weights(weights: np.ndarray, block: int, outputs: int, parts: int) -> np.ndarray:
    """[O, I, kernel] -> [O/outputs, I/block, kernel, block/parts, outputs, parts]."""
    inputs = pack_array(weights, 1, block)  # [O, I/block, kernel, block]
    both = pack_array(inputs, 0, outputs)  # [O/outputs, I/block, kernel, block, outputs]
    return interleave(both, both.ndim - 2, parts)


def dot_interleaved(forms: Forms, left: Value, matrix: np.ndarray, rows: DimLike, parts: int) -> Value:
    """Rows of codes times a constant matrix."""
    b, (terms, columns) = forms.b, matrix.shape
    left = b.convert(left, I16 if parts == 2 else U8)
    if terms % parts:
        left = b.emit("pad", left, b.constant(0, left.dtype), low=(0, 0), high=(0, -terms % parts), mode="constant")
    width = panel_width(forms.target, rows, -(-terms // parts), columns, I32, dot_step(forms.target, parts))
    panels = pack_panels(padded_to(matrix.astype(np.int16 if parts == 2 else np.int8), 0, -(-terms // parts) * parts), width)
    return b.emit("dot_interleaved", left, b.constant(interleave(panels, 1, parts)), columns=columns)
