"""Quantised models on integers: what is computed on integers, that sums are exact, and codes within one step of ONNX's meaning."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import tcompile
from tcompile.ir.graph import Graph
from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model
from tcompile.ir.target import Target, named_target
from tcompile.ir.verify import verify
from tcompile.pipeline import optimise

V3 = named_target("x86-64-v3")
V4 = named_target("x86-64-v4")
TARGETS = {"halves": V3, "bytes": replace(V4, features=(*V4.features, "avx512vnni")), "none": named_target("aarch64-linux")}
RNG = np.random.default_rng(5)


class Model:
    """An ONNX model in the making: nodes, constants and their names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, array) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, *inputs: str, **attrs) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attrs))
        return name

    def quantise(self, x: str, scale: float, zero) -> str:
        return self.node("QuantizeLinear", x, self.constant(np.float32(scale)), self.constant(zero))

    def dequantise(self, q: str, scale, zero, axis: int = 1) -> str:
        attrs = {"axis": axis} if np.ndim(scale) else {}
        return self.node("DequantizeLinear", q, self.constant(np.asarray(scale, np.float32)), self.constant(zero), **attrs)

    def step(self, x: str, scale: float, zero) -> str:
        return self.dequantise(self.quantise(x, scale, zero), scale, zero)

    def weights(self, *shape: int, axis: int = 0, dtype=np.int8) -> str:
        low = np.iinfo(dtype).min
        codes = RNG.integers(low, low + 256, shape).astype(dtype)
        scale = RNG.uniform(0.001, 0.01, shape[axis]).astype(np.float32)
        zero = np.zeros(shape[axis], dtype) if dtype == np.int8 else RNG.integers(100, 150, shape[axis]).astype(dtype)
        return self.dequantise(self.constant(codes), scale, zero, axis)

    def graph(self, output: str, inputs: dict[str, tuple], kind: int = TensorProto.FLOAT, given: int = TensorProto.FLOAT) -> Graph:
        infos = [helper.make_tensor_value_info(name, given, shape) for name, shape in inputs.items()]
        made = helper.make_graph(self.nodes, "g", infos, [helper.make_tensor_value_info(output, kind, None)], self.constants)
        self.proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
        return import_model(self.proto)


def compared(graph: Graph, target: Target, step: float, *, layers: int = 1, **arrays: np.ndarray) -> list[str]:
    """The ops of the optimised graph, whose answers are within a step of those before: a code that another layer reads may differ too."""
    done = optimise(graph, target)
    verify(done)
    want, got = interpret(graph, arrays), interpret(done, arrays)
    for name, array in want.items():
        difference = np.abs(got[name].astype(np.float64) - array.astype(np.float64))
        assert difference.max(initial=0) <= layers * step * 1.001
        assert (difference > step / 2).mean() < 0.02 * layers  # where a value lies between two steps, which is rare
    return ops_of(done)


def ops_of(graph: Graph) -> list[str]:
    """The ops of all kernels."""
    return [inner.op for node in graph.nodes for inner in (node.regions[0].nodes if node.op == "fused" else (node,))]


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("zero", [np.uint8(0), np.uint8(117), np.int8(0), np.int8(-9)])
@pytest.mark.parametrize("relu", [False, True])
def test_convolution_with_bias(name, zero, relu):
    m = Model()
    x = m.step("x", 0.02, zero)
    bias = m.dequantise(m.constant(RNG.integers(-5000, 5000, 20).astype(np.int32)), np.full(20, 1e-4), np.zeros(20, np.int32), 0)
    y = m.node("Conv", x, m.weights(20, 18, 3, 3), bias, pads=[1, 1, 1, 1])
    y = m.step(m.node("Relu", y) if relu else y, 0.05, zero)
    ops = compared(m.graph(y, {"x": (2, 18, 7, 6)}), TARGETS[name], 0.05, x=floats(2, 18, 7, 6))
    assert bool({"conv_interleaved", "conv_winograd_whole"}.intersection(ops)) == (name != "none")


@pytest.mark.parametrize("name", ["halves", "bytes"])
def test_residual_and_pooling_stay_narrow(name):
    m = Model()
    x = m.step("x", 0.02, np.uint8(128))
    pooled = m.step(m.node("MaxPool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]), 0.02, np.uint8(128))
    first = m.step(m.node("Conv", pooled, m.weights(16, 16, 3, 3), pads=[1, 1, 1, 1]), 0.0503, np.uint8(120))
    second = m.step(m.node("Conv", pooled, m.weights(16, 16, 1, 1)), 0.0391, np.uint8(130))
    y = m.step(m.node("Relu", m.node("Add", first, second)), 0.0617, np.uint8(0))  # a ratio of scales that makes no ties
    z = m.step(m.node("Conv", y, m.weights(8, 16, 1, 1)), 0.1, np.uint8(100))
    graph = m.graph(z, {"x": (1, 16, 9, 9)})
    ops = compared(graph, TARGETS[name], 0.1, layers=3, x=floats(1, 16, 9, 9))
    assert ops.count("conv_interleaved") + ops.count("conv_winograd_whole") == 3
    stored = [node.output.dtype.bits for node in optimise(graph, TARGETS[name]).nodes if node.op in ("fused", "reduce_window")]
    assert max(stored[:-2]) <= 16  # only the last layer, whose 8 channels are unpacked, stores sums and floats


@pytest.mark.parametrize("name", ["halves", "bytes"])
@pytest.mark.parametrize("rows", [1, 5])
def test_product_with_transposed_weights(name, rows):
    m = Model()
    x = m.step("x", 0.03, np.uint8(90))
    bias = m.constant(floats(10))
    y = m.step(m.node("Gemm", x, m.weights(10, 35), bias, transB=1), 0.02, np.uint8(128))
    assert "dot_interleaved" in compared(m.graph(y, {"x": (rows, 35)}), TARGETS[name], 0.02, x=floats(rows, 35))


def test_weights_that_no_byte_holds_are_halves():
    m = Model()
    x = m.step("x", 0.03, np.uint8(90))
    y = m.step(m.node("MatMul", x, m.weights(34, 12, axis=1, dtype=np.uint8)), 0.02, np.uint8(128))
    for target in (TARGETS["halves"], TARGETS["bytes"]):
        assert "dot_interleaved" in compared(m.graph(y, {"x": (4, 34)}), target, 0.02, x=floats(4, 34))


@pytest.mark.parametrize("name", ["halves", "bytes"])
@pytest.mark.parametrize("signed", [False, True])
def test_integer_operators_are_exact(name, signed):
    kind, dtype = (TensorProto.INT8, np.int8) if signed else (TensorProto.UINT8, np.uint8)
    low = np.iinfo(dtype).min
    m = Model()
    w, wz = m.constant(RNG.integers(-128, 128, (6, 5, 3, 3)).astype(np.int8)), m.constant(np.int8(0))
    y = m.node("ConvInteger", "x", w, m.constant(dtype(low + 77)), wz, pads=[1, 0, 1, 2])
    graph = m.graph(y, {"x": (1, 5, 6, 7)}, TensorProto.INT32, kind)
    assert "conv_interleaved" in compared(graph, TARGETS[name], 0, x=RNG.integers(low, low + 256, (1, 5, 6, 7)).astype(dtype))


@pytest.mark.parametrize("name", ["halves", "bytes"])
def test_dynamic_zero_points_are_exact(name):
    m = Model()
    quantised = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
    m.nodes.append(quantised)
    y = m.node("MatMulInteger", "q", m.constant(RNG.integers(-128, 128, (37, 19)).astype(np.int8)), "z")
    graph = m.graph(y, {"x": (3, 37)}, TensorProto.INT32)
    assert "dot_interleaved" in compared(graph, TARGETS[name], 0, x=floats(3, 37))


def test_dynamic_quantisation_runs():
    m = Model()
    m.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]))
    y = m.node("MatMulInteger", "q", m.constant(RNG.integers(-128, 128, (64, 48)).astype(np.int8)), "z")
    graph = m.graph(y, {"x": (9, 64)}, TensorProto.INT32)
    x = floats(9, 64)
    got = tcompile.compile(m.proto).run({"x": x})
    np.testing.assert_array_equal(next(iter(got.values())), next(iter(interpret(graph, {"x": x}).values())))


@pytest.mark.parametrize("channels", [48, 64])
def test_winograd_on_codes(channels):
    m = Model()
    x = m.step("x", 0.02, np.uint8(0))
    y = m.step(m.node("Conv", x, m.weights(channels, channels, 3, 3), pads=[1, 1, 1, 1]), 0.05, np.uint8(99))
    ops = compared(m.graph(y, {"x": (1, channels, 12, 13)}), V3, 0.05, x=floats(1, channels, 12, 13))
    assert "conv_winograd_whole" in ops


def test_sums_that_winograd_cannot_hold_are_direct():
    m = Model()
    x = m.step("x", 0.02, np.uint8(128))
    w = m.dequantise(m.constant(np.full((64, 512, 3, 3), 127, np.int8)), np.full(64, 1e-4), np.zeros(64, np.int8), 0)
    y = m.step(m.node("Conv", x, w, pads=[1, 1, 1, 1]), 0.05, np.uint8(99))
    ops = ops_of(optimise(m.graph(y, {"x": (1, 512, 12, 12)}), V3))
    assert "conv_interleaved" in ops and "conv_winograd_whole" not in ops


def test_sums_beyond_32_bits_stay_floats():
    m = Model()
    x = m.step("x", 0.03, np.uint8(90))
    w = m.dequantise(m.constant(np.full((70000, 1), 127, np.int8)), np.float32(1e-4), np.int8(0))
    y = m.node("MatMul", x, w)
    assert "dot_interleaved" not in ops_of(optimise(m.graph(y, {"x": (1, 70000)}), V3))


@pytest.mark.parametrize("weights", ["few large", 127, -128])
@pytest.mark.parametrize(("rows", "zero"), [(1, 0), (40, 0), (62, 3), (130, 255)])
def test_products_of_bytes_are_exact(weights, rows, zero):
    """Of the largest codes by the largest weights too: sums in 16 bits never saturate. Odd extents, any zero point."""
    normal = np.clip(np.rint(RNG.normal(0, 25, (259, 53))), -128, 127).astype(np.int64)
    b = normal if weights == "few large" else np.full((259, 53), weights)
    a = RNG.integers(0, 256, (rows, 259)).astype(np.uint8)
    a[0] = 255
    made = Model()
    made.node("MatMulInteger", "x", made.constant(b.astype(np.int8)), made.constant(np.uint8(zero)))
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        made.nodes,
        "g",
        [info("x", TensorProto.UINT8, [rows, 259])],
        [info(made.nodes[-1].output[0], TensorProto.INT32, None)],
        made.constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with tcompile.compile(model) as exe:
        (got,) = exe.run([a]).values()
    np.testing.assert_array_equal(got, (a.astype(np.int64) - zero) @ b)
    found = optimise(import_model(model), V3)
    ops = {inner.op for node in found.nodes for inner in (node, *(one for region in node.regions for one in region.nodes))}
    assert ("conv_bytes" in ops) == (weights == "few large" and rows > 1)
