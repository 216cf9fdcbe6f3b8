"""Weights of plain convolutions by kernel elements: which, and that answers stay."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tcompile.ir.build import Builder
from tcompile.ir.dtypes import F32
from tcompile.ir.graph import Graph
from tcompile.ir.interpret import interpret
from tcompile.ir.target import named_target
from tcompile.ir.verify import verify
from tcompile.passes.layout_taps import WeightsByTaps
from tcompile.pipeline import optimise

RNG = np.random.default_rng(0)
GPU = named_target("cuda-sm90")


def convolution(channels: int, kernel: tuple[int, ...], *, groups: int = 1, constant: bool = True) -> Graph:
    b = Builder()
    x = b.input("x", F32, (2, channels * groups, *(7 for _ in kernel)))
    weights = RNG.standard_normal((4 * groups, channels, *kernel)).astype(np.float32)
    w = b.constant(weights) if constant else b.input("w", F32, weights.shape)
    ones = (1,) * len(kernel)
    low = tuple(k // 2 for k in kernel)
    attrs = {"strides": ones, "lhs_dilation": ones, "dilation": ones, "low": low, "high": low, "groups": groups, "dtype": F32}
    return b.graph([b.emit("conv", x, w, **attrs)], ["y"])


def transposes(graph: Graph) -> int:
    return Counter(node.op for node in graph.nodes)["transpose"]


@pytest.mark.parametrize("kernel", [(3,), (3, 3), (1, 5), (3, 2, 2)])
@pytest.mark.parametrize("groups", [1, 3])
def test_full_steps_of_channels_lie_side_by_side(kernel, groups):
    graph = convolution(16, kernel, groups=groups)
    laid = WeightsByTaps(GPU).apply(graph)
    verify(laid)
    assert transposes(laid) == 1
    x = {"x": RNG.standard_normal(graph.inputs[0].shape).astype(np.float32)}
    np.testing.assert_array_equal(interpret(laid, x)["y"], interpret(graph, x)["y"])


def test_the_kernel_takes_the_transpose_as_a_view():
    (node,) = [node for node in optimise(convolution(32, (3, 3)), GPU).nodes if node.op != "constant"]
    assert node.op == "fused"
    assert [inner.op for inner in node.regions[0].nodes] == ["transpose", "conv"]


@pytest.mark.parametrize(
    ("graph", "target"),
    [
        (convolution(16, (1, 1)), GPU),  # one element
        (convolution(3, (3, 3)), GPU),  # steps would have several
        (convolution(16, (3, 3), constant=False), GPU),
        (convolution(16, (3, 3)), named_target("x86-64-v3")),
    ],
    ids=["pointwise", "few channels", "weights of the run", "blocks of channels"],
)
def test_others_stay(graph, target):
    assert transposes(WeightsByTaps(target).apply(graph)) == 0
