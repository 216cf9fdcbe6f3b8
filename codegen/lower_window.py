"""Windows that slide: reduce_window and the running folds of cumulative.

Padding of a window is never stored: positions outside the tensor count as the identity of the fold.
"""

from __future__ import annotations

from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.lower_rows import Rows
from tcompile.codegen.scalar import accumulator, cast, identity, op, rounded, select
from tcompile.ir.dims import DimLike, product
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr, Load, Space


def lower_reduce_window(node: Node, scope: Scope) -> list[Draft]:
    """for each result: fold of x[i * stride + k * dilation - low] over the window's k."""
    (source,) = node.inputs
    attrs, fn = node.attrs, node.attrs["fn"]
    draft = Draft(f"window_{fn}", node, scope)
    nest, wide = draft.nest, accumulator(source.dtype)
    with nest.loops(node.output.shape, independent=True) as at:
        total = nest.alloc(wide, (1,), Space.REGISTER)
        nest.store(total, 0, identity(fn, wide))
        with nest.loops(attrs["window"], folds=True) as tap:
            positions = tuple(
                i * stride + k * dilation - low
                for i, k, stride, dilation, low in zip(at, tap, attrs["strides"], attrs["dilation"], attrs["low"], strict=True)
            )
            inside = _inside(draft, positions, source.shape)
            element = cast(draft.element(source, positions, inside), wide)
            if inside is not None:
                element = select(inside, element, identity(fn, wide))
            nest.store(total, 0, op(fn, Load(total, (0,), wide), element))
        draft.store(node.output, at, rounded(nest.let(Load(total, (0,), wide)), node.output.dtype))
    draft.flops = node.output.type.size * product(attrs["window"])
    return [draft]


def _inside(draft: Draft, positions: tuple[DimLike, ...], shape: tuple[DimLike, ...]) -> Expr | None:
    inside: Expr | None = None
    for position, extent in zip(positions, shape, strict=True):
        inside = draft.inliner.guarded(inside, draft.inliner.within(position, extent))
    return inside


def lower_cumulative(node: Node, scope: Scope) -> list[Draft]:
    """total = identity; for k along the axis: total = total (+) x[k]; out[k] = total (before the sum if exclusive)."""
    (source,) = node.inputs
    attrs, fn, axis = node.attrs, node.attrs["fn"], node.attrs["axis"]
    draft = Draft(f"cumulative_{fn}", node, scope)
    nest, wide = draft.nest, accumulator(source.dtype)
    rows = Rows(source.shape, (axis,))
    extent = source.shape[axis]
    with nest.loops(rows.outer, independent=True) as row:
        total = nest.alloc(wide, (1,), Space.REGISTER)
        nest.store(total, 0, identity(fn, wide))
        with nest.loop(extent) as k:
            at = rows.indices(row, (extent - 1 - k if attrs["reverse"] else k,))
            element = cast(draft.element(source, at), wide)
            before = nest.let(Load(total, (0,), wide))
            after = nest.let(op(fn, before, element))
            nest.store(total, 0, after)
            draft.store(node.output, at, rounded(before if attrs["exclusive"] else after, node.output.dtype))
    draft.flops = source.type.size
    return [draft]
