"""The Winograd template against NumPy: ragged tiles, many and few channels, dilation, borders, epilogue, unknown extents."""

import numpy as np
import pytest

from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.dtypes import F32
from tcompile.ir.winograd import form_of, forms_of
from tests.codegen.template_runs import check_template

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def winograd(b, x, outputs, size, kernel=3, low=(1, 1), dilation=(1, 1), tile=None, stride=1):
    form = form_of(kernel, len(size), tile or forms_of(kernel, len(size), stride)[0].outputs, stride)
    u = b.constant(normal(form.values, outputs, len(form.offsets), x.shape[1], x.shape[-1], x.shape[-1]))
    attrs = {"kernel": kernel, "tile": form.outputs, "size": size, "low": low, "dilation": dilation, "stride": stride}
    return b.emit("conv_winograd", x, u, **attrs, dtype=F32)


@pytest.mark.parametrize(
    ("size", "inputs", "outputs", "block", "kernel", "target"),
    [
        ((4, 4), 1, 1, 16, 3, "x86-64-v4"),
        ((4, 5), 1, 3, 8, 5, "x86-64-v4"),
        ((3, 2), 1, 1, 16, 3, "aarch64-linux"),
        ((3, 6), 2, 1, 8, 3, "aarch64-linux"),
        ((5, 3), 2, 1, 16, 3, None),
        ((1, 13), 1, 5, 8, 3, None),
        ((9, 13), 3, 7, 8, 5, None),
        ((28, 27), 4, 6, 8, 3, None),
        ((56, 56), 1, 9, 16, 3, None),
        ((32, 40), 2, 11, 8, 3, None),
        ((11, 20), 2, 3, 8, 7, None),
        ((6, 5), 1, 2, 16, 7, "x86-64-v4"),
        ((7, 5), 1, 18, 8, 3, None),  # tasks of nine output blocks each
        ((9, 9), 2, 34, 8, 3, None),
    ],
)
def test_sizes(size, inputs, outputs, block, kernel, target):
    b = Builder()
    x = b.input("x", F32, (2, inputs, *size, block))
    y = winograd(b, x, outputs, size, kernel)
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}, target) == ["winograd"]


@pytest.mark.parametrize(
    ("space", "size", "low", "dilation", "kernel"),
    [
        ((16, 16), (16, 16), (2, 2), (2, 2), 3),
        ((16, 32), (16, 32), (4, 8), (4, 8), 3),
        ((13, 11), (13, 11), (3, 2), (3, 2), 3),
        ((7, 5), (11, 9), (4, 4), (1, 1), 5),  # a transposed convolution's full border
        ((12, 12), (8, 8), (0, 0), (1, 1), 5),
        ((12, 9), (12, 9), (8, 6), (4, 3), 5),
        ((12, 30), (12, 30), (6, 3), (2, 1), 7),
        ((9, 9), (15, 15), (6, 6), (1, 1), 7),
        ((3, 3), (30, 2), (20, 9), (1, 1), 3),  # tiles that are all border
    ],
)
def test_borders_and_dilation(space, size, low, dilation, kernel):
    b = Builder()
    x = b.input("x", F32, (1, 2, *space, 8))
    y = winograd(b, x, 3, size, kernel, low, dilation)
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}) == ["winograd"]


@pytest.mark.parametrize(
    ("space", "size", "low", "dilation", "kernel", "target"),
    [
        (1024, 1020, 0, 1, 5, None),
        (13, 13, 1, 1, 3, "x86-64-v4"),
        (30, 31, 2, 2, 3, None),
        (2, 6, 0, 2, 3, None),  # three results of each tile
        (9, 25, 12, 3, 5, "aarch64-linux"),  # tiles that are all border
        (1, 1, 2, 1, 5, None),
    ],
)
def test_a_single_axis(space, size, low, dilation, kernel, target):
    b = Builder()
    x = b.input("x", F32, (2, 3, space, 8))
    y = winograd(b, x, 5, (size,), kernel, (low,), (dilation,))
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}, target) == ["winograd"]


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize(
    ("space", "size", "low", "target"),
    [
        ((28, 26), (14, 13), (1, 1), None),
        ((13, 7), (7, 4), (1, 1), None),  # the last tiles stick out
        ((11, 12), (5, 6), (0, 2), "x86-64-v4"),
        ((9, 5), (4, 2), (0, 0), "aarch64-linux"),
        ((1, 1), (1, 1), (1, 1), None),
        ((3, 2), (6, 5), (5, 4), None),  # tiles that are all border
        ((31,), (16,), (1,), None),
        ((2,), (1,), (0,), "x86-64-v4"),
    ],
)
def test_stride_2(space, size, low, target, tile):
    b = Builder()
    x = b.input("x", F32, (2, 3, *space, 8))
    y = winograd(b, x, 5, size, 3, low, (1,) * len(size), tile, stride=2)
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}, target) == ["winograd"]


@pytest.mark.parametrize("n", [0, 1, 3])
def test_stride_2_of_unknown_extents_with_an_epilogue(n):
    b = Builder()
    b.symbols.update(n=Range(0, None), h=Range(1, None))
    h = dims.symbol("h")
    x = b.input("x", F32, (dims.symbol("n"), 1, 2 * h + 1, 6, 16))
    r = b.input("r", F32, (dims.symbol("n"), 1, h, 3, 16))
    graph = b.graph([b.map("add", winograd(b, x, 1, (h, 3), stride=2), r)], ["y"])
    height = 1 + 2 * n
    assert check_template(graph, {"x": normal(n, 1, 2 * height + 1, 6, 16), "r": normal(n, 1, height, 3, 16)}) == ["winograd"]


@pytest.mark.parametrize("n", [0, 1, 14])
def test_a_single_axis_of_unknown_extent_with_an_epilogue(n):
    b = Builder()
    b.symbols["n"] = Range(0, None)
    x = b.input("x", F32, (1, 1, dims.symbol("n"), 16))
    y = b.map("tanh", winograd(b, x, 2, (dims.symbol("n"),), 3, (1,), (1,)))
    assert check_template(b.graph([y], ["y"]), {"x": normal(1, 1, n, 16)}) == ["winograd"]


@pytest.mark.parametrize("fn", ["max", "sigmoid"])
@pytest.mark.parametrize("size", [(6, 7), (8, 12)])
def test_epilogue_and_border(fn, size):
    b = Builder()
    x, r = b.input("x", F32, (1, 1, *size, 16)), b.input("r", F32, (1, 2, *size, 16))
    y = b.map("add", winograd(b, x, 2, size), r)
    y = b.map("max", y, b.scalar_like(0.0, y)) if fn == "max" else b.map("mul", y, b.map(fn, y))
    if fn == "max":
        y = b.emit("pad", y, b.constant(0.0, F32), low=(0, 0, 1, 1, 0), high=(0, 0, 3, 2, 0), mode="constant")
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape), "r": normal(*r.shape)}) == ["winograd"]


@pytest.mark.parametrize("n", [0, 1, 2, 20])
def test_symbolic(n):
    b = Builder()
    b.symbols.update(n=Range(0, None), h=Range(1, None))
    h = dims.symbol("h")
    x = b.input("x", F32, (dims.symbol("n"), 1, h, 6, 16))
    r = b.input("r", F32, (dims.symbol("n"), 1, h, 3, 16))
    graph = b.graph([b.map("add", winograd(b, x, 1, (h, 3)), r)], ["y"])
    height = 1 + 2 * n
    assert check_template(graph, {"x": normal(n, 1, height, 6, 16), "r": normal(n, 1, height, 3, 16)}) == ["winograd"]
