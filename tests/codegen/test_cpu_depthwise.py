"""The depthwise template against NumPy."""

import numpy as np
import pytest

from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.dtypes import F32
from tcompile.ir.interpret import interpret
from tests.codegen.template_runs import check_template

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "aarch64-linux"])
def test_a_wide_kernel_on_other_targets(target):
    """Its rows are taken in parts of different widths."""
    b = Builder()
    x = b.input("x", F32, (1, 2, 8, 35, 16))
    y = b.emit("depthwise_blocked", x, b.constant(normal(2, 5, 17, 16)), strides=(1, 1), dilation=(1, 1), dtype=F32)
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}, target) == ["depthwise"]


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "aarch64-linux"])
def test_other_targets(target):
    b = Builder()
    x = b.input("x", F32, (1, 2, 5, 14, 16))
    y = b.emit("depthwise_blocked", x, b.constant(normal(2, 3, 3, 16)), strides=(2, 1), dilation=(1, 1), dtype=F32)
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}, target) == ["depthwise"]


@pytest.mark.parametrize(
    ("spatial", "kernel", "strides", "dilation"),
    [
        ((9, 9), (3, 3), (1, 1), (1, 1)),
        ((9, 30), (3, 3), (2, 2), (1, 1)),
        ((7, 8), (5, 5), (1, 2), (1, 1)),
        ((9, 12), (3, 3), (1, 1), (2, 2)),
        ((20,), (3,), (1,), (1,)),
        ((70,), (21,), (1,), (1,)),
        ((60,), (13,), (2,), (3,)),
        ((18, 41), (17, 19), (1, 1), (1, 1)),
        ((9, 67), (7, 11), (2, 2), (1, 1)),
        ((15, 33), (4, 7), (1, 1), (3, 2)),
        ((31, 31), (31, 31), (1, 1), (1, 1)),
        ((3, 4, 5), (2, 3, 2), (1, 1, 1), (1, 1, 1)),
    ],
)
def test_depthwise(spatial, kernel, strides, dilation):
    b = Builder()
    x = b.input("x", F32, (2, 3, *spatial, 16))
    w = b.constant(normal(3, *kernel, 16))
    y = b.emit("depthwise_blocked", x, w, strides=strides, dilation=dilation, dtype=F32)
    y = b.map("max", y, b.scalar_like(0.0, y))
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}) == ["depthwise"]


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", "aarch64-linux"])
@pytest.mark.parametrize("group", [2, 4, 8])
@pytest.mark.parametrize(("spatial", "kernel", "strides"), [((5, 13), (3, 3), (1, 1)), ((7, 30), (1, 5), (2, 2)), ((23,), (1,), (1,))])
def test_narrow_groups(target, group, spatial, kernel, strides):
    """Channels of a group take part in each other's sums; with an epilogue, and channels that are none in the last block."""
    b = Builder()
    x = b.input("x", F32, (2, 3, *spatial, 16))
    y = b.emit("depthwise_blocked", x, b.constant(normal(3, group, *kernel, 16)), strides=strides, dilation=(1,) * len(kernel), dtype=F32)
    y = b.map("silu", b.map("add", y, b.emit("broadcast", b.constant(normal(3, 16)), shape=y.shape, axes=(1, y.rank - 1))))
    assert check_template(b.graph([y], ["y"]), {"x": normal(*x.shape)}, target) == ["depthwise"]


@pytest.mark.parametrize("group", [1, 2, 4])
def test_narrow_groups_are_those_of_the_convolution(group):
    """The meaning of turned weights, against a plain convolution of as many groups."""
    channels, x = 16, normal(1, 16, 4, 5)
    weights = normal(channels, group, 3, 2)
    turned = np.stack([weights[np.arange(channels), (np.arange(channels) + turn) % group] for turn in range(group)], axis=1)
    b = Builder()
    wide, plain = b.input("wide", F32, (1, 2, 4, 5, 8)), b.input("plain", F32, x.shape)
    packed = np.ascontiguousarray(np.moveaxis(turned.reshape(2, 8, group, 3, 2), 1, -1))
    y = b.emit("depthwise_blocked", wide, b.constant(packed), strides=(1, 1), dilation=(1, 1), dtype=F32)
    attrs = {"strides": (1, 1), "lhs_dilation": (1, 1), "dilation": (1, 1), "low": (0, 0), "high": (0, 0), "groups": channels // group}
    z = b.emit("conv", plain, b.constant(weights), **attrs, dtype=F32)
    blocks = np.ascontiguousarray(np.moveaxis(x.reshape(1, 2, 8, 4, 5), 2, -1))
    found, expected = interpret(b.graph([y, z], ["y", "z"]), {"wide": blocks, "plain": x}).values()
    np.testing.assert_allclose(np.moveaxis(found, -1, 2).reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("group", [1, 4])
def test_symbolic_groups(n, group):
    b = Builder()
    b.symbols.update(n=Range(0, None), w=Range(3, None))
    x = b.input("x", F32, (dims.symbol("n"), 2, 4, dims.symbol("w"), 8))
    y = b.emit("depthwise_blocked", x, b.constant(normal(2, group, 3, 3, 8)), strides=(1, 1), dilation=(1, 1), dtype=F32)
    check_template(b.graph([y], ["y"]), {"x": normal(n, 2, 4, 3 + 7 * n, 8)}, "x86-64-v3")


@pytest.mark.parametrize("n", [0, 1, 3])
def test_symbolic(n):
    b = Builder()
    b.symbols.update(n=Range(0, None), w=Range(3, None))
    x = b.input("x", F32, (dims.symbol("n"), 1, 4, dims.symbol("w"), 16))
    y = b.emit("depthwise_blocked", x, b.constant(normal(1, 3, 3, 16)), strides=(1, 1), dilation=(1, 1), dtype=F32)
    check_template(b.graph([y], ["y"]), {"x": normal(n, 1, 4, 3 + 4 * n, 16)})
