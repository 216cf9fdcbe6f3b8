"""The convolutions and matrix products of models, each as a graph of its own: what the compiler has choices for.

They are taken where layouts are about to be assigned, so scales and biases are folded and integers found; constant operands
become random ones of the same type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tcompile.benchmarks.model_set import Inputs
from tcompile.ir.build import Builder
from tcompile.ir.graph import Graph, Node, Value
from tcompile.ir.onnx_import import import_model
from tcompile.ir.target import Target
from tcompile.pipeline import Options, optimise

OPS = ("conv", "dot_general")
SOURCE = "contraction"  # what the graph of one calls its node


@dataclass
class Contraction:
    """A node that models have ``uses`` of, by the model's name. ``rest_bytes``: constants that the smallest model reads besides."""

    node: Node
    weights: dict[int, np.ndarray]
    uses: dict[str, int] = field(default_factory=dict)
    rest_bytes: int = 0

    @property
    def flops(self) -> int:
        """Operations of one run, a multiplication and an addition being two."""
        a, b = self.node.inputs
        if self.node.op == "conv":
            return 2 * self.node.output.type.size * int(np.prod(b.shape[1:]))
        terms = int(np.prod([a.shape[k] for k in self.node.attrs["contract"][0]]))
        return 2 * self.node.output.type.size * terms

    @property
    def name(self) -> str:
        """Its shapes and what of its attributes is unusual."""
        a, b = ("x".join(map(str, value.shape)) for value in self.node.inputs)
        text = f"{self.node.op} {a} * {b}"
        for key, usual in (("strides", 1), ("dilation", 1), ("lhs_dilation", 1), ("groups", 1)):
            value = self.node.attrs.get(key, usual)
            if value != usual and value != (usual,) * (len(value) if isinstance(value, tuple) else 1):
                text += f" {key} {value}"
        return text + ("" if a and self.node.inputs[0].dtype.name == "f32" else f" {self.node.inputs[0].dtype.name}")

    def graph(self) -> Graph:
        """The node alone."""
        b = Builder("contraction")
        inputs = [
            b.constant(self.weights[k]) if k in self.weights else b.input(f"x{k}", value.dtype, value.shape)
            for k, value in enumerate(self.node.inputs)
        ]
        b.source = (SOURCE,)
        y = b.emit(self.node.op, *inputs, **self.node.attrs)
        b.source = ()
        return b.graph([self._read(b, y)], ["y"])

    def _read(self, b: Builder, y: Value) -> Value:
        """A small convolution of a convolution's result, which then stays in the layout that it has between two of them."""
        if self.node.op != "conv" or not y.dtype.is_float:
            return y
        axes = y.type.rank - 2
        weights = b.constant(np.ones((8, y.shape[1], *(1,) * axes), y.dtype.numpy))
        ones, zeros = (1,) * axes, (0,) * axes
        steps = {"strides": ones, "lhs_dilation": ones, "dilation": ones, "low": zeros, "high": zeros}
        return b.emit("conv", y, weights, **steps, groups=1, dtype=y.dtype)


def collect(path: Path, inputs: Inputs, target: Target) -> Iterator[Contraction]:
    """The contractions of a model, symbols at their sizes; nodes with extents that only a run knows are left out."""
    graph = import_model(path)
    if graph.symbols:
        graph = import_model(path, {value.name: _sizes(value, inputs) for value in graph.inputs})
    graph = optimise(graph, target, Options(stop_after="recognise"))
    constants = sum(node.attrs["value"].nbytes for node in _nodes(graph) if node.op == "constant")
    found: dict[tuple, Contraction] = {}
    for region in _regions(graph):
        producers = region.producers()
        for node in region.nodes:
            if node.op not in OPS or not all(value.type.is_static for value in (*node.inputs, node.output)):
                continue
            one = found.setdefault(key_of(node, producers), Contraction(node, _weights(node, producers), {}, constants))
            one.uses[path.stem] = one.uses.get(path.stem, 0) + 1
    yield from found.values()


def key_of(node: Node, producers: Mapping[Value, Node]) -> tuple:
    """What makes two nodes alike."""
    operands = tuple((value.type, _is_constant(value, producers)) for value in node.inputs)
    return (node.op, operands, tuple(sorted((name, repr(value)) for name, value in node.attrs.items())))


def _sizes(value: Value, inputs: Inputs) -> tuple[int | str, ...]:
    draw = inputs.draws.get(value.name)
    if draw is not None and draw.shape is not None:
        return draw.shape
    return tuple(extent if isinstance(extent, int) else inputs.sizes.get(str(extent), str(extent)) for extent in value.shape)


def _regions(graph: Graph) -> Iterator[Graph]:
    yield graph
    for node in graph.nodes:
        for region in node.regions:
            yield from _regions(region)


def _nodes(graph: Graph) -> Iterator[Node]:
    for region in _regions(graph):
        yield from region.nodes


def _is_constant(value: Value, producers: Mapping[Value, Node]) -> bool:
    return value in producers and producers[value].op == "constant"


def _weights(node: Node, producers: Mapping[Value, Node]) -> dict[int, np.ndarray]:
    rng, found = np.random.default_rng(0), {}
    for k, value in enumerate(node.inputs):
        if _is_constant(value, producers):
            wide = rng.standard_normal(value.shape) if value.dtype.is_float else rng.integers(0, 100, value.shape)
            found[k] = wide.astype(value.dtype.numpy)
    return found
