"""Contractions without tiles: a thread sums each result, and runs what follows. For few terms, few channels, narrow matrices."""

from __future__ import annotations

from tcompile.codegen.cpu_epilogue import Epilogue, anchor
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.lower_contraction import accumulation_type, conv_term, dot_term, sum_of_products
from tcompile.codegen.scalar import rounded
from tcompile.codegen.templates import Built
from tcompile.ir.dims import product
from tcompile.ir.graph import Node


def direct(node: Node, scope: Scope) -> list[Draft | Built] | None:
    """The loops of a contraction and its epilogue; None for a contraction that has none here."""
    core = anchor(node)
    makers = {"dot_general": dot_term, "conv": conv_term}
    if core is None or core.op not in makers:
        return None
    draft = Draft("dot" if core.op == "dot_general" else "conv", node, scope)
    epilogue, wide = Epilogue(draft, node, core), accumulation_type(core)
    with draft.nest.loops(core.output.shape, independent=True) as at:
        extents, term = makers[core.op](draft, core, at)
        total = sum_of_products(draft, extents, wide, term)
        epilogue.store(at, rounded(total, core.output.dtype))
    draft.flops = core.output.type.size * product(extents) * 2
    return [draft]
