"""Constant weights of plain convolutions lie by kernel elements: the channels of one element side by side.

Runs after the last folding, which would undo it, and before fusion, which takes the transpose into the convolution's kernel as a
view: a kernel that sums over (element, channel) then reads neighbours, and a step of its terms is one place of the image. Only
where the target keeps ONNX's layout of images, and the channels fill such steps.

    %y = conv(%x, %w)     -->     %v = constant of shape [O, kernel, C]; %w = transpose(%v) {perm = (0, 3, 1, 2)}; %y = conv(%x, %w)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tcompile.ir.build import Builder
from tcompile.ir.graph import Graph, Node, Value
from tcompile.ir.target import Target
from tcompile.passes.dead_code import remove_dead

CHANNELS = 16  # whose multiples fill steps


@dataclass(frozen=True)
class WeightsByTaps:
    """The pass."""

    target: Target
    name: str = "weights-by-taps"

    def apply(self, graph: Graph) -> Graph:
        """The graph with such weights; regions too."""
        if self.target.channel_block:
            return graph
        return remove_dead(_laid(graph))


def _laid(graph: Graph) -> Graph:
    builder = Builder(graph.name)
    builder.symbols = graph.symbols
    constants = {node.output: node for node in graph.nodes if node.op == "constant"}
    done: dict[Value, Value] = {}
    for node in graph.nodes:
        builder.source = node.source
        inputs = node.inputs
        if node.op == "conv" and inputs[1] in constants and _suits(inputs[1]):
            if inputs[1] not in done:
                done[inputs[1]] = _transposed(builder, constants[inputs[1]].attrs["value"])
            inputs = (inputs[0], done[inputs[1]])
        regions = tuple(map(_laid, node.regions))
        same = inputs == node.inputs and not regions
        builder.nodes.append(node if same else Node(node.op, inputs, node.outputs, node.attrs, regions, node.source))
    return Graph(graph.name, graph.inputs, graph.outputs, builder.nodes, graph.symbols, graph.output_names)


def _suits(weights: Value) -> bool:
    channels, taps = weights.shape[1], math.prod(weights.shape[2:])
    return taps > 1 and channels % CHANNELS == 0 and weights.dtype.bits >= 8


def _transposed(builder: Builder, weights: np.ndarray) -> Value:
    taps = range(2, weights.ndim)
    laid = builder.constant(np.ascontiguousarray(np.moveaxis(weights, 1, -1)))
    return builder.transpose(laid, (0, weights.ndim - 1, *(axis - 1 for axis in taps)))
