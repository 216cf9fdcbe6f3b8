"""The depthwise template against NumPy."""

import numpy as np
import pytest

from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.dtypes import F32
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


@pytest.mark.parametrize("n", [0, 1, 3])
def test_symbolic(n):
    b = Builder()
    b.symbols.update(n=Range(0, None), w=Range(3, None))
    x = b.input("x", F32, (dims.symbol("n"), 1, 4, dims.symbol("w"), 16))
    y = b.emit("depthwise_blocked", x, b.constant(normal(1, 3, 3, 16)), strides=(1, 1), dilation=(1, 1), dtype=F32)
    check_template(b.graph([y], ["y"]), {"x": normal(n, 1, 4, 3 + 4 * n, 16)})
