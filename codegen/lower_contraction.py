"""dot_general and conv as plain loops: any dtype, any axes, any padding. Templates take the common cases first.

for each result: total = 0; for each term: total = a * b + total
"""

from __future__ import annotations

from collections.abc import Callable

from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.scalar import cast, compare, const, op, rounded, select
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Shape, product
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Node, Value
from tcompile.ir.loops import Expr, Load, Op, Space
from tcompile.ir.ops_contraction import dilated, free_axes

Term = Callable[[Shape], tuple[Expr, Expr]]  # the factors at an index of what is summed over


def lower_dot(node: Node, scope: Scope) -> list[Draft]:
    """out[batch, i, j] = sum over k of a[batch, i, k] * b[batch, j, k], axes placed as the attributes say."""
    return [_summed("dot", node, scope, dot_term)]


def lower_conv(node: Node, scope: Scope) -> list[Draft]:
    """out[n, o, i] = sum over c, k of x[n, c, (i * stride + k * dilation - low) / lhs_dilation] * w[o, c, k]."""
    return [_summed("conv", node, scope, conv_term)]


def _summed(name: str, node: Node, scope: Scope, maker: Callable[[Draft, Node, Shape], tuple[Shape, Term]]) -> Draft:
    draft = Draft(name, node, scope)
    with draft.nest.loops(node.output.shape, independent=True) as at:
        extents, term = maker(draft, node, at)
        total = sum_of_products(draft, extents, accumulation_type(node), term)
        draft.store(node.output, at, rounded(total, node.output.dtype))
    draft.flops = node.output.type.size * product(extents) * 2
    return draft


def dot_term(draft: Draft, node: Node, at: Shape) -> tuple[Shape, Term]:
    """What one result of a dot_general sums: the extents and the factors."""
    a, b = node.inputs
    (batch_a, batch_b), (contract_a, contract_b) = node.attrs["batch"], node.attrs["contract"]
    free_a, free_b = free_axes(a.rank, batch_a, contract_a), free_axes(b.rank, batch_b, contract_b)
    batch, rows, columns = at[: len(batch_a)], at[len(batch_a) : len(batch_a) + len(free_a)], at[len(batch_a) + len(free_a) :]

    def term(k: Shape) -> tuple[Expr, Expr]:
        left = _placed(a.rank, (batch_a, batch), (free_a, rows), (contract_a, k))
        right = _placed(b.rank, (batch_b, batch), (free_b, columns), (contract_b, k))
        return draft.element(a, left), draft.element(b, right)

    return tuple(a.shape[k] for k in contract_a), term


def conv_term(draft: Draft, node: Node, at: Shape) -> tuple[Shape, Term]:
    """What one result of a convolution sums: the extents (channels, taps) and the factors."""
    x, w = node.inputs
    per_group, wide = dims.floordiv(w.shape[0], node.attrs["groups"]), accumulation_type(node)
    group = dims.floordiv(at[1], per_group, draft.nest.ranges)

    def term(k: Shape) -> tuple[Expr, Expr]:
        positions, inside = conv_taps(draft, node, x, at[2:], k[1:])
        left = cast(draft.element(x, (at[0], group * w.shape[1] + k[0], *positions), inside), wide)
        if inside is not None:
            left = select(inside, left, const(0, wide))  # not of x's type: f8e8m0 has no zero
        return left, draft.element(w, (at[1], *k))

    return w.shape[1:], term


def conv_taps(draft: Draft, node: Node, x: Value, at: Shape, tap: Shape) -> tuple[Shape, Expr | None]:
    """The spatial position a kernel element falls on, and where it is one of x's elements (None: always)."""
    attrs, ranges = node.attrs, draft.nest.ranges
    positions: list[DimLike] = []
    inside: Expr | None = None
    for k, (i, t, extent) in enumerate(zip(at, tap, x.shape[2:], strict=True)):
        spread = attrs["lhs_dilation"][k]
        raw = i * attrs["strides"][k] + t * attrs["dilation"][k] - attrs["low"][k]
        inside = draft.inliner.guarded(inside, draft.inliner.within(raw, dilated(extent, spread)))
        if spread > 1:
            inside = draft.inliner.guarded(inside, compare("eq", dims.mod(raw, spread, ranges), 0))
        positions.append(dims.floordiv(raw, spread, ranges))
    return tuple(positions), inside


def sum_of_products(draft: Draft, extents: Shape, wide: DType, term: Callable[[Shape], tuple[Expr, Expr]]) -> Expr:
    """The sum over ``extents`` of the products that ``term`` gives, in the type ``wide``."""
    nest = draft.nest
    total = nest.alloc(wide, (1,), Space.REGISTER)
    nest.store(total, 0, const(0, wide))
    with nest.loops(extents, folds=True) as k:
        left, right = (cast(factor, wide) for factor in term(k))
        before = Load(total, (0,), wide)
        if wide.is_float:
            nest.store(total, 0, Op("fma", (left, right, before), wide))
        else:
            nest.store(total, 0, op("add", before, op("mul", left, right)))
    return nest.let(Load(total, (0,), wide))


def accumulation_type(node: Node) -> DType:
    """The type that sums: the widest of the factors' and the result's compute types; integers wrap in the result's."""
    if not node.output.dtype.is_float:
        return node.output.dtype
    kinds = (node.output.dtype.compute, *(value.dtype.compute for value in node.inputs))
    return max(kinds, key=lambda dtype: dtype.bits)


def _placed(rank: int, *parts: tuple[tuple[int, ...], Shape]) -> Shape:
    """Indices put at their axes."""
    indices: list[DimLike] = [0] * rank
    for axes, values in parts:
        for axis, value in zip(axes, values, strict=True):
            indices[axis] = value
    return tuple(indices)
