"""Recognition: scales and biases fold into weights, transposes into contractions, known formulas into functions,
products with one-hot vectors into gathers.

Runs after constant folding, which makes weights, scales and biases visible as constants, and before layouts, which pack
the weights that result.

    %c = conv(%x, %w) {...}
    %m = map(%c, broadcast(%scale)) {fn = "mul"}     -->     %c = conv(%x, %w * %scale) {...}
    %y = map(%m, broadcast(%bias)) {fn = "add"}              %y = map(%c, broadcast(%bias)) {fn = "add"}

Folding a scale rounds once per weight instead of once per result: the error stays within a contraction's tolerance.
The rules are in ``passes/recognise_scales.py``, ``recognise_dots.py``, ``recognise_gathers.py``,
``recognise_channels.py`` and ``recognise_functions.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.ir.graph import Graph
from tcompile.passes import recognise_channels, recognise_dots, recognise_functions, recognise_gathers, recognise_scales
from tcompile.passes.fold import FoldConstants

RULES = (
    *recognise_gathers.RULES, *recognise_channels.RULES, *recognise_scales.RULES, *recognise_dots.RULES, *recognise_functions.RULES,
)  # fmt: skip


@dataclass(frozen=True)
class Recognise:
    """The pass."""

    name: str = "recognise"

    def apply(self, graph: Graph) -> Graph:
        """The graph with the rules applied, canonical and folded."""
        return FoldConstants(extra=RULES).apply(graph)
