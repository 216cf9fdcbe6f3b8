"""Gradient against finite differences of the interpreted model in float64."""

import numpy as np
import onnx
import pytest
from onnx import parser

from tcompile.errors import UnsupportedError
from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model

STEP = 1e-6


def differentiated(body: str, x: str, shape: str, *, feed: str = "x") -> onnx.ModelProto:
    """A model of an f64 input x that gives y and the gradient of the sum of y's elements."""
    text = f"""<ir_version: 10, opset_import: ["" : 21, "ai.onnx.preview.training" : 1]>
    g (double[{shape}] x) => (double[{x}] y, double[{shape}] dx) {{
        {body}
        dx = ai.onnx.preview.training.Gradient <xs = ["x"], y = "y"> ({feed})
    }}"""
    return parser.parse_model(text)


def slope(graph, x: np.ndarray) -> np.ndarray:
    """The derivative of the sum of y's elements by central differences."""
    result = np.empty_like(x)
    for at in np.ndindex(x.shape):
        ends = []
        for side in (STEP, -STEP):
            moved = x.copy()
            moved[at] += side
            ends.append(interpret(graph, {"x": moved})["y"].sum())
        result[at] = (ends[0] - ends[1]) / (2 * STEP)
    return result


def check(body: str, shape=(3, 4), low=0.3, high=0.8) -> None:
    """The gradient of a body at random values of an interval."""
    graph = import_model(differentiated(body, "a, b", ", ".join(map(str, shape))))
    x = np.random.default_rng(0).uniform(low, high, shape)
    np.testing.assert_allclose(interpret(graph, {"x": x})["dx"], slope(graph, x), rtol=1e-5, atol=1e-7)


FUNCTIONS = "Neg Abs Sqrt Reciprocal Exp Log Sin Cos Tan Asin Acos Atan Sinh Cosh Tanh Asinh Atanh Sigmoid Erf Relu Softplus Gelu Floor"


@pytest.mark.parametrize("op", FUNCTIONS.split())
def test_elementwise_functions(op):
    check(f"y = {op}(x)")


def test_acosh():
    check("y = Acosh(x)", low=1.2, high=2.0)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"])
def test_functions_of_two_operands_that_both_depend_on_x(op):
    check(f"s = Sin(x)  t = Mul(x, x)  y = {op}(t, s)")


@pytest.mark.parametrize(
    "body",
    [
        "m = ReduceMean <keepdims = 1> (x)  y = Mul(x, m)",
        "axis = Constant <value_ints = [1]> ()  m = ReduceMax <keepdims = 1> (x, axis)  y = Mul(x, m)",
        "s = Softmax(x)  y = Mul(s, x)",
        "axis = Constant <value_ints = [0]> ()  r = ReduceSum <keepdims = 0> (x, axis)  e = Exp(r)  y = Mul(x, e)",
        "t = Transpose <perm = [1, 0]> (x)  y = MatMul(x, t)",
        "t = Transpose <perm = [1, 0]> (x)  e = Exp(t)  y = MatMul(e, x)",
        "n = Constant <value_ints = [2, 6]> ()  r = Reshape(x, n)  y = Exp(r)",
        "y = Concat <axis = 1> (x, x)",
        "y = Concat <axis = 0> (x, x)",
        "a, b = Split <axis = 1, num_outputs = 2> (x)  y = Mul(a, b)",
        "p = Constant <value_ints = [1, 0, 0, 2]> ()  w = Pad(x, p)  y = Exp(w)",
        "k = Constant <value_ints = [2, 0, 2]> ()  w = Gather <axis = 0> (x, k)  e = Exp(w)  y = Mul(e, w)",
        "k = Constant <value_ints = [1, 1]> ()  w = Gather <axis = 1> (x, k)  y = Exp(w)",
        "z = Constant <value_float = 0.5> ()  h = CastLike(z, x)  c = Greater(x, h)  e = Exp(x)  y = Where(c, e, x)",
        "c = Cast <to = 11> (x)  y = Exp(c)",
    ],
)
def test_movement_sums_and_products(body):
    check(body)


def test_batched_products():
    body = "t = Transpose <perm = [0, 2, 1]> (x)  e = Exp(t)  y = MatMul(x, e)"
    graph = import_model(differentiated(body, "a, b, c", "2, 3, 4"))
    x = np.random.default_rng(0).uniform(0.2, 0.8, (2, 3, 4))
    np.testing.assert_allclose(interpret(graph, {"x": x})["dx"], slope(graph, x), rtol=1e-5)


def test_symbolic_extents():
    graph = import_model(differentiated("s = Softmax(x)  y = Mul(s, x)", "n, 4", "n, 4"))
    x = np.random.default_rng(0).uniform(-1, 1, (5, 4))
    np.testing.assert_allclose(interpret(graph, {"x": x})["dx"], slope(graph, x), rtol=1e-5, atol=1e-9)


def test_second_derivatives():
    body = """y = Exp(x)
        first = ai.onnx.preview.training.Gradient <xs = ["x"], y = "y"> (x)
        s = Mul(first, x)"""
    model = differentiated(body, "n", "n")
    model.graph.node[-1].attribute[1 if model.graph.node[-1].attribute[1].name == "y" else 0].s = b"s"
    x = np.array([0.5, 1.5])
    np.testing.assert_allclose(interpret(import_model(model), {"x": x})["dx"], np.exp(x) * (1 + x), rtol=1e-12)


def test_other_tensors_may_be_fed():
    graph = import_model(differentiated("two = Add(x, x)  y = Exp(x)", "n", "n", feed="two"))
    x = np.array([0.5, 1.5])
    result = interpret(graph, {"x": x})
    np.testing.assert_allclose(result["dx"], np.exp(2 * x))
    np.testing.assert_allclose(result["y"], np.exp(x))


def test_what_has_no_rule_is_named():
    with pytest.raises(UnsupportedError, match=r"the gradient of cumulative add \(CumSum #1"):
        import_model(differentiated("axis = Constant <value_int = 0> ()  y = CumSum(x, axis)", "n", "n"))
