"""The template of plain pointwise convolutions against NumPy: spans of panels, rests of rows and positions, groups, epilogues."""

import numpy as np
import pytest

from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.dtypes import F32
from tcompile.ir.ops_pointwise import pack_tiles
from tests.codegen.template_runs import check_template, kernels_of

RNG = np.random.default_rng(0)


def normal(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


def pointwise(b, x, outputs, groups=1, height=6, dtype=F32):
    w = normal(outputs, x.shape[1] // groups).astype(x.dtype.numpy)
    return b.emit("conv_pointwise", x, b.constant(pack_tiles(w, groups, height)), channels=outputs, dtype=dtype)


SIZES = [
    ((1, 5, 1), 3, 1, 2, None),
    ((1, 8, 7, 7), 12, 1, 6, None),
    ((2, 6, 17, 13), 7, 1, 4, None),  # a rest of rows, of positions, of panels
    ((1, 3, 16, 16), 6, 1, 6, None),  # whole panels
    ((1, 1, 31), 1, 1, 1, None),
    ((3, 12, 5, 5), 9, 3, 2, None),
    ((1, 24, 37), 130, 2, 4, None),  # chunks of rows
    ((1, 2, 3, 5, 7), 5, 1, 8, None),
    ((0, 4, 5, 5), 3, 1, 2, None),
    ((2, 4, 0, 5), 3, 1, 2, None),
    ((1, 0, 3, 5), 3, 1, 2, None),
    ((1, 4, 9, 11), 6, 1, 5, "x86-64-v4"),
    ((1, 4, 9, 11), 6, 2, 8, "aarch64-linux"),
]


@pytest.mark.parametrize(("shape", "outputs", "groups", "height", "target"), SIZES)
def test_sizes(shape, outputs, groups, height, target):
    b = Builder()
    x = b.input("x", F32, shape)
    y = pointwise(b, x, outputs, groups, height)
    assert check_template(b.graph([y], ["y"]), {"x": normal(*shape)}, target) == ["pointwise"]


@pytest.mark.parametrize("inputs", [300, 1100])
def test_spans_of_few_panels(inputs):
    b = Builder()
    x = b.input("x", F32, (1, inputs, 5, 23))
    assert check_template(b.graph([pointwise(b, x, 20)], ["y"]), {"x": normal(*x.shape)}) == ["pointwise"]


@pytest.mark.parametrize(("dtype", "rtol"), [(dtypes.F64, 1e-12), (dtypes.F16, 2e-3), (dtypes.BF16, 2e-2)])
def test_dtypes(dtype, rtol):
    b = Builder()
    x = b.input("x", dtype, (2, 6, 9, 9))
    graph = b.graph([pointwise(b, x, 7, height=4, dtype=dtype)], ["y"])
    assert check_template(graph, {"x": normal(*x.shape).astype(dtype.numpy)}, rtol=rtol) == ["pointwise"]


@pytest.mark.parametrize("fn", ["max", "sigmoid"])
@pytest.mark.parametrize("size", [(4, 8), (5, 9), (3, 1)])
def test_epilogue(fn, size):
    b = Builder()
    x, r = b.input("x", F32, (2, 4, *size)), b.input("r", F32, (2, 7, *size))
    y = pointwise(b, x, 7)
    y = b.map("add", y, b.emit("broadcast", b.constant(normal(7)), shape=y.shape, axes=(1,)))
    y = b.map("add", y, r)
    y = b.map("max", y, b.scalar_like(0.0, y)) if fn == "max" else b.map("mul", y, b.map(fn, y))
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape), "r": normal(*r.shape)}) == ["pointwise"]


@pytest.mark.parametrize("n", [0, 1, 2, 13])
@pytest.mark.parametrize("groups", [1, 2])
def test_symbolic(n, groups):
    b = Builder()
    b.symbols.update(n=Range(0, None), h=Range(0, None))
    x = b.input("x", F32, (dims.symbol("n"), 4, dims.symbol("h")))
    y = pointwise(b, x, 6, groups, height=2)
    graph = b.graph([b.map("tanh", b.map("add", y, b.emit("broadcast", b.constant(normal(6)), shape=y.shape, axes=(1,))))], ["y"])
    assert check_template(graph, {"x": normal(n, 4, 7 * n)}) == ["pointwise"]


def test_one_kernel_reads_each_panel_once_for_all_rows():
    b = Builder()
    x = b.input("x", F32, (1, 64, 56, 56))
    (kernel,) = kernels_of(b.graph([pointwise(b, x, 64)], ["y"]))
    assert kernel.flops == 2 * 64 * 64 * 56 * 56
