"""Sums over the image of a depthwise convolution's results: its kernel sums each row as it makes it.

Runs after fusion, on kernels. The mean of each channel, with which a squeeze-and-excitation block starts, then reads a number for
each row in place of a whole image that has left the nearest caches. Sums of rows are the same whoever computes which rows.

    %y = fused(%x, %w) {kind = conv}                    %y, %r = fused(%x, %w) {kind = conv}     %r: the sums over the last axis
    %s = reduce(%y) {fn = add, axes = (2, 3)}    -->    %s = reduce(%r) {fn = add, axes = (2,)}
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.ir.dtypes import F32
from tcompile.ir.graph import Graph, Node, TensorType, Value

_EPILOGUE = frozenset({"map", "broadcast", "constant", "depthwise_blocked"})  # what keeps every result in its place


@dataclass(frozen=True)
class SumRows:
    """The pass. It looks at the outermost graph: bodies of loops have their turns to save time in."""

    name: str = "sum-rows"

    def apply(self, graph: Graph) -> Graph:
        """The graph with such kernels; the argument is left alone."""
        producers = graph.producers()
        rows: dict[Node, Node] = {}  # kernels, and those that sum rows too
        nodes: list[Node] = []
        for node in graph.nodes:
            made = producers.get(node.inputs[0]) if _sums_image(node) else None
            if made is not None and made.op == "fused" and _is_depthwise(made):
                rows.setdefault(made, _with_sums(made))
                node = _of_rows(node, rows[made].outputs[1])
            nodes.append(node)
        nodes = [rows.get(node, node) for node in nodes]
        return Graph(graph.name, graph.inputs, graph.outputs, nodes, graph.symbols, graph.output_names)


def _sums_image(node: Node) -> bool:
    """Whether a node sums over all of the two or more spatial axes of blocked f32 values."""
    if node.op != "reduce" or node.attrs["fn"] != "add" or node.output.dtype != F32:
        return False
    rank = node.inputs[0].rank
    return rank > 4 and tuple(node.attrs["axes"]) == tuple(range(2, rank - 1))


def _is_depthwise(node: Node) -> bool:
    """Whether a kernel is a depthwise convolution, with what is done to each result where it is, in rows of a known length."""
    (region,) = node.regions
    return (
        len(node.outputs) == 1
        and _EPILOGUE.issuperset(inner.op for inner in region.nodes)
        and any(inner.op == "depthwise_blocked" for inner in region.nodes)
        and isinstance(node.output.shape[-2], int)
        and node.output.shape[-2] > 0
    )


def _with_sums(node: Node) -> Node:
    (region,) = node.regions
    (result,) = region.outputs
    axis = result.rank - 2
    type_ = TensorType(result.dtype, (*result.shape[:axis], result.shape[-1]))
    inner, outer = (Value(f"{value.name}.rows", type_) for value in (result, node.output))
    total = Node("reduce", (result,), (inner,), {"fn": "add", "axes": (axis,)}, (), node.source)
    outputs, names = (result, inner), (*region.output_names, inner.name)
    body = Graph(region.name, region.inputs, outputs, [*region.nodes, total], region.symbols, names)
    return Node(node.op, node.inputs, (node.output, outer), node.attrs, (body,), node.source)


def _of_rows(node: Node, rows: Value) -> Node:
    """The same sum, of the sums of rows."""
    return Node(node.op, (rows,), node.outputs, {**node.attrs, "axes": tuple(range(2, rows.rank - 1))}, (), node.source)
