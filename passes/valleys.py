"""Functions of one value that fall, then rise: on an interval they are largest at one of its ends.

gelu(x) = a x (1 + erf(b x)),  swish(x) = a x sigmoid(b x)  with a, b > 0:  the derivative changes its sign once
max(x, c), and x itself:  fall nowhere
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tcompile.ir.build import Builder
from tcompile.ir.graph import Node, Value
from tcompile.passes.rewrite import Context


@dataclass(frozen=True)
class Valley:
    """A function of ``argument``, by the maps that compute it, in order, and the numbers in them; ``rises``: it falls nowhere."""

    argument: Value
    nodes: tuple[Node, ...]
    numbers: Mapping[Value, float]
    rises: bool

    def apply(self, b: Builder, value: Value) -> Value:
        """The function of another value, of any shape."""
        made = {self.argument: value}
        for node in self.nodes:
            operands = [made[operand] if operand in made else b.scalar_like(self.numbers[operand], value) for operand in node.inputs]
            made[node.output] = b.map(node.attrs["fn"], *operands)
        return made[self.nodes[-1].output] if self.nodes else value

    def owns(self, context: Context) -> bool:
        """Whether nothing else reads the argument, or what is between it and the result."""
        inner = (self.argument, *(node.output for node in self.nodes[:-1]))
        read = [operand for node in self.nodes for operand in node.inputs]
        return all(context.uses(value) <= max(read.count(value), 1) for value in inner)


def valley(value: Value, context: Context) -> Valley:
    """The function whose result a value is; that of nothing where it is no known one."""
    made = context.producer(value, "map")
    fn = None if made is None else made.attrs["fn"]
    found = None
    if fn == "silu":
        found = Valley(made.inputs[0], (made,), {}, rises=False)
    elif fn is not None:
        found = _maximum(made, context) if fn == "max" else _gated(made, context)
    return found or Valley(value, (), {}, rises=True)


def _maximum(node: Node, context: Context) -> Valley | None:
    """max(x, c)."""
    for x, other in (node.inputs, node.inputs[::-1]):
        number = context.scalar(other)
        if number is not None:
            return Valley(x, (node,), {other: float(number)}, rises=True)
    return None


def _gated(node: Node, context: Context) -> Valley | None:
    """A product of a value, positive numbers, and 1 + erf or the sigmoid of a positive multiple of the value."""
    reader = _Reader(context)
    factors = reader.factors(node.output)
    plain = [factor for factor in factors if not reader.is_gate(factor)]
    gates = [factor for factor in factors if reader.is_gate(factor)]
    if len(plain) != 1 or len(gates) != 1 or not reader.scale > 0:
        return None
    argument = plain[0]
    if not reader.reads_gate(gates[0], argument):
        return None
    order = sorted(reader.nodes, key=lambda made: _depth(made, argument, context))
    return Valley(argument, tuple(order), reader.numbers, rises=False)


class _Reader:
    """Reads a product; collects its maps and its numbers, whose product is ``scale``."""

    def __init__(self, context: Context) -> None:
        self.context, self.scale = context, 1.0
        self.nodes: list[Node] = []
        self.numbers: dict[Value, float] = {}

    def factors(self, value: Value) -> list[Value]:
        """The factors of a product that are no numbers."""
        number = self.context.scalar(value)
        if number is not None:
            self.numbers[value] = float(number)
            self.scale *= float(number)
            return []
        made = self.context.producer(value, "map")
        if made is None or made.attrs["fn"] != "mul":
            return [value]
        self.nodes.append(made)
        return [factor for operand in made.inputs for factor in self.factors(operand)]

    def is_gate(self, value: Value) -> bool:
        """Whether a value is a sigmoid, or a sum with erf."""
        made = self.context.producer(value, "map")
        return made is not None and (made.attrs["fn"] == "sigmoid" or self._erf(made) is not None)

    def reads_gate(self, value: Value, argument: Value) -> bool:
        """Takes the maps of a gate of a positive multiple of the argument; tells whether it is one."""
        made = self.context.producer(value, "map")
        assert made is not None, value
        self.nodes.append(made)
        if made.attrs["fn"] != "sigmoid":
            found = self._erf(made)
            assert found is not None, value
            made, one = found
            self.numbers[one] = 1.0
            self.nodes.append(made)
        (inner,) = made.inputs
        if inner is argument:
            return True
        scaled = self.context.producer(inner, "map")
        if scaled is None or scaled.attrs["fn"] != "mul" or argument not in scaled.inputs:
            return False
        other = scaled.inputs[1 - scaled.inputs.index(argument)]
        number = self.context.scalar(other)
        if number is None or not number > 0:
            return False
        self.nodes.append(scaled)
        self.numbers[other] = float(number)
        return True

    def _erf(self, node: Node) -> tuple[Node, Value] | None:
        """erf + 1: the node of erf, and the one."""
        if node.attrs["fn"] != "add":
            return None
        for value, other in (node.inputs, node.inputs[::-1]):
            made = self.context.producer(value, "map")
            if made is not None and made.attrs["fn"] == "erf" and self.context.scalar(other) == 1:
                return made, other
        return None


def _depth(node: Node, argument: Value, context: Context) -> int:
    """How many maps are between the argument and a node."""
    made = [context.producer(operand, "map") for operand in node.inputs if operand is not argument]
    return 1 + max((_depth(inner, argument, context) for inner in made if inner is not None), default=0)
