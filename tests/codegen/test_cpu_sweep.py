"""Convolutions whose epilogues take functions, swept over a group of tiles, against NumPy."""

import numpy as np
import pytest

from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.dtypes import F32
from tcompile.ir.graph import Graph, Value
from tcompile.ir.interpret import interpret
from tcompile.ir.target import Target, named_target, native_target
from tcompile.ir.verify import verify
from tcompile.passes.fuse import Fuse
from tcompile.passes.fuse_sums import SumRows
from tests.codegen.native import run_native
from tests.codegen.template_runs import check_template, interpreted

RNG = np.random.default_rng(2)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def silu(b: Builder, x: Value) -> Value:
    return b.map("silu", x)


def bordered(b: Builder, x: Value, low: int, high: int) -> Value:
    axes = x.rank - 3
    around = {"low": (0, 0, *[low] * axes, 0), "high": (0, 0, *[high] * axes, 0)}
    return b.emit("pad", x, b.constant(np.float32(0.5)), mode="constant", **around)


@pytest.mark.parametrize("low_high", [None, (1, 1), (2, 0)])
@pytest.mark.parametrize("spatial", [(7, 7), (1, 1), (13, 5), (3, 70), (130,), (2, 3, 5)])
def test_pointwise(spatial, low_high):
    check_pointwise((2, 2, *spatial, 8), 5, low_high)


@pytest.mark.parametrize("target", ["aarch64-linux", "x86-64-v4"])
def test_pointwise_on_other_targets(target):
    check_pointwise((1, 1, 3, 5, 8), 1, (1, 0), target)
    check_pointwise((1, 1, 2, 3, 16), 1, None, target)


def check_pointwise(shape, outputs, low_high, target=None):
    b = Builder()
    x, spatial = b.input("x", F32, shape), shape[2:-1]
    w = b.constant(normal(outputs, shape[1], *[1] * len(spatial), shape[-1], shape[-1]))
    y = b.emit("conv_blocked", x, w, groups=1, strides=(1,) * len(spatial), dilation=(1,) * len(spatial), dtype=F32)
    y = silu(b, b.map("add", y, b.emit("broadcast", b.constant(normal(outputs, shape[-1])), shape=y.shape, axes=(1, y.rank - 1))))
    y = y if low_high is None else bordered(b, y, *low_high)
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}, target) == ["conv"]


@pytest.mark.parametrize("low_high", [None, (1, 2)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("spatial", [(9, 9), (5, 41), (40, 7)])
def test_window(spatial, stride, low_high):
    b = Builder()
    x, r = b.input("x", F32, (1, 2, *spatial, 8)), (spatial[0] - 3) // stride + 1
    y = b.emit("conv_blocked", x, b.constant(normal(3, 2, 3, 3, 8, 8)), groups=1, strides=(stride, stride), dilation=(1, 1), dtype=F32)
    assert y.shape[2] == r
    y = b.map("tanh", y)
    y = y if low_high is None else bordered(b, y, *low_high)
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}) == ["conv"]


@pytest.mark.parametrize("low_high", [None, (2, 1)])
@pytest.mark.parametrize(("spatial", "kernel", "stride"), [((9, 11), 3, 1), ((11, 37), 5, 2), ((3, 3), 3, 1), ((30,), 3, 1)])
def test_depthwise(spatial, kernel, stride, low_high):
    check_depthwise((2, 3, *spatial, 8), kernel, stride, low_high)


@pytest.mark.parametrize("target", ["aarch64-linux", "x86-64-v4"])
def test_depthwise_on_other_targets(target):
    check_depthwise((1, 1, 5, 4, 8), 3, 1, (1, 0), target)
    check_depthwise((1, 1, 4, 5, 16), 2, 2, None, target)


def check_depthwise(shape, kernel, stride, low_high, target=None):
    b = Builder()
    axes = len(shape) - 3
    x = b.input("x", F32, shape)
    w = b.constant(normal(shape[1], *[kernel] * axes, shape[-1]))
    y = silu(b, b.emit("depthwise_blocked", x, w, strides=(stride,) * axes, dilation=(1,) * axes, dtype=F32))
    y = y if low_high is None else bordered(b, y, *low_high)
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}, target) == ["depthwise"]


@pytest.mark.parametrize("activation", ["silu", "max", None])
@pytest.mark.parametrize(("spatial", "kernel", "stride"), [((9, 11), 3, 1), ((11, 37), 5, 2), ((3, 3), 3, 1), ((3, 5, 4), 3, 1)])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_rows_are_summed_in_the_kernel(n, spatial, kernel, stride, activation):
    b = Builder()
    b.symbols.update(n=Range(0, None))
    graph, summed, x = with_means(b, dims.symbol("n"), n, spatial, kernel, stride, activation, native_target())
    assert [len(node.outputs) for node in summed.nodes if node.op == "fused"] == [2]
    expected, got = interpret(graph, {"x": x}), run_native(summed, x)
    for name, want in expected.items():
        np.testing.assert_allclose(got[name], want, rtol=1e-5, atol=1e-5 * max(1, np.abs(want).max(initial=0)))


@pytest.mark.parametrize("target", ["aarch64-linux", "x86-64-v4"])
def test_sums_of_rows_on_other_targets(target):
    machine = named_target(target)
    graph, summed, x = with_means(Builder(), 2, 2, (5, 4), 3, 1, "silu", machine)
    (kernel,) = [node for node in summed.nodes if node.op == "fused"]
    nodes = [node for node in summed.nodes if node.op != "reduce"]
    rows, names = interpreted(Graph("rows", summed.inputs, kernel.outputs, nodes, {}, ("y", "r")), {"x": x}, machine)
    assert names == ["depthwise"]
    want = interpret(graph, {"x": x})
    np.testing.assert_allclose(rows["y"], want["y"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rows["r"], want["y"].sum(-2), rtol=1e-5, atol=1e-5)


def with_means(b: Builder, extent, n: int, spatial, kernel: int, stride: int, activation: str | None, target: Target):
    """A depthwise convolution and the sums of its results over the image: its graph, its kernels, and an input."""
    axes, width = len(spatial), target.channel_block
    x = b.input("x", F32, (extent, 3, *spatial, width))
    w = b.constant(normal(3, *[kernel] * axes, width))
    y = b.emit("depthwise_blocked", x, w, strides=(stride,) * axes, dilation=(1,) * axes, dtype=F32)
    y = b.map("add", y, b.emit("broadcast", b.constant(normal(3, width)), shape=y.shape, axes=(1, y.rank - 1)))
    if activation == "max":
        y = b.map("max", y, b.emit("broadcast", b.constant(np.float32(0)), shape=y.shape, axes=()))
    elif activation:
        y = b.map(activation, y)
    graph = b.graph([y, b.emit("reduce", y, fn="add", axes=tuple(range(2, axes + 2)))], ["y", "s"])
    summed = SumRows().apply(Fuse(target).apply(graph))
    verify(summed)
    return graph, summed, normal(n, 3, *spatial, width)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_residual_and_symbolic_batch(n):
    b = Builder()
    b.symbols.update(n=Range(0, None))
    x = b.input("x", F32, (dims.symbol("n"), 1, 5, 6, 8))
    y = b.emit("conv_blocked", x, b.constant(normal(1, 1, 1, 1, 8, 8)), groups=1, strides=(1, 1), dilation=(1, 1), dtype=F32)
    y = b.map("add", b.map("tanh", y), x)
    check_template(b.graph([y], ["y"]), {"x": normal(n, 1, 5, 6, 8)})


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_symbolic_rows(rows):
    b = Builder()
    b.symbols.update(h=Range(1, None))
    x = b.input("x", F32, (1, 2, dims.symbol("h"), 7, 8))
    y = b.emit("depthwise_blocked", x, b.constant(normal(2, 1, 3, 8)), strides=(1, 1), dilation=(1, 1), dtype=F32)
    check_template(b.graph([silu(b, y)], ["y"]), {"x": normal(1, 2, rows, 7, 8)})
