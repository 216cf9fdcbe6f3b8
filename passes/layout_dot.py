"""Products with a constant matrix: the matrix is packed into panels for the register tile of the target.

    %y = dot_general(%x, %k) {contract = ((2,), (0,))}
-->
    %r = reshape(%x) to [rows, terms]; %p = dot_packed(%r, %k') {columns}; %y = reshape(%p)
"""

from __future__ import annotations

import math

from tcompile.ir.dims import DimLike, product
from tcompile.ir.graph import Node, Value
from tcompile.ir.ops_contraction import free_axes
from tcompile.ir.ops_layout import pack_panels
from tcompile.ir.tiles import accumulator_type, panel_width
from tcompile.passes.layout_forms import Forms
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
    parts = word_parts(node, forms)
    if parts is not None:
        left = _rows_by_terms(forms, forms.plain(a), (*free_a, *contract_a), (rows, terms))
        forms.set_plain(node.output, forms.b.reshape(dot_interleaved(forms, left, matrix, rows, parts), node.output.shape))
        return True
    dtype = accumulator_type(a.dtype, b.dtype, node.attrs["dtype"])
    few = forms.turns and not isinstance(rows, int)  # a recurrence has one row of each sequence of a batch
    width = panel_width(forms.target, rows, *matrix.shape, dtype, few=few)
    left = _rows_by_terms(forms, forms.plain(a), (*free_a, *contract_a), (rows, terms))
    panels = forms.b.constant(pack_panels(matrix, width))
    result = forms.b.emit("dot_packed", left, panels, columns=matrix.shape[1], dtype=node.attrs["dtype"], few=few)
    forms.set_plain(node.output, forms.b.reshape(result, node.output.shape))
    return True


def _rows_by_terms(forms: Forms, a: Value, order: tuple[int, ...], shape: tuple[DimLike, DimLike]) -> Value:
    return forms.b.reshape(forms.b.transpose(a, order), shape)
