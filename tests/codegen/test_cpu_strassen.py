"""The template of Strassen's algorithm against NumPy: odd numbers of positions, strides, borders, epilogues, unknown extents."""

import numpy as np
import pytest

from tcompile.codegen.cpu_strassen import PASS
from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.dtypes import F32
from tcompile.ir.interpret import interpret
from tcompile.ir.strassen import transform_weights
from tests.codegen.template_runs import check_template

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def strassen(b, x, outputs, strides=None):
    u = b.constant(normal(7, outputs, 1, x.shape[1] // 2, x.shape[-1], x.shape[-1]))
    return b.emit("conv_strassen", x, u, strides=strides or (1,) * (x.rank - 3), dtype=F32)


def test_the_seven_products_are_a_convolution():
    b = Builder()
    x, w = normal(2, 4, 3, 5, 8), normal(6, 4, 8, 8)
    value = b.input("x", F32, x.shape)
    y = b.emit("conv_strassen", value, b.constant(transform_weights(w)), strides=(1, 1), dtype=F32)
    got = interpret(b.graph([y], ["y"]), {"x": x})["y"]
    want = np.einsum("nihwa,oiab->nohwb", x.astype(np.float64), w)
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize(
    ("space", "inputs", "outputs", "block", "strides", "target"),
    [
        ((4, 6), 1, 1, 8, (1, 1), None),
        ((7, 7), 2, 3, 8, (1, 1), None),  # an odd number of positions
        ((5, 4), 3, 5, 16, (1, 1), "x86-64-v4"),
        ((3, 3), 1, 2, 8, (1, 1), "aarch64-linux"),
        ((1, 1), 1, 1, 8, (1, 1), None),
        ((13, 11), 2, 7, 8, (2, 2), None),
        ((9, 16), 1, 4, 8, (1, 2), None),
        ((28, 27), 4, 36, 8, (1, 1), None),  # tasks that share outputs
        ((17,), 2, 3, 8, (3,), None),
        ((3, 4, 5), 1, 3, 8, (1, 2, 1), None),
    ],
)
def test_sizes(space, inputs, outputs, block, strides, target):
    b = Builder()
    x = b.input("x", F32, (2, 2 * inputs, *space, block))
    y = strassen(b, x, outputs, strides)
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}, target) == ["strassen"]


def test_passes_over_many_inputs():
    b = Builder()
    x = b.input("x", F32, (1, 2 * (PASS // 8 + 3), 5, 5, 8))
    y = strassen(b, x, 3)
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}) == ["strassen"]


@pytest.mark.parametrize("fn", ["max", "sigmoid"])
@pytest.mark.parametrize("size", [(6, 7), (5, 9), (8, 12)])
def test_epilogue_and_border(fn, size):
    b = Builder()
    x, r = b.input("x", F32, (2, 2, *size, 16)), b.input("r", F32, (2, 6, *size, 16))
    y = b.map("add", strassen(b, x, 3), r)
    y = b.map("max", y, b.scalar_like(0.0, y)) if fn == "max" else b.map("mul", y, b.map(fn, y))
    y = b.emit("pad", y, b.constant(0.0, F32), low=(0, 0, 1, 1, 0), high=(0, 0, 3, 2, 0), mode="constant")
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape), "r": normal(*r.shape)}) == ["strassen"]


@pytest.mark.parametrize("n", [0, 1, 2, 13])
def test_symbolic(n):
    b = Builder()
    b.symbols.update(n=Range(0, None), h=Range(1, None))
    h = dims.symbol("h")
    x = b.input("x", F32, (dims.symbol("n"), 2, h, 7, 8))
    graph = b.graph([b.map("tanh", strassen(b, x, 2))], ["y"])
    assert check_template(graph, {"x": normal(n, 2, 1 + 2 * n, 7, 8)}) == ["strassen"]
