"""Quantisation, sorting, contractions and transforms against ONNX Runtime."""

import numpy as np
import pytest

from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model
from tests.onnx_import.peer import Single, check

onnxruntime = pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(3)
F = np.float32
X = (RNG.standard_normal((2, 4, 5)) * 3).astype(F)
SYMBOLIC = pytest.mark.parametrize("free", [{}, {0: (0, 1, 2)}], ids=["static", "symbolic"])


def normal(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(F)


def coded(dtype, *shape):
    info = np.iinfo(dtype)
    return np.random.default_rng(sum(shape)).integers(info.min, info.max, shape).astype(dtype)


@SYMBOLIC
@pytest.mark.parametrize("zero", [np.uint8(7), np.int8(-3), np.int16(5), np.uint16(9)], ids=lambda zero: str(zero.dtype))
def test_quantize_and_back(zero, free):
    check(Single("QuantizeLinear", [X, F(0.05), zero], {}, (1, 2), opset=21, free=free))
    check(Single("DequantizeLinear", [(X * 10).astype(zero.dtype), F(0.05), zero], {}, (1, 2), opset=21, free=free))


@SYMBOLIC
def test_quantize_along_an_axis(free):
    scales, zeros = np.array([0.1, 0.2, 0.3, 0.4], F), coded(np.uint8, 4)
    check(Single("QuantizeLinear", [X, scales, zeros], {"axis": -2}, (1, 2), opset=13, free=free))
    check(Single("DequantizeLinear", [coded(np.uint8, 2, 4, 5), scales, zeros], {"axis": 1}, (1, 2), opset=13, free=free))


def test_quantize_in_blocks():
    scales, zeros = abs(normal(2, 2, 5)) + F(0.1), coded(np.int8, 2, 2, 5)
    check(Single("QuantizeLinear", [X, scales, zeros], {"axis": 1, "block_size": 2}, (1, 2), opset=21, free={0: (0,)}))


@SYMBOLIC
def test_dynamic_quantize(free):
    check(Single("DynamicQuantizeLinear", [X], outputs=3, opset=11, free=free))


def test_integer_convolution():
    operands = [coded(np.uint8, 2, 4, 6, 6), coded(np.uint8, 6, 2, 3, 3), np.uint8(9), np.uint8(3)]
    check(Single("ConvInteger", operands, {"group": 2}, (1, 2, 3), opset=10, free={0: (0, 2, 3)}))


def test_quantised_convolution_per_channel():
    weights = [coded(np.uint8, 6, 4, 3, 3), abs(normal(6)) * F(0.1) + F(0.01), np.zeros(6, np.uint8)]
    operands = [coded(np.uint8, 2, 4, 6, 6), F(0.1), np.uint8(120), *weights, F(0.9), np.uint8(7), np.arange(6, dtype=np.int32)]
    check(Single("QLinearConv", operands, {"pads": (1, 1, 1, 1)}, range(1, 9), opset=10, free={0: (0, 2, 3)}, atol=1.01))


def test_quantised_product():
    operands = [coded(np.uint8, 2, 4, 6), F(0.1), np.uint8(120), coded(np.uint8, 6, 5), F(0.2), np.uint8(99), F(2.0), np.uint8(7)]
    check(Single("QLinearMatMul", operands, {}, range(1, 8), opset=10, free={0: (0, 1)}, atol=1.01))


@SYMBOLIC
@pytest.mark.parametrize("attrs", [{}, {"axis": 1, "largest": 0}, {"axis": 0}], ids=str)
def test_top_k(attrs, free):
    count = np.array([2])
    check(Single("TopK", [np.round(X), count], attrs, (1,), 2, opset=11, free=free))
    check(Single("TopK", [np.round(X).astype(np.int64), count], attrs, (), 2, opset=11, free=free))


@SYMBOLIC
@pytest.mark.parametrize("attrs", [{}, {"sorted": 0}, {"axis": 0}, {"axis": 1, "sorted": 0}], ids=str)
def test_unique(attrs, free):
    table = np.round(RNG.standard_normal((6, 5, 1))).astype(F) if "axis" in attrs else np.round(X)
    check(Single("Unique", [table], attrs, (), 4, opset=11, free=free))


@pytest.mark.parametrize("most", [0, 3, 40])
@pytest.mark.parametrize("centred", [0, 1])
@pytest.mark.parametrize("constants", [(2, 3, 4), ()], ids=["constants", "operands"])
def test_non_max_suppression(centred, most, constants):
    boxes = np.sort(RNG.random((2, 30, 2, 2)).astype(F), 2).reshape(2, 30, 4)
    operands = [boxes, RNG.random((2, 3, 30)).astype(F), np.array([most]), np.array([0.3], F), np.array([0.4], F)]
    free = {0: (0, 1), 1: (0, 2)} if constants else {}
    check(Single("NonMaxSuppression", operands, {"center_point_box": centred}, constants, opset=11, free=free))


EQUATIONS = [
    ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
    ("bqhd,bkhd->bhqk", [(2, 3, 2, 4), (2, 5, 2, 4)]),
    ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
    ("...ij->...ji", [(2, 3, 4)]),
    ("bii->b", [(2, 4, 4)]),
    ("i,j->ij", [(2,), (3,)]),
    ("abc,cd", [(2, 3, 4), (4, 5)]),
    ("bij->b", [(2, 3, 4)]),
    ("ij,ij->", [(2, 3), (2, 3)]),
]


@pytest.mark.parametrize(("equation", "shapes"), EQUATIONS)
@pytest.mark.parametrize("symbolic", [False, True])
def test_einsum(equation, shapes, symbolic):
    free = {k: range(len(shape)) for k, shape in enumerate(shapes)} if symbolic else {}
    check(Single("Einsum", [normal(*shape) for shape in shapes], {"equation": equation}, free=free))


@pytest.mark.parametrize("free", [{}, {0: (0, 1)}], ids=["static", "symbolic"])
@pytest.mark.parametrize("attrs", [{}, {"onesided": 1}, {"inverse": 1}], ids=str)
def test_dft(attrs, free):
    check(Single("DFT", [normal(2, 10, 1 if "onesided" in attrs else 2)], attrs, free=free, atol=1e-4))


def test_long_dft_is_split():
    signal = normal(1, 1200, 2)
    wanted = np.fft.fft(signal[..., 0].astype(np.float64) + 1j * signal[..., 1], axis=1)
    graph = import_model(Single("DFT", [signal]).model()[0])
    assert max(node.attrs["value"].size for node in graph.walk() if node.op == "constant") < 1200 * 1200
    (got,) = interpret(graph, [signal]).values()
    np.testing.assert_allclose(got[..., 0] + 1j * got[..., 1], wanted, atol=1e-3)


@pytest.mark.parametrize("free", [{}, {0: (0, 1)}], ids=["static", "symbolic"])
def test_stft(free):
    check(Single("STFT", [normal(2, 100, 1), np.array(7), np.hanning(16).astype(F)], {}, (1, 2), free=free, atol=1e-4))


@SYMBOLIC
def test_determinant(free):
    check(Single("Det", [normal(3, 4, 4)], opset=11, free=free))


@SYMBOLIC
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
def test_pairwise_distances(metric, dtype, free):
    free = dict.fromkeys(range(2), (0,)) if free else {}
    operands = [normal(7, 5).astype(dtype), normal(4, 5).astype(dtype)]
    check(Single("CDist", operands, {"metric": metric}, domain="com.microsoft", free=free))
