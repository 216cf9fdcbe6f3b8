"""Element types beyond those of ONNX's own cases: against the same computation on wide types, or on paper."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model
from tests.conformance_dtypes import variants
from tests.onnx_import.peer import Single

RNG = np.random.default_rng(5)
BF16, F8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn


def run(op: str, *inputs: np.ndarray | None, opset: int = 22, **attrs) -> np.ndarray:
    """Output 0."""
    model, feeds = Single(op, inputs, attrs, opset=opset).model()
    return next(iter(interpret(import_model(model), feeds).values()))


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dtype", (np.float16, BF16, np.float64))
def test_deformed_convolutions(dtype):
    x, w, offset, bias, mask = normal(1, 2, 5, 5), normal(3, 2, 2, 2), normal(1, 8, 4, 4), normal(3), normal(1, 4, 4, 4)
    narrow = [array.astype(dtype) for array in (x, w, offset, bias, mask)]
    got = run("DeformConv", *narrow)
    exact = run("DeformConv", *(array.astype(np.float64) for array in narrow))
    assert got.dtype == dtype
    eps = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(got.astype(np.float64), exact, rtol=2 * eps, atol=1e-5 * (dtype != np.float64))


@pytest.mark.parametrize("dtype", (np.int8, np.uint8, np.int64, np.uint64, bool))
@pytest.mark.parametrize("padding", ("zeros", "border", "reflection"))
def test_nearest_samples_of_integers_are_exact(padding, dtype):
    x = RNG.integers(0, 2, (1, 2, 4, 5)).astype(bool) if dtype is bool else RNG.integers(0, np.iinfo(dtype).max, (1, 2, 4, 5), dtype)
    grid = RNG.uniform(-1.3, 1.3, (1, 3, 7, 2)).astype(np.float32)
    places = np.arange(1, 41).reshape(x.shape).astype(np.float32)  # which element each sample is: 0 outside
    found = run("GridSample", places, grid, mode="nearest", padding_mode=padding).astype(int)
    expected = np.where(found == 0, np.zeros(1, dtype), x.reshape(-1)[np.maximum(found, 1) - 1])
    got = run("GridSample", x, grid, mode="nearest", padding_mode=padding)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", (np.int32, np.uint8, np.float64))
def test_a_mask_of_any_type_is_added_to_scores(dtype):
    q, k, v, mask = normal(1, 2, 3, 8), normal(1, 2, 4, 8), normal(1, 2, 4, 8), RNG.integers(0, 3, (3, 4))
    expected = run("Attention", q, k, v, mask.astype(np.float32), opset=23)
    np.testing.assert_array_equal(run("Attention", q, k, v, mask.astype(dtype), opset=23), expected)


def test_quantised_products_of_8_bit_floats():
    a, b = normal(3, 5).astype(F8), normal(5, 4).astype(F8)
    one, zero = np.float32(1), np.zeros((), F8)
    got = run("QLinearMatMul", a, np.float32(0.5), zero, b, np.float32(2), zero, one, zero, opset=21)
    assert got.dtype == F8
    np.testing.assert_array_equal(got.astype(np.float32), (a.astype(np.float32) @ b.astype(np.float32)).astype(F8).astype(np.float32))


@pytest.mark.parametrize("dtype", (np.float32, np.float16, np.int8, np.int64))
def test_casts_to_powers_of_two_ignore_the_sign_and_have_no_zero(dtype):
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT8E8M0)],
        "cast",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT8E8M0, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=11)
    (got,) = interpret(import_model(model), [np.array([0, 1, 3, -2], np.int8).astype(dtype)]).values()
    assert got.astype(np.float64).tolist() == [2.0**-127, 1, 4, 2]


def test_every_type_of_a_schema_is_tried():
    model = onnx.parser.parse_model('<ir_version: 9, opset_import: ["" : 14]> g (float[2] x, float[2] y) => (float[2] z) { z = Add(x, y) }')
    names = {name for name, _ in variants(model)}
    assert {"T=f16", "T=bf16", "T=f64", "T=u8", "T=i64"} <= names
    assert all(graph.graph.input[0].type == graph.graph.input[1].type for _, graph in variants(model))
