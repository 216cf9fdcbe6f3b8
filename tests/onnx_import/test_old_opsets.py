"""Operators in the forms of older opsets, against ONNX Runtime, and against NumPy where it no longer runs them."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model
from tests.onnx_import.models import model

ort = pytest.importorskip("onnxruntime")

X = "float[2, 3, 4] x"
CASES = {
    # opset, operator; the result is named y
    "softmax over trailing axes": (11, X, "y = Softmax<axis = 1>(x)"),
    "softmax of the default axis": (9, X, "y = Softmax(x)"),
    "softmax of the last axis": (13, X, "y = Softmax(x)"),
    "log softmax over trailing axes": (11, X, "y = LogSoftmax<axis = -2>(x)"),
    "hardmax over trailing axes": (11, X, "y = Hardmax<axis = 1>(x)"),
    "clip by attributes": (7, X, "y = Clip<min = -0.5, max = 0.25>(x)"),
    "clip by one attribute": (10, X, "y = Clip<max = 0.25>(x)"),
    "clip by operands": (12, X, "lo = Constant<value_float = -0.5>() y = Clip(x, lo)"),
    "slice by attributes": (9, X, "y = Slice<axes = [2, 1], starts = [1, -2], ends = [1000, 3]>(x)"),
    "slice without axes": (7, X, "y = Slice<starts = [0, 1], ends = [1, -1]>(x)"),
    "pad by attributes": (10, X, 'y = Pad<mode = "reflect", pads = [0, 0, 2, 0, 1, 1]>(x)'),
    "pad with a value": (8, X, "y = Pad<pads = [1, -1, 0, 0, 0, 2], value = 3.0>(x)"),
    "squeeze by an attribute": (11, "float[1, 3, 1] x", "y = Squeeze<axes = [-1]>(x)"),
    "squeeze of all": (9, "float[1, 3, 1] x", "y = Squeeze(x)"),
    "unsqueeze by an attribute": (11, X, "y = Unsqueeze<axes = [0, -1]>(x)"),
    "sum over attribute axes": (11, X, "y = ReduceSum<axes = [-1, 0], keepdims = 0>(x)"),
    "mean over attribute axes": (13, X, "y = ReduceMean<axes = [1]>(x)"),
    "sum over no axes": (13, X, "axes = Constant<value = int64[0] {}>() y = ReduceSum<noop_with_empty_axes = 1>(x, axes)"),
    "split by an attribute": (11, X, "y, z = Split<axis = 2, split = [1, 3]>(x)"),
    "split in equal parts": (11, X, "y, z = Split<axis = 0>(x)"),
    "split with a shorter last part": (18, X, "y, z = Split<axis = 1, num_outputs = 2>(x)"),
    "scatter": (10, X, "i = Constant<value = int64[1, 1, 2] {1, 0}>()"
        " u = Constant<value = float[1, 1, 2] {5.0, 6.0}>() y = Scatter<axis = 1>(x, i, u)"),
    "one hot with negative indices": (9, "int64[3] x", "d = Constant<value = int64 {4}>()"
        " v = Constant<value = float[2] {0.0, 2.0}>() y = OneHot(x, d, v)"),
    "dropout of inference": (10, X, "y = Dropout<ratio = 0.3>(x)"),
    "variadic without broadcasting": (7, X, "y = Max(x, x, x)"),
    "mean with broadcasting": (13, X, "k = Constant<value_float = 2.0>() y = Mean(x, k)"),
    "power of mixed types": (15, X, "a = Abs(x) k = Constant<value_int = 3>() y = Pow(a, k)"),
    "modulus of reals": (13, X, "k = Constant<value_float = 0.3>() y = Mod<fmod = 1>(x, k)"),
    "modulus of integers": (13, "int32[5] x", "k = Constant<value = int32 {-3}>() y = Mod(x, k)"),
    "division of integers": (14, "int32[5] x", "k = Constant<value = int32 {-3}>() y = Div(x, k)"),
    "gemm with a row": (7, "float[3, 4] x", "c = Constant<value = float[4] {1.0, 2.0, 3.0, 4.0}>()"
        " y = Gemm<alpha = 0.5, beta = 2.0, transA = 1>(x, x, c)"),
    "matrix times vector": (13, X, "v = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>() y = MatMul(x, v)"),
    "vector times matrices": (13, X, "v = Constant<value_floats = [1.0, 2.0, 3.0]>() y = MatMul(v, x)"),
    "broadcast batches": (13, "float[2, 1, 3, 4] x", "t = Transpose<perm = [1, 0, 3, 2]>(x) y = MatMul(x, t)"),
    "argmax of the last": (12, X, "y = ArgMax<axis = -1, select_last_index = 1, keepdims = 0>(x)"),
    "depth to space by columns": (11, "float[1, 8, 2, 3] x", 'y = DepthToSpace<blocksize = 2, mode = "CRD">(x)'),
    "gather of negative indices": (11, X, "i = Constant<value = int64[2, 2] {-1, 0, 1, -2}>() y = Gather<axis = 1>(x, i)"),
    "cast that saturates": (13, X, "k = Constant<value_float = 1e3>() s = Mul(x, k) c = Clip(s) y = Cast<to = 6>(c)"),
    "shrink": (9, X, "y = Shrink<lambd = 0.5, bias = 0.1>(x)"),
    "layer norm over two axes": (17, X, "s = Constant<value = float[4] {1.0, 2.0, 3.0, 4.0}>()"
        " y, m, d = LayerNormalization<axis = 1>(x, s)"),
}  # fmt: skip


def operand(text: str) -> np.ndarray:
    kind, _, rest = text.partition("[")
    shape = [int(extent) for extent in rest.partition("]")[0].split(",")]
    rng = np.random.default_rng(1)
    return rng.standard_normal(shape).astype(np.float32) if kind == "float" else rng.integers(-4, 4, shape).astype(kind)


@pytest.mark.parametrize("name", CASES)
def test_the_older_form_agrees_with_onnx_runtime(name: str) -> None:
    opset, text, body = CASES[name]
    proto = model(f"g ({text}) => (y) {{ {body} }}", opset=opset)
    proto.ir_version = 7
    x = operand(text)
    graph = import_model(proto)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": x})
    got = interpret(graph, [x])["y"]
    assert got.dtype == wanted.dtype
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_before_opset_7_a_second_operand_is_aligned_by_an_axis():
    proto = model("g (float[2, 3, 4] x, float[3] k) => (float[2, 3, 4] y) { y = Add<broadcast = 1, axis = 1>(x, k) }", opset=6)
    x, k = operand(X), np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(interpret(import_model(proto), [x, k])["y"], x + k[:, None])


def test_before_opset_7_a_slope_belongs_to_the_channels():
    proto = model("g (float[2, 3, 4] x, float[3] k) => (float[2, 3, 4] y) { y = PRelu(x, k) }", opset=6)
    x, k = operand(X), np.arange(3, dtype=np.float32)
    np.testing.assert_array_equal(interpret(import_model(proto), [x, k])["y"], np.where(x < 0, x * k[:, None], x))
