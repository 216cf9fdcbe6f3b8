"""Quantised models: what is written as floats between dequantised integers is computed on the integers.

Runs before weights fold, since a dequantised constant would fold into floats, four times as large. Codes then stay
8 or 16 bits wide in memory, and a layer is a sum of integer products with one scale, one rounding and one clamp behind it.

    %x = D(%q); %w = D(codes)                               %n = conv(%q - z, codes - u) {dtype = i32}
    %y = conv(%x, %w); %z = map(%y, bias) {fn = "add"}  --> %f = fma(convert(%n), s * t / r, bias / r)
    %o = Q(%z)                                              %o = convert(clamp(round(%f) + v))

Results agree with ONNX's meaning up to the rounding of the scales: a code differs by one where a value lies between two
steps; sums of integer operators (ConvInteger, MatMulInteger) are exact. Rules: ``quantised_contractions.py``,
``quantised_rounding.py``; ``quantised_match.py`` says what D looks like.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tcompile.ir.dtypes import F32, I16
from tcompile.ir.graph import Graph, Node, Value
from tcompile.ir.target import Target
from tcompile.passes.canonicalise import canonical
from tcompile.passes.common import EliminateCommon
from tcompile.passes.fold import FoldConstants
from tcompile.passes.quantised_contractions import centred, contraction_rules
from tcompile.passes.quantised_match import Quantised, is_code
from tcompile.passes.quantised_rounding import RULES, pooled_codes, quantised_again
from tcompile.passes.rewrite import Context, Patch, patch, rewrite, rule


@dataclass(frozen=True)
class IntegerContractions:
    """The pass. The target's instructions decide how codes are held, and whether integers pay at all."""

    target: Target
    name: str = "integers"

    def apply(self, graph: Graph) -> Graph:
        """The graph with quantised contractions on integers; one without any is left alone."""
        if not self.target.dot_parts or not _has_codes(graph):
            return graph
        # constants that grow would be the weights
        folded = FoldConstants(limit=64, growth=1.0, extra=(pooled_codes, quantised_again)).apply(graph)
        found = canonical(folded, contraction_rules(self.target))
        return canonical(share_wide_codes(found), RULES)


def _has_codes(graph: Graph) -> bool:
    values = [value for node in graph.nodes for value in node.inputs]
    return any(map(is_code, values)) or any(_has_codes(region) for node in graph.nodes for region in node.regions)


def share_wide_codes(graph: Graph) -> Graph:
    """Floats read from codes that exist in i16 too are read from these: one form of a value is stored.

    h = convert(q, i16) + c; f = convert(q, f32) + c  -->  f = convert(h, f32)
    """
    producers, users = graph.producers(), graph.users()
    held = {(node.inputs[0], shift) for node in graph.nodes if _widens(node) for shift in _shifts(users.get(node.output, ()), producers)}
    made = {node.output for node in graph.nodes if node.op == "convert" and is_code(node.output) and node.inputs[0].dtype == F32}

    @rule("map", "convert")
    def read_wide(node: Node, context: Context) -> Patch | None:
        converted, shift = node, 0
        if node.op == "map":
            known = context.scalar(node.inputs[1]) if node.attrs["fn"] == "add" else None
            converted, shift = context.producer(node.inputs[0], "convert"), known
        if converted is None or shift is None or node.output.dtype != F32:
            return None
        code, zero = converted.inputs[0], -int(shift)
        # a code that is made here anyway is made without its zero point
        if (code, -zero) not in held and not (zero and code in made and context.used_once(code) and context.used_once(converted.output)):
            return None
        b = context.build(node)
        return patch("wide code", b, b.convert(centred(b, Quantised(code, zero, 1.0)), F32))

    return EliminateCommon().apply(rewrite(graph, (read_wide,)))


def _widens(node: Node) -> bool:
    return node.op == "convert" and node.attrs["dtype"] == I16 and is_code(node.inputs[0])


def _shifts(users: Iterable[Node], producers: dict[Value, Node]) -> set[int]:
    """What is added to an i16 before anything else reads it; 0 where it is read as it is."""
    found = set()
    for user in users:
        shift = _shift(user, producers) if user.op == "map" and user.attrs["fn"] == "add" else None
        found.add(0 if shift is None else shift)
    return found


def _shift(add: Node, producers: dict[Value, Node]) -> int | None:
    node = producers.get(add.inputs[1])
    while node is not None and node.op == "broadcast":
        node = producers.get(node.inputs[0])
    return int(node.attrs["value"].reshape(-1)[0]) if node is not None and node.op == "constant" and node.attrs["value"].size == 1 else None
