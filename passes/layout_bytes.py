"""Integer convolutions and products with constant weights on bytes, where that takes fewer steps than words of halves do.

    conv(x, w) {dtype = i32}         -->  conv_bytes(pad(pack(x)), entries, places, starts, offsets)
    dot_general(x, k) {dtype = i32}  -->  the same of rows as positions, in one block each of inputs and of outputs

For machines that have no dot product of four bytes but one of halves, and ``pmaddubsw``: codes of 256 numbers by weights of 8 bits.
Exact: which sums fit 16 bits is known from the weights (``passes/byte_entries.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tcompile.ir.choices import Option, choose
from tcompile.ir.dims import DimLike, product
from tcompile.ir.dtypes import I16
from tcompile.ir.graph import Node, Value
from tcompile.ir.tiles import MANY_ROWS
from tcompile.passes.byte_entries import Entries, byte_entries
from tcompile.passes.layout_forms import Forms, pack_array, padded_to
from tcompile.passes.layout_integer import input_block, spatial_border, word_parts
from tcompile.passes.layout_ranges import code_range

_MOST_WORDS = 96  # of a pass: the copies of a tile then lie in the L1 cache
_FEWEST_OUTPUTS = 16
_GROUP_CYCLES = {3: 2.65, 2: 1.95}  # of a vector, by how many entries are multiplied and added
_SAMPLE = 24  # outputs, whose groups tell how many those of all will have
_WORD_CYCLES = 1.37  # the same of four terms as words of halves
_TILE_CYCLES = 35.0  # around the entries of an output, for all vectors of a tile
_COPY_CYCLES = 5.0  # of four terms of a vector
_LANES, _TILE = 8, 8  # positions of a vector, vectors of a tile


@dataclass(frozen=True)
class _Plan:
    """Entries, how many words a pass has, and what is subtracted from the codes."""

    entries: Entries
    depth: int
    low: int
    offsets: np.ndarray  # i32 [outputs]


def conv_bytes(node: Node, forms: Forms, weights: np.ndarray) -> Value | None:
    """The blocked result of a convolution of one group; None where bytes do not hold its factors, or words are faster."""
    x, b = node.inputs[0], forms.b
    block = input_block(x, forms, 1, 4)
    if block % 16:
        return None  # the copies would be made one by one
    packed = pack_array(padded_to(weights, 0, -(-len(weights) // forms.block) * forms.block), 1, block)  # [O, I/A, kernel, A]
    plan = _plan(node, forms, packed.reshape(len(packed), -1).T, block // 4, product(node.output.shape[2:]))
    if plan is None:
        return None
    source = forms.finite(x) if block == forms.block else b.emit("pack", forms.plain(x), axis=1, block=block)
    padded = spatial_border(forms, b.convert(source, I16), node)
    common = {name: node.attrs[name] for name in ("strides", "dilation")}
    return _emit(forms, padded, plan, forms.block, kernel=tuple(weights.shape[2:]), **common)


def dot_bytes(node: Node, forms: Forms, left: Value, matrix: np.ndarray, rows: DimLike) -> Value | None:
    """Rows of codes times a constant matrix [K, columns]; None as for ``conv_bytes``."""
    b, (terms, columns) = forms.b, matrix.shape
    if terms < 16 or not isinstance(rows, int):
        return None  # a symbolic number of rows may be one, which would fill one lane of each vector
    plan = _plan(node, forms, padded_to(matrix, 0, -(-terms // 4) * 4), 1, rows)
    if plan is None:
        return None
    codes = b.convert(left, I16)
    if terms % 4:
        codes = b.emit("pad", codes, b.constant(0, I16), low=(0, 0), high=(0, -terms % 4), mode="constant")
    codes = b.reshape(codes, (1, 1, rows, codes.shape[-1]))
    result = _emit(forms, codes, plan, columns, kernel=(1,), strides=(1,), dilation=(1,))
    return b.reshape(result, (rows, columns))


def _emit(forms: Forms, x: Value, plan: _Plan, block: int, **attrs: object) -> Value:
    found, b = plan.entries, forms.b
    offsets = plan.offsets.reshape(-1, block)
    operands = (b.constant(array) for array in (found.entries, found.places, found.starts, offsets))
    return b.emit("conv_bytes", x, *operands, low=plan.low, depth=plan.depth, size=found.size, **attrs)


def _plan(node: Node, forms: Forms, matrix: np.ndarray, words: int, rows: DimLike) -> _Plan | None:
    """How to multiply codes at ``rows`` positions with a matrix [terms, outputs] on bytes; passes are multiples of ``words``."""
    low, high = code_range(node.inputs[0], forms)
    low, high = min(low, 0), max(high, 0)  # the border is zeros
    if forms.target.vector_bytes != 4 * _LANES:
        return None  # wider vectors of words are as fast
    if word_parts(node, forms) != 2 or high - low > 255 or not matrix.size or matrix.shape[1] < _FEWEST_OUTPUTS:
        return None
    if matrix.min() < -128 or matrix.max() > 127:
        return None
    total = len(matrix) // 4
    passes = -(-total // _MOST_WORDS)
    depth = -(-total // (passes * words)) * words
    vectors = -(-rows // _LANES) if isinstance(rows, int) else MANY_ROWS // _LANES
    outputs = matrix.shape[1]
    around = vectors * _COPY_CYCLES * total + -(-vectors // _TILE) * passes * outputs * _TILE_CYCLES
    sizes = [Option(f"bytes by {size}", vectors * cycles + around, size) for size, cycles in _by_size(matrix.astype(np.int8), depth)]
    halves = Option("halves", _WORD_CYCLES * total * outputs * (rows / _LANES if isinstance(rows, int) else vectors), None)
    size = choose("integers", (*sizes, halves))
    if size is None:
        return None
    found = byte_entries(matrix.astype(np.int8), depth, size)
    return _Plan(found, depth, low, (low * matrix.astype(np.int64).sum(axis=0)).astype(np.int32))


def _by_size(matrix: np.ndarray, depth: int) -> list[tuple[int, float]]:
    """Sizes of groups, and about how many cycles a vector of positions takes with them: packing some outputs tells."""
    step = max(matrix.shape[1] // _SAMPLE, 1)
    some = matrix[:, ::step]
    share = matrix.shape[1] / some.shape[1]
    return [(size, cycles * share * byte_entries(some, depth, size).groups) for size, cycles in _GROUP_CYCLES.items()]
