"""scatter_nd and scatter_elements: a copy of the operand, then the updates in order; and compact.

Two kernels: the copy is parallel, the updates run in their order, so that equal indices give the same bits always.
"""

from __future__ import annotations

from tcompile.codegen.access import ravel
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import cast, const, index_value, op
from tcompile.ir.dims import DimLike, Range, Shape
from tcompile.ir.dtypes import I64
from tcompile.ir.graph import Node, Value
from tcompile.ir.loops import Access, Expr, Load, Space


def lower_scatter_nd(node: Node, scope: Scope) -> list[Draft]:
    """for each index tuple, in order: out[tuple, :] = combine(out[tuple, :], updates[..., :])"""
    x, indices, updates = node.inputs
    depth = indices.shape[-1]
    draft = Draft(f"scatter_{node.attrs['combiner']}", node, scope)
    with draft.nest.loops(indices.shape[:-1]) as outer:
        found = tuple(draft.inliner.lookup(indices, (*outer, k), x.shape[k], None) for k in range(depth))
        with draft.nest.loops(x.shape[depth:], independent=True) as inner:
            _combine(draft, node, (*found, *inner), draft.element(updates, (*outer, *inner)))
    draft.flops = updates.type.size
    return [copy_operand(node, x, scope), draft]


def lower_scatter_elements(node: Node, scope: Scope) -> list[Draft]:
    """out[i, indices[i, j, k], k] = combine(..., updates[i, j, k]): only the order along the axis matters."""
    x, indices, updates = node.inputs
    axis = node.attrs["axis"]
    draft = Draft(f"scatter_{node.attrs['combiner']}", node, scope)
    others = tuple(extent for k, extent in enumerate(indices.shape) if k != axis)
    with draft.nest.loops(others, independent=True) as row, draft.nest.loop(indices.shape[axis]) as j:
        at = (*row[:axis], j, *row[axis:])
        index = draft.inliner.lookup(indices, at, x.shape[axis], None)
        _combine(draft, node, (*row[:axis], index, *row[axis:]), draft.element(updates, at))
    draft.flops = updates.type.size
    return [copy_operand(node, x, scope), draft]


def copy_operand(node: Node, x: Value, scope: Scope) -> Draft:
    """The kernel that makes the result a copy of the operand."""
    draft = Draft("copy", node, scope)
    with draft.nest.loop(x.type.size, independent=True) as k:
        draft.nest.store(draft.write(node.output), k, draft.inliner.flat(x, k))
    return draft


def _combine(draft: Draft, node: Node, at: Shape, update: Expr) -> None:
    combiner = node.attrs["combiner"]
    buffer = draft.write(node.output, Access.INOUT)
    position: DimLike = ravel(at, node.output.shape)
    if combiner != "set":
        update = op(combiner, Load(buffer, (position,), node.output.dtype), update)
    draft.nest.store(buffer, position, update)


def lower_compact(node: Node, scope: Scope) -> list[Draft]:
    """Indices of the true elements in front, zeros behind, and their number."""
    (mask,) = node.inputs
    indices, count = node.outputs
    draft = Draft("compact", node, scope)
    nest = draft.nest
    found = nest.alloc(I64, (1,), Space.REGISTER)
    nest.store(found, 0, const(0, I64))
    extent = mask.shape[0]
    with nest.loop(extent) as k:
        is_set = nest.let(draft.element(mask, (k,)))
        place = nest.let_index(Load(found, (0,), I64), Range(0, extent - 1))
        nest.store(draft.write(indices), place, index_value(k), is_set)
        nest.store(found, 0, op("add", index_value(place), cast(is_set, I64)))
    total = nest.let_index(Load(found, (0,), I64), Range(0, extent))
    nest.store(draft.write(count), 0, index_value(total))
    with nest.loop(extent - total) as k:
        nest.store(draft.write(indices), total + k, const(0, I64))
    return [draft]
