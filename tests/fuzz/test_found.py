"""Graphs that the fuzzer found: at each size compiled code, in a checked build, does what the interpreter does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import tcompile
from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model

CASES = {
    "nothing is gathered from an axis without elements": (
        "g (float[n, n] x) => (float[?, ?] y) <int64[1] i = {0}> { y = Gather<axis = 0>(x, i) }",
        (0, 1, 3),
    ),
    "places of nothing": ("g (float[n, n] x) => (int64[?] y) { y = ArgMax<axis = 0, keepdims = 0>(x) }", (0, 1, 5)),
    "a transposed convolution of nothing": (
        "g (float[1, 1, n, 1] x) => (float[?, ?, ?, ?] y) <float[1, 1, 3, 1] w = {1, 2, 3}> { y = ConvTranspose<strides = [2, 1]>(x, w) }",
        (0, 1, 4),
    ),
    "windows that fit nowhere": (
        "g (float[n, 1, n, 5] x) => (float[?, ?, ?, ?] y) <float[1, 1, 3, 1] w = {3, 1, 0}> { y = Conv(x, w) }",
        (2, 3, 7),
    ),
    "products that pair no elements": ("g (float[n, n] x) => (float[?, ?] y) <float[1, 1] w = {3}> { y = MatMul(x, w) }", (0, 1)),
    "the largest of nothing": ("g (float[1, n] x) => (float[?] y) <int64[1] a = {1}> { y = ReduceMax<keepdims = 0>(x, a) }", (0, 1, 17)),
    "an element of a sum over places that the run finds": (
        """g (float[n] x) => (int64[?] y) <int64[1] a = {1}, int64[1, 1] i = {0}> {
            p = NonZero(x)
            s = ReduceSum<keepdims = 0>(p, a)
            y = GatherND(s, i)
        }""",
        (1, 2, 13),
    ),
}

STOPS = {
    "windows larger than what they lie in": (
        "g (float[1, 1, n, 1] x) => (float[?, ?, ?, ?] y) <float[1, 1, 3, 1] w = {1, 2, 3}> { y = Conv<strides = [2, 1]>(x, w) }",
        0,
    ),
    "an element of nothing": ("g (float[n, 2] x) => (float[?, ?] y) <int64[1] i = {0}> { y = Gather<axis = 0>(x, i) }", 0),
    "the place of the largest of nothing": ("g (float[n, 2] x) => (int64[?] y) { y = ArgMax<axis = 0, keepdims = 0>(x) }", 0),
    "factors of unlike lengths": ("g (float[n, n] x) => (float[?, ?] y) <float[1, 1] w = {3}> { y = MatMul(x, w) }", 3),
}


def parsed(body: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 20]>\n{body}')


def values(model: onnx.ModelProto, size: int) -> dict[str, np.ndarray]:
    """Multiples of 1/4 at one size of the symbol."""
    (info,) = model.graph.input
    shape = [dim.dim_value or size for dim in info.type.tensor_type.shape.dim]
    return {info.name: (np.random.default_rng(size).integers(-8, 9, shape) / 4).astype(np.float32)}


@pytest.mark.parametrize(("body", "sizes"), CASES.values(), ids=CASES)
def test_sizes(body, sizes):
    model = parsed(body)
    graph, compiled = import_model(model), tcompile.compile(model, bounds=True)
    for size in sizes:
        inputs = values(model, size)
        for name, expected in interpret(graph, inputs).items():
            got = compiled.run(inputs)[name]
            assert got.dtype == expected.dtype
            np.testing.assert_array_equal(got, expected, err_msg=f"n = {size}")


def test_extents_of_nothing_are_those_of_symbols_that_are_0():
    model = parsed(CASES["a transposed convolution of nothing"][0])
    inputs = values(model, 0)
    fixed = tcompile.compile(model, shapes={"x": [1, 1, 0, 1]})
    np.testing.assert_array_equal(fixed.run(inputs)["y"], np.zeros((1, 1, 1, 1), np.float32))  # ONNX: 2 * (0 - 1) + 3 elements


@pytest.mark.parametrize(("body", "size"), STOPS.values(), ids=STOPS)
def test_stops(body, size):
    model = parsed(body)
    inputs = values(model, size)
    with pytest.raises(tcompile.Error):
        interpret(import_model(model), inputs)
    with pytest.raises(tcompile.Error):
        tcompile.compile(model, bounds=True).run(inputs)
