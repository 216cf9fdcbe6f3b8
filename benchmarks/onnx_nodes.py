"""The nodes of an ONNX file under the names that compiled kernels carry, and which of them a peer's operation computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx

# What decides which kernel an operation is compared with; anything else is fused here or there as it suits.
HEAVY = frozenset(
    (
        *("Attention", "AveragePool", "Conv", "ConvInteger", "ConvTranspose", "Einsum", "GRU", "Gather", "GatherND", "Gemm"),
        *("GroupNormalization", "InstanceNormalization", "LSTM", "LayerNormalization", "MatMul", "MatMulInteger", "MatMulNBits"),
        *("MaxPool", "QLinearConv", "QLinearMatMul", "RNN", "Resize", "ScatterElements", "ScatterND", "Softmax", "TopK", "Upsample"),
    )
)


@dataclass(frozen=True)
class Nodes:
    """``ops``: operator by label (the node's name, else ``Op #number``); ``inputs``: tensors by label; ``made``: label by tensor."""

    ops: Mapping[str, str]
    inputs: Mapping[str, Sequence[str]]
    made: Mapping[str, str]

    def labels(self, names: Iterable[str]) -> list[str]:
        """The labels that names (of nodes or of tensors) stand for."""
        found = (name if name in self.ops else self.made.get(name) for name in names)
        return list(dict.fromkeys(label for label in found if label is not None))

    def covered(self, anchors: Iterable[str], others: set[str]) -> list[str]:
        """The nodes whose results lead to ``anchors`` without going through ``others``; the anchors themselves included."""
        stack, seen = list(anchors), {}
        while stack:
            label = stack.pop()
            if label in seen:
                continue
            seen[label] = None
            before = (self.made.get(name) for name in self.inputs[label])
            stack += [other for other in before if other is not None and other not in others]
        return list(seen)

    def heavy(self, labels: Iterable[str]) -> list[str]:
        """Those that decide which kernel an operation is compared with."""
        return [label for label in labels if self.ops[label] in HEAVY]


def read_nodes(model: onnx.ModelProto) -> Nodes:
    """All nodes, those of subgraphs too."""
    ops: dict[str, str] = {}
    inputs: dict[str, Sequence[str]] = {}
    made: dict[str, str] = {}
    for label, node in _labelled(model.graph):
        ops[label], inputs[label] = node.op_type, list(node.input)
        made.update({name: label for name in node.output if name})
    return Nodes(ops, inputs, made)


def name_all(model: onnx.ModelProto) -> bool:
    """Gives every node its label as its name; whether one had none."""
    unnamed = [(label, node) for label, node in _labelled(model.graph) if not node.name]
    for label, node in unnamed:
        node.name = label
    return bool(unnamed)


def _labelled(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    for index, node in enumerate(graph.node):
        yield node.name or f"{node.op_type} #{index}", node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _labelled(attribute.g)
