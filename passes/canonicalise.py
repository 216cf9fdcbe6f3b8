"""Canonicalisation: algebra that makes equal computations look equal, and removes what does nothing.

Runs first, so that every later pass matches one form of each idea: constants stand last, subtracting a constant is
adding its negative, a movement of a movement is one movement, broadcasts have no unit axes, casts there and back are
gone, equal nodes are one, and known symbols are numbers.

    %a = transpose(%x) {perm = (1, 0)}                       %c = map(%x, %k) {fn = "add"}
    %b = transpose(%a) {perm = (1, 0)}              -->
    %c = map(%k, %b) {fn = "add"}

The rules, each with its algebra, are in ``passes/algebra.py``, ``movement.py``, ``sink.py`` and ``control.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tcompile.ir.graph import Graph
from tcompile.passes import algebra, control, movement, sink
from tcompile.passes.common import EliminateCommon
from tcompile.passes.rewrite import Rule, rewrite
from tcompile.passes.symbols import resolve_symbols

RULES: tuple[Rule, ...] = (*algebra.RULES, *movement.RULES, *sink.RULES, *control.RULES)
ROUNDS = 10


@dataclass(frozen=True)
class Canonicalise:
    """The pass."""

    name: str = "canonicalise"

    def apply(self, graph: Graph) -> Graph:
        """The canonical graph."""
        return canonical(graph)


def canonical(graph: Graph, extra: Sequence[Rule] = ()) -> Graph:
    """Applies the rules (and some extra ones), merges equal nodes and resolves symbols, until nothing changes.

    A decided ``if`` binds symbols that are then known, and merging makes operands equal: either may let a rule match.
    """
    for _ in range(ROUNDS):
        graph = rewrite(graph, (*extra, *RULES))
        merged = EliminateCommon().apply(graph)
        resolved = resolve_symbols(merged)
        if resolved is merged and len(merged.nodes) == len(graph.nodes):
            return merged
        graph = resolved
    return graph
