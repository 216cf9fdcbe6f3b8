"""The blocked layouts' contractions as plain loops, for what no template takes: odd dtypes, odd shapes.

Channels stand as blocks of B lanes, the lane axis last; see ``ir/ops_layout.py``.
"""

from __future__ import annotations

from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.lower_contraction import accumulation_type, sum_of_products
from tcompile.codegen.scalar import cast
from tcompile.ir import dims
from tcompile.ir.dims import Shape, product
from tcompile.ir.graph import Node
from tcompile.ir.loops import Expr


def lower_dot_packed(node: Node, scope: Scope) -> list[Draft]:
    """out[i, c] = sum over k of a[i, k] * b[c // W, k, c % W]"""
    a, b = node.inputs
    width = b.shape[2]

    def term(draft: Draft, at: Shape, k: Shape) -> tuple[Expr, Expr]:
        panel, lane = dims.floordiv(at[-1], width, draft.nest.ranges), dims.mod(at[-1], width, draft.nest.ranges)
        return draft.element(a, (*at[:-1], *k)), draft.element(b, (panel, *k, lane))

    return _contraction("dot_packed", node, scope, (a.shape[-1],), term)


def lower_conv_blocked(node: Node, scope: Scope) -> list[Draft]:
    """out[n, o, i, lane] = sum over c, k, l of x[n, c of o's group, i * stride + k * dilation, l] * w[o, c, k, l, lane]"""
    x, w = node.inputs
    per_group = dims.floordiv(w.shape[0], node.attrs["groups"])

    def term(draft: Draft, at: Shape, k: Shape) -> tuple[Expr, Expr]:
        group = dims.floordiv(at[1], per_group, draft.nest.ranges)
        place = _taps(node, at[2:-1], k[1:-1])
        return draft.element(x, (at[0], group * w.shape[1] + k[0], *place, k[-1])), draft.element(w, (at[1], *k, at[-1]))

    return _contraction("conv_blocked", node, scope, w.shape[1:-1], term)


def lower_dot_interleaved(node: Node, scope: Scope) -> list[Draft]:
    """out[i, c] = sum over k, j of a[i, k * G + j] * b[c // W, k, c % W, j]"""
    a, b = node.inputs
    width, parts = b.shape[2:]

    def term(draft: Draft, at: Shape, k: Shape) -> tuple[Expr, Expr]:
        panel, lane = dims.floordiv(at[-1], width, draft.nest.ranges), dims.mod(at[-1], width, draft.nest.ranges)
        return draft.element(a, (*at[:-1], k[0] * parts + k[1])), draft.element(b, (panel, k[0], lane, k[1]))

    return _contraction("dot_interleaved", node, scope, (b.shape[1], parts), term)


def lower_conv_interleaved(node: Node, scope: Scope) -> list[Draft]:
    """out[n, o, i, lane] = sum over c, k, l, j of x[n, c of o's group, i * stride + k * dilation, l * G + j] * w[o, c, k, l, lane, j]"""
    x, w = node.inputs[:2]
    per_group, parts = dims.floordiv(w.shape[0], node.attrs["groups"]), w.shape[-1]

    def term(draft: Draft, at: Shape, k: Shape) -> tuple[Expr, Expr]:
        group = dims.floordiv(at[1], per_group, draft.nest.ranges)
        place = _taps(node, at[2:-1], k[1:-2])
        left = draft.element(x, (at[0], group * w.shape[1] + k[0], *place, k[-2] * parts + k[-1]))
        return left, draft.element(w, (at[1], *k[:-1], at[-1], k[-1]))

    return _contraction("conv_interleaved", node, scope, (*w.shape[1:-2], parts), term)


def lower_conv_stem(node: Node, scope: Scope) -> list[Draft]:
    """out[n, o, i, lane] = sum over c, k of x[n, c, i * stride + k * dilation] * w[o, c, k, lane]"""
    x, w = node.inputs

    def term(draft: Draft, at: Shape, k: Shape) -> tuple[Expr, Expr]:
        return draft.element(x, (at[0], k[0], *_taps(node, at[2:-1], k[1:]))), draft.element(w, (at[1], *k, at[-1]))

    return _contraction("conv_stem", node, scope, w.shape[1:-1], term)


def lower_conv_pointwise(node: Node, scope: Scope) -> list[Draft]:
    """out[n, o, i] = sum over c of x[n, g * I/g + c, i] * w[g, o' // H, c, o' % H], o' being o in its group g"""
    x, w = node.inputs
    groups, _, inputs, height = w.shape
    outputs = node.attrs["channels"] // groups

    def term(draft: Draft, at: Shape, k: Shape) -> tuple[Expr, Expr]:
        ranges = draft.nest.ranges
        group, inside = dims.floordiv(at[1], outputs, ranges), dims.mod(at[1], outputs, ranges)
        tile, row = dims.floordiv(inside, height, ranges), dims.mod(inside, height, ranges)
        return draft.element(x, (at[0], group * inputs + k[0], *at[2:])), draft.element(w, (group, tile, k[0], row))

    return _contraction("conv_pointwise", node, scope, (inputs,), term)


def lower_depthwise(node: Node, scope: Scope) -> list[Draft]:
    """out[n, c, i, lane] = sum over j, k of x[n, c, i * stride + k * dilation, lane turned by j in its group] * w[c, j, k, lane]"""
    x, w = node.inputs
    grouped = w.rank == x.rank

    def term(draft: Draft, at: Shape, k: Shape) -> tuple[Expr, Expr]:
        lane, tap = at[-1], k[1:] if grouped else k
        if grouped:
            ranges, group = draft.nest.ranges, w.shape[1]
            lane = dims.floordiv(lane, group, ranges) * group + dims.mod(lane + k[0], group, ranges)
        return draft.element(x, (at[0], at[1], *_taps(node, at[2:-1], tap), lane)), draft.element(w, (at[1], *k, at[-1]))

    return _contraction("depthwise", node, scope, w.shape[1:-1], term)


def _taps(node: Node, at: Shape, tap: Shape) -> Shape:
    """Where kernel elements fall on the padded input."""
    return tuple(i * s + t * d for i, t, s, d in zip(at, tap, node.attrs["strides"], node.attrs["dilation"], strict=True))


def _contraction(name: str, node: Node, scope: Scope, extents: Shape, term) -> list[Draft]:
    draft = Draft(name, node, scope)
    with draft.nest.loops(node.output.shape, independent=True) as at:
        total = sum_of_products(draft, extents, accumulation_type(node), lambda k: term(draft, at, k))
        draft.store(node.output, at, cast(total, node.output.dtype))
    draft.flops = node.output.type.size * product(extents) * 2
    return [draft]
