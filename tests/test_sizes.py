"""One artifact at several sizes against ONNX Runtime; ``python -m benchmarks.models --sizes`` does the same with public models."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tcompile.benchmarks.sizes import Ranged, check_sizes

RNG = np.random.default_rng(11)
SIZES = (1, 2, 5, 13, 16)


def write(path, body: str, **weights: np.ndarray) -> str:
    """A model of a textual graph with weights; its path."""
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]>\n{body}')
    proto.graph.initializer.extend(numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items())
    onnx.save(proto, path)
    return str(path)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def test_images_in_batches(tmp_path):
    body = """g (float[batch, 3, 19, 23] x) => (float[batch, 10] y) {
        a = Conv<pads=[1,1,1,1]>(x, w, b)
        c = Relu(a)
        d = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)
        e = Conv<group=8, pads=[1,1,1,1]>(d, v)
        f = GlobalAveragePool(e)
        h = Flatten(f)
        y = Gemm(h, u)
    }"""
    path = write(tmp_path / "image.onnx", body, w=normal(8, 3, 3, 3), b=normal(8), v=normal(8, 1, 3, 3), u=normal(8, 10))
    ranged = Ranged({"x": ("1..16", 3, 19, 23)}, tuple({"batch": n} for n in SIZES), (("batch", 0), ("batch", 17)))
    assert len(check_sizes(path, ranged)) == len(SIZES) + 2


def test_images_of_any_size(tmp_path):
    body = """g (float[1, 3, height, width] x) => (float[1, 3, a, b] y) {
        c = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w)
        d = Relu(c)
        y = ConvTranspose<kernel_shape=[2,2], strides=[2,2]>(d, v)
    }"""
    path = write(tmp_path / "sized.onnx", body, w=normal(16, 3, 3, 3), v=normal(16, 3, 2, 2))
    sizes = tuple({"height": h, "width": w} for h, w in ((1, 1), (7, 31), (40, 40), (1, 40), (13, 2)))
    ranged = Ranged({"x": (1, 3, "height=1..40", "width=1..40")}, sizes, (("height", 41), ("width", 0)))
    assert len(check_sizes(path, ranged)) == len(sizes) + 2


def test_sequences(tmp_path):
    body = """g (float[batch, length, 24] x) => (float[batch, length, 24] y) {
        q0 = MatMul(x, wq)  k0 = MatMul(x, wk)  v0 = MatMul(x, wv)
        s = Constant<value_ints=[0, 0, 4, 6]>()
        q1 = Reshape(q0, s)  k1 = Reshape(k0, s)  v1 = Reshape(v0, s)
        q = Transpose<perm=[0,2,1,3]>(q1)  k = Transpose<perm=[0,2,3,1]>(k1)  v = Transpose<perm=[0,2,1,3]>(v1)
        m = MatMul(q, k)
        p = Softmax(m)
        o = MatMul(p, v)
        t = Transpose<perm=[0,2,1,3]>(o)
        u = Constant<value_ints=[0, 0, 24]>()
        r = Reshape(t, u)
        z = Add(r, x)
        y = LayerNormalization(z, scale)
    }"""
    weights = {name: normal(24, 24) / 5 for name in ("wq", "wk", "wv")}
    path = write(tmp_path / "sequence.onnx", body, **weights, scale=normal(24))
    sizes = tuple({"batch": b, "length": n} for b, n in ((1, 1), (3, 7), (1, 61), (4, 64), (2, 16)))
    ranged = Ranged({"x": ("batch=1..4", "length=1..64", 24)}, sizes, (("batch", 5), ("length", 65), ("length", 0)))
    assert len(check_sizes(path, ranged)) == len(sizes) + 3


def test_a_recurrence(tmp_path):
    body = """g (float[length, batch, 5] x) => (float[length, 1, batch, 7] y) { y = LSTM<hidden_size=7>(x, w, r) }"""
    path = write(tmp_path / "lstm.onnx", body, w=normal(1, 28, 5), r=normal(1, 28, 7))
    sizes = tuple({"length": n, "batch": b} for n, b in ((1, 1), (17, 3), (50, 1), (2, 8), (50, 8)))
    ranged = Ranged({"x": ("length=1..50", "batch=1..8", 5)}, sizes, (("length", 51), ("batch", 9)))
    assert len(check_sizes(path, ranged)) == len(sizes) + 2


def test_a_wrong_size_is_noticed(tmp_path):
    path = write(tmp_path / "plain.onnx", "g (float[n] x) => (float[n] y) { y = Relu(x) }")
    with pytest.raises(AssertionError, match="outside of the range and was run"):
        check_sizes(path, Ranged({"x": ("1..9",)}, ({"n": 3},), (("n", 9),)))
