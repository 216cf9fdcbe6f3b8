"""The convolution and matrix operations of a model as its file writes them, for inputs of given shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from tcompile.ir import dims
from tcompile.ir.dims import DimError, DimLike
from tcompile.ir.graph import Graph, Node


def model_flops(graph: Graph, inputs: Mapping[str, np.ndarray]) -> int:
    """Floating-point operations (a multiply-add is two) of an imported graph.

    Of an ``if`` the cheaper branch counts; a loop counts as often as its number of turns is known, else once; sizes that only a
    run knows count nothing: the sum is a lower bound.
    """
    env: dict[str, int] = {}
    for value in graph.inputs:
        for extent, size in zip(value.shape, inputs[value.name].shape, strict=True):
            if not isinstance(extent, int) and str(extent) in dims.symbols(extent):
                env[str(extent)] = size
    return _of_graph(graph, env)


def _of_graph(graph: Graph, env: Mapping[str, int]) -> int:
    return sum(_of_node(node, env) for node in graph.nodes)


def _of_node(node: Node, env: Mapping[str, int]) -> int:
    inner = [_of_graph(region, env) for region in node.regions]
    match node.op:
        case "if":
            return min(inner)
        case "loop":
            trip = node.attrs["trip"]
            return inner[0] * max(_number(1 if trip is None else trip, env) or 1, 1)
        case "conv":
            taps = [node.output.type.size, *node.inputs[1].shape[1:]]
            return 2 * _product(taps, env) // math.prod(node.attrs["lhs_dilation"])
        case "dot_general":
            a = node.inputs[0]
            return 2 * _product([node.output.type.size, *(a.shape[k] for k in node.attrs["contract"][0])], env)
    return sum(inner)


def _product(extents: list[DimLike], env: Mapping[str, int]) -> int:
    numbers = [_number(extent, env) for extent in extents]
    return 0 if None in numbers else math.prod(numbers)


def _number(extent: DimLike, env: Mapping[str, int]) -> int | None:
    try:
        return dims.evaluate(extent, env)
    except (DimError, KeyError):
        return None
