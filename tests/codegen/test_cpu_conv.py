"""Blocked convolution templates against NumPy: strides, dilation, groups, ranks, remainders, epilogues."""

import numpy as np
import pytest

from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.choices import forcing
from tcompile.ir.dims import Range
from tcompile.ir.dtypes import F32, I8, I32, U8
from tests.codegen.template_runs import check_template, kernels_of

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def blocked(b, x, w, strides=None, dilation=None, groups=1):
    rank = x.rank - 3
    attrs = {"strides": strides or (1,) * rank, "dilation": dilation or (1,) * rank, "dtype": F32}
    return b.emit("conv_blocked", x, b.constant(w), groups=groups, **attrs)


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "aarch64-linux"])
def test_blocked_on_other_targets(target):
    b = Builder()
    x = b.input("x", F32, (1, 1, 3, 9, 16))
    y = blocked(b, x, normal(2, 1, 2, 2, 16, 16), (1, 2))
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}, target) == ["conv"]


@pytest.mark.parametrize(
    ("spatial", "kernel", "strides", "dilation"),
    [
        ((7, 9), (3, 3), (1, 1), (1, 1)),
        ((9, 20), (3, 2), (2, 1), (1, 2)),
        ((5, 5), (1, 1), (1, 1), (1, 1)),
        ((5, 6), (1, 1), (2, 2), (1, 1)),
        ((11,), (3,), (2,), (1,)),
        ((3, 4, 5), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
        ((3, 3), (3, 3), (1, 1), (1, 1)),
        ((30, 31), (5, 5), (1, 1), (1, 1)),
    ],
)
def test_blocked(spatial, kernel, strides, dilation):
    b = Builder()
    x = b.input("x", F32, (2, 2, *spatial, 16))
    y = blocked(b, x, normal(3, 2, *kernel, 16, 16), strides, dilation)
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}) == ["conv"]


def test_groups():
    b = Builder()
    x = b.input("x", F32, (1, 4, 5, 5, 16))
    y = blocked(b, x, normal(6, 2, 3, 3, 16, 16), groups=2)
    check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)})


@pytest.mark.parametrize(
    ("groups", "inputs", "spatial", "kernel", "strides", "dilation"),
    [
        (4, 1, (5, 5), (3, 3), (1, 1), (1, 1)),
        (3, 2, (6, 31), (3, 5), (1, 2), (1, 1)),
        (1, 3, (4, 29), (1, 3), (1, 1), (1, 2)),
        (2, 1, (40,), (9,), (1,), (1,)),
        (2, 1, (3, 4, 17), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
        (1, 2, (4, 47), (2, 14), (1, 1), (1, 1)),
    ],
)
@pytest.mark.parametrize(("target", "block"), [("x86-64-v3", 8), ("x86-64-v4", 16), ("aarch64-linux", 4)])
def test_groups_of_one_vector(target, block, groups, inputs, spatial, kernel, strides, dilation):
    """By rows of the kernel: each broadcast input serves several columns."""
    b = Builder()
    x = b.input("x", F32, (2, groups * inputs, *spatial, block))
    y = blocked(b, x, normal(groups, inputs, *kernel, block, block), strides, dilation, groups)
    bias = b.emit("broadcast", b.constant(normal(groups, block)), shape=y.shape, axes=(1, y.rank - 1))
    y = b.map("sigmoid", b.map("add", y, bias))
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}, target) == ["conv"]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_groups_of_one_vector_and_any_size(n):
    b = Builder()
    b.symbols.update(n=Range(0, None), w=Range(2, None))
    x = b.input("x", F32, (dims.symbol("n"), 2, 4, dims.symbol("w"), 8))
    y = blocked(b, x, normal(2, 1, 3, 2, 8, 8), groups=2)
    check_template(b.graph([y], ["y"]), {"x": normal(n, 2, 4, 2 + 11 * n, 8)}, "x86-64-v3")


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_symbolic_batch_and_size(n, kernel):
    b = Builder()
    b.symbols.update(n=Range(0, None), w=Range(2, None))
    x = b.input("x", F32, (dims.symbol("n"), 1, 4, dims.symbol("w"), 16))
    y = blocked(b, x, normal(2, 1, kernel, kernel, 16, 16))
    check_template(b.graph([y], ["y"]), {"x": normal(n, 1, 4, 2 + 3 * n, 16)})


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("fn", ["max", "sigmoid"])
def test_epilogue(fn, kernel):
    b = Builder()
    x, r = b.input("x", F32, (1, 1, 6, 7, 16)), b.input("r", F32, (1, 2, 7 - kernel, 8 - kernel, 16))
    y = blocked(b, x, normal(2, 1, kernel, kernel, 16, 16))
    bias = b.emit("broadcast", b.constant(normal(2, 16)), shape=y.shape, axes=(1, 4))
    y = b.map("add", b.map("add", y, bias), r)
    y = b.map("max", y, b.scalar_like(0.0, y)) if fn == "max" else b.map("mul", y, b.map(fn, y))
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape), "r": normal(*r.shape)}) == ["conv"]


@pytest.mark.parametrize(("kernel", "strides"), [(7, 2), (3, 2), (3, 1), (1, 1)])
def test_stem(kernel, strides):
    b = Builder()
    x = b.input("x", F32, (2, 3, 11, 13))
    w = b.constant(normal(2, 3, kernel, kernel, 16))
    y = b.emit("conv_stem", x, w, strides=(strides,) * 2, dilation=(1, 1), dtype=F32)
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}) == ["conv"]


def test_integers():
    b = Builder()
    x = b.input("x", U8, (1, 1, 5, 5, 16))
    w = b.constant(RNG.integers(-128, 128, (1, 1, 3, 3, 16, 16)).astype(np.int8))
    assert w.dtype == I8
    y = b.emit("conv_blocked", x, w, strides=(1, 1), dilation=(1, 1), groups=1, dtype=I32)
    check_template(b.graph([y], ["y"]), {"x": RNG.integers(0, 256, x.shape).astype(np.uint8)}, rtol=0)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(("low", "high"), [((1, 1), (1, 1)), ((0, 2), (3, 0))])
def test_border_is_written_by_the_convolution(kernel, low, high):
    b = Builder()
    x = b.input("x", F32, (2, 1, 6, 7, 16))
    y = blocked(b, x, normal(3, 1, kernel, kernel, 16, 16))
    y = b.map("max", y, b.scalar_like(0.25, y))
    y = b.emit("pad", y, b.constant(0.5, F32), low=(0, 0, *low, 0), high=(0, 0, *high, 0), mode="constant")
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}) == ["conv"]


def test_border_of_unknown_size():
    b = Builder()
    b.symbols.update(n=Range(0, None), w=Range(1, None))
    x = b.input("x", F32, (dims.symbol("n"), 1, 4, dims.symbol("w"), 16))
    y = blocked(b, x, normal(2, 1, 1, 1, 16, 16))
    y = b.emit("pad", y, b.constant(0.0, F32), low=(0, 0, 1, 2, 0), high=(0, 0, 1, 1, 0), mode="constant")
    assert check_template(b.graph([y], ["y"]), {"x": normal(2, 1, 4, 9, 16)}) == ["conv"]


@pytest.mark.parametrize(("batch", "passes"), [(1, 3), (2, 8)])
@pytest.mark.parametrize(
    ("inputs", "outputs", "spatial", "kernel", "strides", "pad"),
    [
        (70, 7, (9, 15), (1, 1), (1, 1), 0),  # flat positions with a rest, bundles with a narrower one
        (70, 2, (3, 2), (1, 1), (1, 1), 1),  # fewer positions than a chunk, and a border
        (64, 30, (7, 7), (1, 1), (1, 1), 0),  # several groups of bundles
        (70, 5, (17, 11), (1, 1), (2, 2), 0),  # rows
        (40, 4, (12, 13), (3, 3), (2, 1), 1),
        (90, 3, (40,), (5,), (1,), 0),
    ],
)
def test_passes_over_many_channels(inputs, outputs, spatial, kernel, strides, pad, batch, passes):
    b = Builder()
    x = b.input("x", F32, (batch, inputs, *spatial, 8))
    y = blocked(b, x, normal(outputs, inputs, *kernel, 8, 8), strides)
    bias = b.emit("broadcast", b.constant(normal(outputs, 8)), shape=y.shape, axes=(1, y.rank - 1))
    y = b.map("max", b.map("add", y, bias), b.scalar_like(0.25, y))
    if pad:
        border = (0, 0, *(pad,) * len(spatial), 0)
        y = b.emit("pad", y, b.constant(0.5, F32), low=border, high=border, mode="constant")
    graph = b.graph([y], ["y"])
    with forcing({"convolution passes": f"{-(-inputs // passes)} blocks"}):
        assert check_template(graph, {"x": normal(*x.shape)}) == ["conv"]
        assert any("passes" in kernel.tags for kernel in kernels_of(graph))


@pytest.mark.parametrize("inputs", [2, 80])
@pytest.mark.parametrize(
    ("kernel", "windows", "outputs"),
    [
        ((3, 3), ((0, 2, 0, 2), (0, 2, 1, 2), (1, 2, 0, 2), (1, 2, 1, 2)), 12),  # the phases of a 4x4 kernel
        ((2, 2), ((0, 1, 0, 1), (0, 1, 0, 2), (0, 2, 0, 1), (0, 2, 0, 2)), 8),  # of a 3x3 kernel
        ((3,), ((1, 2), (0, 0), (2, 1)), 3),
    ],
)
def test_windows_of_sections(kernel, windows, outputs, inputs):
    b = Builder()
    x = b.input("x", F32, (1, inputs, *(9, 14)[: len(kernel)], 8))
    w = np.zeros((outputs, inputs, *kernel, 8, 8), np.float32)
    for section, window in enumerate(windows):
        part = slice(section * outputs // len(windows), (section + 1) * outputs // len(windows))
        place = (part, slice(None), *(slice(start, start + size) for start, size in zip(window[::2], window[1::2], strict=True)))
        w[place] = normal(*w[place].shape)
    ones = (1,) * len(kernel)
    flat = tuple(number for window in windows for number in window)
    y = b.emit("conv_blocked", x, b.constant(w), strides=ones, dilation=ones, groups=1, windows=flat, dtype=F32)
    with forcing({"convolution passes": "16 blocks"}):
        assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}) == ["conv"]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("kernel", "reads"), [((1, 1), ((0, 2), (1, 3), (1, 0), (4, 1), (0, 5))), ((3,), ((2, 2), (2, 2), (0, 3)))])
def test_only_the_input_blocks_of_weights_that_are_not_zero_are_read(kernel, reads, groups):
    b = Builder()
    x = b.input("x", F32, (2, 5 * groups, *(9, 14)[: len(kernel)], 8))
    w = np.zeros((len(reads) * groups, 5, *kernel, 8, 8), np.float32)
    for block, (start, size) in enumerate(reads * groups):
        w[block, start : start + size] = normal(size, *w.shape[2:])
    ones = (1,) * len(kernel)
    flat = tuple(number for pair in reads * groups for number in pair)
    y = b.emit("conv_blocked", x, b.constant(w), strides=ones, dilation=ones, groups=groups, reads=flat, dtype=F32)
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}) == ["conv"]


@pytest.mark.parametrize("n", [0, 1, 3])
def test_passes_of_an_unknown_batch_and_height(n):
    b = Builder()
    b.symbols.update(n=Range(0, None), h=Range(1, None))
    x = b.input("x", F32, (dims.symbol("n"), 40, dims.symbol("h"), 10, 8))
    y = blocked(b, x, normal(2, 40, 3, 3, 8, 8)) if n != 1 else blocked(b, x, normal(2, 40, 1, 3, 8, 8))
    graph = b.graph([y], ["y"])
    with forcing({"convolution passes": "10 blocks"}):
        assert check_template(graph, {"x": normal(n, 40, 3 + 2 * n, 10, 8)}) == ["conv"]
        assert any("passes" in kernel.tags for kernel in kernels_of(graph))


def test_a_large_image_goes_chunk_by_chunk():
    b = Builder()
    x = b.input("x", F32, (1, 6, 61, 63, 8))
    y = blocked(b, x, normal(7, 6, 1, 1, 8, 8))
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}) == ["conv"]
