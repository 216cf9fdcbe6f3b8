"""Products with a constant matrix: the matrix is packed into panels for the register tile of the target.

    %y = dot_general(%x, %k) {contract = ((2,), (0,))}
-->
    %r = reshape(%x) to [rows, terms]; %p = dot_packed(%r, %k') {columns}; %y = reshape(%p)

What a convolution left in channel blocks and the model then flattens stays in blocks: the matrix gets their order.
"""

from __future__ import annotations

import math

import numpy as np

from tcompile.ir.dims import DimLike, product
from tcompile.ir.graph import Node, Value
from tcompile.ir.ops_contraction import free_axes
from tcompile.ir.ops_layout import pack_panels
from tcompile.ir.tiles import accumulator_type, panel_width
from tcompile.passes.layout_bytes import dot_bytes
from tcompile.passes.layout_forms import AXIS, Forms
from tcompile.passes.layout_integer import dot_interleaved, word_parts


def assign_dot(node: Node, forms: Forms) -> bool:
    """Rewrites a product whose right factor is a constant without batch axes; tells whether it did."""
    a, b = node.inputs
    weights = forms.constant(forms.plain(b))
    (contract_a, contract_b), (batch, _) = node.attrs["contract"], node.attrs["batch"]
    if weights is None or batch or min(a.dtype.bits, b.dtype.bits) < 8:
        return False
    free_a, free_b = free_axes(a.rank, (), contract_a), free_axes(b.rank, (), contract_b)
    terms = math.prod(weights.shape[k] for k in contract_b)
    matrix = weights.transpose(*contract_b, *free_b).reshape(terms, math.prod(weights.shape[k] for k in free_b))
    rows = product(a.shape[k] for k in free_a)
    if matrix.shape[1] == 0:
        return False  # no panels
    flat = _flattened(node, forms)
    if flat is not None:
        left, matrix = forms.b.reshape(forms.blocked(flat), (rows, terms)), _in_blocks(matrix, flat, forms.block)
    else:
        left = _rows_by_terms(forms, forms.plain(a), (*free_a, *contract_a), (rows, terms))
    parts = word_parts(node, forms)
    if parts is not None:
        result = dot_bytes(node, forms, left, matrix, rows) if parts == 2 else None
        result = dot_interleaved(forms, left, matrix, rows, parts) if result is None else result
        forms.set_plain(node.output, forms.b.reshape(result, node.output.shape))
        return True
    dtype = accumulator_type(a.dtype, b.dtype, node.attrs["dtype"])
    few = forms.turns and not isinstance(rows, int)  # a recurrence has one row of each sequence of a batch
    width = panel_width(forms.target, rows, *matrix.shape, dtype, few=few)
    panels = forms.b.constant(pack_panels(matrix, width))
    result = forms.b.emit("dot_packed", left, panels, columns=matrix.shape[1], dtype=node.attrs["dtype"], few=few)
    forms.set_plain(node.output, forms.b.reshape(result, node.output.shape))
    return True


def _rows_by_terms(forms: Forms, a: Value, order: tuple[int, ...], shape: tuple[DimLike, DimLike]) -> Value:
    return forms.b.reshape(forms.b.transpose(a, order), shape)


def _flattened(node: Node, forms: Forms) -> Value | None:
    """The value in whole channel blocks, [N, C, spatial], whose flattened images are the rows of a product."""
    a, contract = node.inputs[0], node.attrs["contract"][0]
    made = forms.producers.get(a)
    if made is None or made.op != "reshape" or a.rank != 2 or contract != (1,):
        return None
    (x,) = made.inputs
    whole = x.rank > 2 and x.shape[0] == a.shape[0] and isinstance(a.shape[1], int) and a.shape[1] > 0
    return x if whole and forms.native(x) and x.shape[AXIS] % forms.block == 0 else None


def _in_blocks(matrix: np.ndarray, value: Value, block: int) -> np.ndarray:
    """Rows in the order of [C, spatial] in that of [C/B, spatial, B]."""
    channels = value.shape[AXIS]
    return matrix.reshape(channels // block, block, -1, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)
