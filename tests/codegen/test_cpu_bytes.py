"""Convolutions on bytes against NumPy, exactly: passes, tiles and rests, taps, strides, symbolic sizes, the largest codes and weights."""

import numpy as np
import pytest

from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.dtypes import F32, I16
from tcompile.ir.interpret import interpret
from tcompile.ir.ops_bytes import POSITIONS
from tcompile.ir.target import native_target
from tcompile.passes.byte_entries import byte_entries
from tcompile.passes.fuse import Fuse
from tests.codegen.native import run_native
from tests.codegen.template_runs import check_template

RNG = np.random.default_rng(0)
LARGEST = 32767


def matrix(kind, terms, outputs):
    """Weights [terms, outputs]: of any size, of few large ones, or all of one extreme."""
    if kind == "uniform":
        return RNG.integers(-128, 128, (terms, outputs)).astype(np.int8)
    if kind == "normal":
        return np.clip(np.rint(RNG.normal(0, 30, (terms, outputs))), -127, 127).astype(np.int8)
    return np.full((terms, outputs), kind, np.int8)


def codes(low, *shape):
    """Codes of 256 numbers; all the largest in the first image."""
    found = RNG.integers(low, low + 256, shape).astype(np.int16)
    found[:1] = low + 255
    return found


def conv(b, x, weights, block, kernel, strides=None, low=0, depth=None, size=3):
    """conv_bytes by a matrix [terms, outputs], its terms in the order of the op."""
    axes, depth = len(kernel), depth or -(-weights.shape[0] // 4)
    made = byte_entries(weights, depth, size)
    offsets = (low * weights.astype(np.int64).sum(axis=0)).astype(np.int32).reshape(-1, block)
    operands = map(b.constant, (made.entries, made.places, made.starts, offsets))
    attrs = {"kernel": kernel, "strides": strides or (1,) * axes, "dilation": (1,) * axes}
    return b.emit("conv_bytes", x, *operands, **attrs, low=low, depth=depth, size=size)


def expected(x, weights, block, kernel, strides):
    """The convolution in plain loops over blocks and taps."""
    spatial = [(n - k) // s + 1 for n, k, s in zip(x.shape[2:-1], kernel, strides, strict=True)]
    total = np.zeros((x.shape[0], *spatial, weights.shape[1]), np.int64)
    rows = iter(np.split(weights.astype(np.int64), weights.shape[0] // x.shape[-1]))
    for part in range(x.shape[1]):
        for tap in np.ndindex(*kernel):
            cut = tuple(slice(k, k + (n - 1) * s + 1, s) for k, s, n in zip(tap, strides, spatial, strict=True))
            total += x[(slice(None), part, *cut)].astype(np.int64) @ next(rows)
    return np.moveaxis(total.reshape(*total.shape[:-1], -1, block), -2, 1).astype(np.int32)


def requantised(b, y):
    """convert(min(max(round(y * s), -100), 120), i16)"""
    scale = b.emit("broadcast", b.constant(RNG.uniform(1e-5, 1e-4, y.shape[1:2]).astype(np.float32)), shape=y.shape, axes=(1,))
    z = b.map("round", b.map("mul", b.convert(y, F32), scale))
    return b.convert(b.map("min", b.map("max", z, b.scalar_like(-100, z)), b.scalar_like(120, z)), I16)


@pytest.mark.parametrize(("kind", "size"), [("uniform", 2), ("normal", 3), (127, 2), (-128, 1), (0, 4)])
@pytest.mark.parametrize(
    ("spatial", "kernel", "strides", "inputs", "outputs", "wide", "low", "depth"),
    [
        ((7, 7), (1, 1), (1, 1), 2, 48, 16, 0, None),
        ((6, 11), (3, 3), (2, 2), 2, 32, 16, -126, 20),
        ((19, 8), (2, 3), (2, 1), 1, 16, 4, -255, None),
        ((5,), (1,), (1,), 1, 16, 36, -128, 4),
        ((3, 4, 5), (1, 1, 1), (2, 1, 2), 3, 16, 8, 3, 2),
        ((8, 20), (1, 1), (1, 1), 3, 128, 16, 0, 8),
    ],
)
def test_conv(kind, size, spatial, kernel, strides, inputs, outputs, wide, low, depth):
    b = Builder()
    x = b.input("x", I16, (2, inputs, *spatial, wide))
    weights = matrix(kind, inputs * int(np.prod(kernel)) * wide, outputs)
    y = conv(b, x, weights, 16, kernel, strides, low=low, depth=depth, size=size)
    graph, arrays = b.graph([y], ["y"]), {"x": codes(low, *x.shape)}
    np.testing.assert_array_equal(interpret(graph, arrays)["y"], expected(arrays["x"], weights, 16, kernel, strides))
    assert check_template(graph, arrays, rtol=0) == ["conv of bytes"]


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "aarch64-linux"])
@pytest.mark.parametrize("outputs", [16, 24])
def test_other_vectors(target, outputs):
    b = Builder()
    x = b.input("x", I16, (1, 1, 3, 7, 16))
    y = conv(b, x, matrix("uniform", 16 * 2, outputs), 8, (1, 2), low=-3, depth=4)
    assert check_template(b.graph([requantised(b, y)], ["y"]), {"x": codes(-3, *x.shape)}, target, rtol=0) == ["conv of bytes"]


@pytest.mark.parametrize("outputs", [1, 16, 19])
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 70])
def test_rows_of_a_product(rows, outputs):
    """One block of inputs, one of outputs, a symbolic number of rows."""
    b = Builder()
    b.symbols["n"] = Range(0, None)
    x = b.input("x", I16, (1, 1, dims.symbol("n"), 44))
    y = conv(b, x, matrix("normal", 44, outputs), outputs, (1,), low=-100, depth=7)
    check_template(b.graph([y], ["y"]), {"x": codes(-100, 1, 1, rows, 44)}, rtol=0)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_symbolic_images_and_a_border(n):
    b = Builder()
    b.symbols.update(n=Range(0, None), w=Range(1, None))
    x = b.input("x", I16, (dims.symbol("n"), 2, 3, dims.symbol("w"), 16))
    y = requantised(b, conv(b, x, matrix("normal", 32, 32), 16, (1, 1)))
    y = b.emit("pad", y, b.constant(7, I16), low=(0, 0, 1, 2, 0), high=(0, 0, 1, 0, 0), mode="constant")
    assert check_template(b.graph([y], ["y"]), {"x": codes(0, n, 2, 3, 2 * n + 1, 16)}, rtol=0) == ["conv of bytes"]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["uniform", "normal", 127, -128, 0])
def test_sums_of_a_group_fit_16_bits(kind, size):
    """For the codes that make them largest and least; and the entries of a word add up to its weights."""
    weights = matrix(kind, 101, 300)
    made = byte_entries(weights, 10, size)
    words = np.pad(weights, ((0, 19), (0, 0))).reshape(30, 4, 300)
    end = 0
    for number, outputs in enumerate(made.starts):
        for output, (start, groups) in enumerate(outputs):
            assert start == end
            end += groups * size
            rows, total = made.entries[start:end].astype(np.int64), np.zeros((10, 4), np.int64)
            np.add.at(total, made.places[start:end] // POSITIONS, rows)
            np.testing.assert_array_equal(total, words[10 * number : 10 * number + 10, :, output])
            halves = rows.reshape(groups, size, 2, 2)
            assert (255 * np.maximum(halves, 0).sum(axis=(1, 3)) <= LARGEST).all()
            assert (255 * np.minimum(halves, 0).sum(axis=(1, 3)) >= -LARGEST - 1).all()
    assert end == made.groups * size <= len(made.entries) <= 1.1 * end + 1
    assert not made.entries[end:].any()


def test_a_table_that_leaves_its_entries_is_left_out():
    """No number in a table makes a kernel leave its buffers: rows that begin below or end behind the entries have none."""
    b = Builder()
    x = b.input("x", I16, (1, 1, 9, 16))
    made = byte_entries(matrix("normal", 16, 16), 4, 2)
    starts = made.starts.copy()
    starts[0, 0], starts[0, 5], starts[0, 9] = (-2, 2), (0, 2**30), (2**31 - 1, 3)
    operands = map(b.constant, (made.entries, np.full_like(made.places, 2**16 - 1), starts, np.full((1, 16), 7, np.int32)))
    y = b.emit("conv_bytes", x, *operands, kernel=(1,), strides=(1,), dilation=(1,), low=0, depth=4, size=2)
    graph = Fuse(native_target()).apply(b.graph([y], ["y"]))
    found = run_native(graph, codes(0, 1, 1, 9, 16))["y"]
    np.testing.assert_array_equal(found[..., [0, 5, 9]], 7)
