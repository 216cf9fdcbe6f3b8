"""Factors of channels in the weights of convolutions, and that the answers stay."""

import numpy as np
import pytest

from tcompile.ir.build import Builder
from tcompile.ir.dtypes import F32
from tcompile.ir.interpret import interpret
from tcompile.ir.verify import verify
from tcompile.passes.fold import FoldConstants
from tcompile.passes.gates import RULES

RNG = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def gated(images: int, side: int, axes: tuple[int, ...], *, swapped: bool = False, twice: bool = False):
    """A gated convolution, and its inputs: 3 blocks of 8 channels in, 2 out."""
    b = Builder()
    x = b.input("x", F32, (images, 3, side, side + 1, 8))
    s = b.input("s", F32, tuple(x.shape[axis] for axis in axes))
    spread = b.emit("broadcast", s, shape=x.shape, axes=axes)
    m = b.map("mul", *((spread, x) if swapped else (x, spread)))
    y = b.emit("conv_blocked", m, b.constant(normal(2, 3, 1, 1, 8, 8)), groups=1, strides=(1, 1), dilation=(1, 1), dtype=F32)
    outputs = [y, m] if twice else [y]
    return b.graph(outputs, ["y", "m"][: len(outputs)]), (normal(*x.shape), normal(*s.shape))


def input_of_conv(graph, arrays) -> str:
    """What the convolution reads after the rule: the op, or "input"."""
    got = FoldConstants(extra=RULES).apply(graph)
    verify(got)
    for name, want in interpret(graph, arrays).items():
        np.testing.assert_allclose(interpret(got, arrays)[name], want, rtol=1e-5, atol=1e-4)
    (conv,) = (node for node in got.nodes if node.op == "conv_blocked")
    made = got.producers().get(conv.inputs[0])
    return "input" if made is None else made.op


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("images", "axes"), [(1, (0, 1, 4)), (1, (1, 4)), (3, (1, 4))])
def test_factors_of_channels_move(images, axes, swapped):
    assert input_of_conv(*gated(images, 11, axes, swapped=swapped)) == "input"


@pytest.mark.parametrize(
    ("images", "side", "axes", "twice"),
    [(2, 11, (0, 1, 4), False), (1, 2, (0, 1, 4), False), (1, 11, (0, 1, 4), True), (1, 11, (0, 2, 3), False), (1, 11, (0, 1), False)],
    ids=["of several images", "more weights than input", "the product is returned", "of positions", "of blocks"],
)
def test_other_factors_stay(images, side, axes, twice):
    assert input_of_conv(*gated(images, side, axes, twice=twice)) == "map"
