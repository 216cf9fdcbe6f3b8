"""The Graph IR: typed SSA values, immutable nodes in topological order, closed regions.

A ``Graph`` owns its nodes; a node's operands are values that the graph's inputs or earlier nodes define.
Regions (the bodies of ``if``, ``loop``, ``fused``) are graphs that see nothing of the outside but
their inputs; only dimension symbols are shared by all regions of a graph. What each op means is declared in
``ir/ops*.py``; the invariants are in ``ir/verify.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tcompile.ir.dims import Range, Shape, product, shape_symbols
from tcompile.ir.dtypes import DType


@dataclass(frozen=True)
class TensorType:
    """Element type and shape; a dimension is an int or an expression over the graph's symbols. Row-major."""

    dtype: DType
    shape: Shape

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self):
        """Number of elements, an int or an expression."""
        return product(self.shape)

    @property
    def is_static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    @property
    def symbols(self) -> frozenset[str]:
        return shape_symbols(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, eq=False)
class Value:
    """One SSA value; compared by identity. ``name`` is for people: the ONNX name where there is one."""

    name: str
    type: TensorType

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> Shape:
        return self.type.shape

    @property
    def rank(self) -> int:
        return len(self.type.shape)


@dataclass(frozen=True, eq=False)
class Node:
    """One operation. ``source`` names the ONNX nodes it came from, for messages and profiles."""

    op: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    regions: tuple[Graph, ...] = ()
    source: tuple[str, ...] = ()

    @property
    def output(self) -> Value:
        """The only output of a node that has one."""
        (value,) = self.outputs
        return value


@dataclass(eq=False)
class Graph:
    """Nodes in topological order between inputs and outputs.

    ``symbols`` holds the range of every dimension symbol (of this graph and its regions; a region's own table
    is empty). ``entry`` symbols are bound by input shapes, all others by ``bind_dim`` and ``loop`` nodes.
    """

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: list[Node]
    symbols: dict[str, Range] = field(default_factory=dict)
    output_names: tuple[str, ...] = ()  # public names, one per output (one value may be returned twice)

    def producers(self) -> dict[Value, Node]:
        """The node that defines each value (inputs have none)."""
        return {value: node for node in self.nodes for value in node.outputs}

    def users(self) -> dict[Value, list[Node]]:
        """The nodes that read each value, once per node."""
        table: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                table.setdefault(value, []).append(node)
        return table

    def walk(self) -> Iterator[Node]:
        """All nodes, those of regions after the node that owns them."""
        for node in self.nodes:
            yield node
            for region in node.regions:
                yield from region.walk()

    def __str__(self) -> str:
        from tcompile.ir.text import print_graph

        return print_graph(self)
