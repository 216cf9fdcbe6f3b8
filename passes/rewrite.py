"""The rewrite driver: rules look at one node and answer with a patch; only the driver edits graphs.

A rule is a function ``(node, context) -> Patch | None`` marked with ``@rule("op", ...)``. The driver walks the nodes
in order, regions first, offers each node to the rules for its op, and splices patches in: their nodes go through the
rules again at once, so that a chain of simplifications settles in one sweep. Sweeps repeat until one changes
nothing. What a patch replaces and nobody needs any more is removed after each sweep (``passes/dead_code.py``).

A sweep is linear in the number of nodes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tcompile.errors import Error, UnsupportedError
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.graph import Graph, Node, Value
from tcompile.passes.dead_code import remove_dead

MAX_SWEEPS = 50


@dataclass(frozen=True)
class Patch:
    """Replaces a node: its outputs become ``values``, which ``nodes`` (placed where it stood) or earlier nodes define."""

    reason: str
    values: tuple[Value, ...]
    nodes: tuple[Node, ...] = ()


Rule = Callable[[Node, "Context"], Patch | None]


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Marks a function as a rule for nodes of some ops ("*": of all)."""

    def mark(function: Rule) -> Rule:
        function.ops = ops
        return function

    return mark


class Context:
    """What a rule may ask about the graph around its node."""

    def __init__(self, graph: Graph, ranges: Mapping[str, Range], numbers: Iterable[int]) -> None:
        self.ranges = ranges
        self._numbers = numbers
        self._producers: dict[Value, Node] = {}
        self._replaced: dict[Value, Value] = {}
        self._uses = Counter(value for node in graph.nodes for value in node.inputs)
        self._uses.update(graph.outputs)

    def producer(self, value: Value, *ops: str) -> Node | None:
        """The node that defines a value, where it is one of some ops (or any, if none are given)."""
        node = self._producers.get(value)
        return node if node is not None and (not ops or node.op in ops) else None

    def constant(self, value: Value) -> np.ndarray | None:
        """The array of a constant, also of one that is broadcast (as a view); None where the value is not known."""
        node = self._producers.get(value)
        if node is None:
            return None
        if node.op == "constant":
            return node.attrs["value"]
        if node.op == "broadcast" and value.type.is_static:
            array = self.constant(node.inputs[0])
            return None if array is None else _broadcast_view(array, node)
        return None

    def is_constant(self, value: Value) -> bool:
        """Whether a value is a constant under any broadcasts, also to symbolic extents."""
        node = self._producers.get(value)
        while node is not None and node.op == "broadcast":
            node = self._producers.get(node.inputs[0])
        return node is not None and node.op == "constant"

    def scalar(self, value: Value) -> float | int | bool | None:
        """The one value that all elements of a constant have; None where they differ or are not known."""
        node = self._producers.get(value)
        while node is not None and node.op == "broadcast":
            node = self._producers.get(node.inputs[0])
        if node is None or node.op != "constant" or node.attrs["value"].size != 1:
            return None
        return node.attrs["value"].reshape(-1)[0]

    def used_once(self, value: Value) -> bool:
        """Whether a single operand in this graph reads the value (an output of the graph counts as one)."""
        return self._uses[value] <= 1

    def uses(self, value: Value) -> int:
        """How many operands in this graph read the value (an output of the graph counts as one)."""
        return self._uses[value]

    def unused(self, value: Value) -> bool:
        """Whether nothing in this graph reads the value."""
        return self._uses[value] == 0

    def build(self, node: Node) -> Builder:
        """A builder for the nodes of a patch: it shares symbols and carries the node's source."""
        builder = Builder("patch")
        builder.symbols = self.ranges  # the same table: a rule may add symbols
        builder.source = node.source
        builder._numbers = self._numbers
        return builder

    # The driver's own -----------------------------------------------------------------------------------

    def resolve(self, value: Value) -> Value:
        """What a value has become."""
        seen = []
        while value in self._replaced:
            seen.append(value)
            value = self._replaced[value]
        for old in seen:
            self._replaced[old] = value
        return value

    def place(self, node: Node) -> None:
        """Records a node that stays."""
        for value in node.outputs:
            self._producers[value] = node

    def splice(self, node: Node, patch: Patch) -> None:
        """Records that a patch takes a node's place."""
        self._uses.subtract(node.inputs)
        for new in patch.nodes:
            self._uses.update(new.inputs)
        for old, new in zip(node.outputs, patch.values, strict=True):
            if old is new:
                continue
            new = self.resolve(new)
            self._uses[new] += self._uses.pop(old, 0)
            self._replaced[old] = new


def _broadcast_view(array: np.ndarray, node: Node) -> np.ndarray:
    shape = node.output.shape
    aligned = [1] * len(shape)
    for extent, axis in zip(array.shape, node.attrs["axes"], strict=True):
        aligned[axis] = extent
    try:
        return np.broadcast_to(array.reshape(aligned), shape)
    except ValueError as error:  # more elements than NumPy counts
        raise UnsupportedError(f"a constant of the shape {list(shape)} has too many elements") from error


def patch(reason: str, builder: Builder | None, *values: Value) -> Patch:
    """A patch of what a builder made (None: nothing new is needed)."""
    return Patch(reason, values, tuple(builder.nodes) if builder else ())


def rewrite(graph: Graph, rules: Sequence[Rule]) -> Graph:
    """The graph with rules applied until none matches. Raises Error for a patch of another type, and for rules that never end."""
    table: dict[str, list[Rule]] = {}
    for function in rules:
        for op in function.ops:
            table.setdefault(op, []).append(function)
    numbers = itertools.count()
    for _ in range(MAX_SWEEPS):
        sweep = _Sweep(table, graph.symbols, numbers)
        graph = remove_dead(sweep.graph(graph))
        if not sweep.reasons:
            return graph
    raise Error(f"rewriting {graph.name} does not end; the last patches: {', '.join(dict.fromkeys(sweep.reasons))}")


class _Sweep:
    """One walk over a graph and its regions."""

    def __init__(self, table: Mapping[str, Sequence[Rule]], ranges: dict[str, Range], numbers: Iterable[int]) -> None:
        self.table, self.ranges, self.numbers = table, ranges, numbers
        self.reasons: list[str] = []

    def graph(self, graph: Graph) -> Graph:
        context = Context(graph, self.ranges, self.numbers)
        placed: list[Node] = []
        pending = graph.nodes[::-1]
        budget = 100 * len(graph.nodes) + 1000
        while pending:
            node = self._resolved(pending.pop(), context)
            found = self._match(node, context)
            if found is None:
                placed.append(node)
                context.place(node)
                continue
            _check_types(node, found)
            context.splice(node, found)
            pending.extend(reversed(found.nodes))
            self.reasons.append(found.reason)
            budget -= 1
            if not budget:
                raise Error(f"rewriting {graph.name} does not end; the last patches: {', '.join(self.reasons[-5:])}")
        outputs = tuple(map(context.resolve, graph.outputs))
        return Graph(graph.name, graph.inputs, outputs, placed, graph.symbols, graph.output_names)

    def _resolved(self, node: Node, context: Context) -> Node:
        inputs = tuple(map(context.resolve, node.inputs))
        regions = tuple(map(self.graph, node.regions))
        if inputs == node.inputs and not regions:
            return node
        return Node(node.op, inputs, node.outputs, node.attrs, regions, node.source)

    def _match(self, node: Node, context: Context) -> Patch | None:
        for function in (*self.table.get("*", ()), *self.table.get(node.op, ())):
            found = function(node, context)
            if found is not None:
                return found
        return None


def _check_types(node: Node, found: Patch) -> None:
    expected, got = ([value.type for value in values] for values in (node.outputs, found.values))
    if expected != got:
        raise Error(f"the rule '{found.reason}' replaces {node.op} of type {expected} by {got}")
