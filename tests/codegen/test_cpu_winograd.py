"""The Winograd template against NumPy: ragged tiles, many and few channels, epilogue, border, unknown extents."""

import numpy as np
import pytest

from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.dtypes import F32
from tcompile.ir.ops_winograd import padded_extent
from tests.codegen.template_runs import check_template

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def winograd(b, x, outputs, size):
    u = b.constant(normal(36, outputs, x.shape[1], 16, 16))
    return b.emit("conv_winograd", x, u, size=size, dtype=F32)


@pytest.mark.parametrize(
    ("size", "inputs", "outputs", "target"),
    [
        ((4, 4), 1, 1, "x86-64-v4"),
        ((3, 2), 1, 1, "aarch64-linux"),
        ((5, 3), 2, 1, None),
        ((1, 13), 1, 5, None),
        ((28, 27), 4, 6, None),
        ((56, 56), 1, 9, None),
    ],
)
def test_sizes(size, inputs, outputs, target):
    b = Builder()
    x = b.input("x", F32, (2, inputs, *map(padded_extent, size), 16))
    y = winograd(b, x, outputs, size)
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}, target) == ["winograd"]


def test_epilogue_and_border():
    b = Builder()
    x, r = b.input("x", F32, (1, 1, 10, 10, 16)), b.input("r", F32, (1, 2, 6, 7, 16))
    y = b.map("add", winograd(b, x, 2, (6, 7)), r)
    y = b.map("max", y, b.scalar_like(0.0, y))
    y = b.emit("pad", y, b.constant(0.0, F32), low=(0, 0, 1, 1, 0), high=(0, 0, 3, 2, 0), mode="constant")
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape), "r": normal(*r.shape)}) == ["winograd"]


@pytest.mark.parametrize("n", [0, 1, 2, 20])
def test_symbolic(n):
    b = Builder()
    b.symbols.update(n=Range(0, None), h=Range(1, None))
    h = dims.symbol("h")
    x = b.input("x", F32, (dims.symbol("n"), 1, padded_extent(h), 6, 16))
    r = b.input("r", F32, (dims.symbol("n"), 1, h, 3, 16))
    graph = b.graph([b.map("add", winograd(b, x, 1, (h, 3)), r)], ["y"])
    height = 1 + 2 * n
    arrays = {"x": normal(n, 1, padded_extent(height), 6, 16), "r": normal(n, 1, height, 3, 16)}
    assert check_template(graph, arrays) == ["winograd"]
