"""A graph without control flow and without symbols, for peers that are given a model's core ops: what one run on given inputs does.

loop(3, true, x)       ->   the body's nodes three times
if(c, x)               ->   the nodes of the branch that these inputs take
f32[batch, 4]          ->   f32[2, 4]

Peers get what they would trace: PyTorch and JAX unroll loops of fixed length in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tcompile.errors import UnsupportedError
from tcompile.ir import dims, dtypes
from tcompile.ir.dims import Dim
from tcompile.ir.graph import Graph, Node, TensorType, Value
from tcompile.ir.interpret import bind_symbols
from tcompile.ir.ops import evaluate, spec
from tcompile.ir.opspec import concrete

_TURNS = 2048  # of loops that are unrolled

Values = dict[Value, Value]


def unrolled(graph: Graph, arrays: Mapping[str, np.ndarray]) -> Graph:
    """The nodes of a run on ``arrays`` in order. Raises UnsupportedError for long loops, and for sizes that values decide."""
    if not any(node.regions for node in graph.nodes) and all(value.type.is_static for value in graph.inputs):
        return graph
    given = [arrays[value.name] for value in graph.inputs]
    made = _Unroller(dict(bind_symbols(graph, given)))
    inputs = [made.fresh(value) for value in graph.inputs]
    made.arrays.update(zip(inputs, given, strict=True))
    outputs = made.block(graph, inputs)
    return Graph(graph.name, tuple(inputs), tuple(outputs), made.nodes, {}, graph.output_names)


@dataclass
class _Unroller:
    """``env``: the symbols' values. ``arrays``: what is known of values, of inputs from the start."""

    env: dict[str, int]
    nodes: list[Node] = field(default_factory=list)
    arrays: dict[Value, np.ndarray] = field(default_factory=dict)
    producers: dict[Value, Node] = field(default_factory=dict)

    def fresh(self, value: Value) -> Value:
        return Value(value.name, TensorType(value.dtype, concrete(value.shape, self.env)))

    def block(self, graph: Graph, inputs: Sequence[Value]) -> list[Value]:
        """The outputs of a graph or region on these values, its nodes added."""
        values: Values = dict(zip(graph.inputs, inputs, strict=True))
        for node in graph.nodes:
            operands = [values[value] for value in node.inputs]
            match node.op:
                case "if":
                    results = self._if(node, operands)
                case "loop":
                    results = self._loop(node, operands)
                case "bind_dim":
                    self.env[node.attrs["symbol"]] = int(self.known(operands[0]))
                    results = []
                case _:
                    results = self.add(node, operands)
            values.update(zip(node.outputs, results, strict=True))
        return [values[value] for value in graph.outputs]

    def add(self, node: Node, operands: Sequence[Value]) -> list[Value]:
        """One node whose attributes are numbers."""
        if node.regions:
            raise UnsupportedError(f"peers: no translation of {node.op} ({', '.join(node.source)})")
        attrs = {name: _concrete(value, self.env) for name, value in spec(node.op).complete(node.attrs).items()}
        made = Node(node.op, tuple(operands), tuple(map(self.fresh, node.outputs)), attrs, (), node.source)
        self.nodes.append(made)
        self.producers.update((value, made) for value in made.outputs)
        return list(made.outputs)

    def known(self, value: Value) -> np.ndarray:
        """The array of a value, computed from what is known by NumPy."""
        if value not in self.arrays:
            node = self.producers[value]
            results = evaluate(node.op, [self.known(operand) for operand in node.inputs], node.attrs, (), {})
            self.arrays.update(zip(node.outputs, results, strict=True))
        return self.arrays[value]

    def _if(self, node: Node, operands: Sequence[Value]) -> list[Value]:
        region = node.regions[0] if bool(self.known(operands[0])) else node.regions[1]
        results = self.block(region, operands[1:])
        for output, axis, name in spec("if").complete(node.attrs)["shape_symbols"]:
            self.env[name] = results[output].shape[axis]
        return results

    def _loop(self, node: Node, operands: Sequence[Value]) -> list[Value]:
        (region,), attrs = node.regions, spec("loop").complete(node.attrs)
        count = attrs["carried"]
        if attrs["shape_symbols"] or attrs["scan_symbols"]:
            raise UnsupportedError(f"peers: a loop whose values change their shapes ({', '.join(node.source)})")
        limit = int(self.known(operands[0])) if attrs["trip"] is None else concrete((attrs["trip"],), self.env)[0]
        going, turn, carried = bool(self.known(operands[1])), 0, list(operands[2 : 2 + count])
        stacks: list[list[Value]] = [[] for _ in range(attrs["scans"])]
        while going and (limit < 0 or turn < limit):
            if turn == _TURNS:
                raise UnsupportedError(f"peers: a loop of more than {_TURNS} turns ({', '.join(node.source)})")
            self.env[attrs["counter"]] = turn
            results = self.block(region, [self._constant(np.array(turn, np.int64)), *carried, *operands[2 + count :]])
            going = attrs["always"] or bool(self.known(results[0]))
            carried = results[1 : 1 + count]
            for stack, element in zip(stacks, results[1 + count :], strict=True):
                stack.append(element)
            turn += 1
        if not turn and stacks:
            raise UnsupportedError(f"peers: a scan of no turns ({', '.join(node.source)})")
        if isinstance(attrs["scan_extent"], Dim):
            self.env.update({name: turn for name in dims.symbols(attrs["scan_extent"]) if name not in self.env})
        return [*carried, *map(self._stacked, stacks)]

    def _constant(self, array: np.ndarray) -> Value:
        value = Value("iteration", TensorType(dtypes.I64, ()))
        self.arrays[value] = array
        return self.add(Node("constant", (), (value,), {"value": array}), ())[0]

    def _stacked(self, elements: Sequence[Value]) -> Value:
        dtype, shape = elements[0].dtype, elements[0].shape
        rows = []
        for element in elements:
            row = Value(element.name, TensorType(dtype, (1, *shape)))
            rows += self.add(Node("reshape", (element,), (row,), {"shape": (1, *shape)}), (element,))
        whole = Value(elements[0].name, TensorType(dtype, (len(rows), *shape)))
        return self.add(Node("concat", tuple(rows), (whole,), {"axis": 0}), rows)[0]


def _concrete(value: Any, env: Mapping[str, int]) -> Any:
    if isinstance(value, Dim):
        return dims.evaluate(value, env)
    if isinstance(value, tuple):
        return tuple(_concrete(part, env) for part in value)
    return value
