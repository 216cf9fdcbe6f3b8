"""The template of convolutions of rows of a table against NumPy: any sizes, both results, extremes with NaN, bad rows, symbolic images."""

import numpy as np
import pytest

from tcompile.ir.build import Builder
from tcompile.ir.dtypes import F32, I32
from tests.codegen.template_runs import check_template

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def gathered(entries, depth, positions, parts, taps, blocks, block, pool, images=2, wide_bias=True, dtype=I32):
    """A graph of one conv_gathered and inputs for it."""
    b, channels = Builder(), parts * depth
    rows = b.input("rows", dtype, (images, positions, parts))
    scale, shift = (b.input(name, F32, (images, channels)) for name in ("scale", "shift"))
    gain = b.input("gain", F32, (positions,))
    count = positions - taps + 1 if wide_bias else 1
    constants = [b.constant(normal(blocks, count, block)), b.constant(normal(blocks, parts, depth, taps, block))]
    y = b.emit("conv_gathered", b.constant(normal(entries, depth)), rows, scale, shift, gain, *constants, pool=pool)
    number = images if isinstance(images, int) else 3
    arrays = {
        "rows": RNG.integers(0, entries, (number, positions, parts)).astype(dtype.numpy),
        "scale": normal(number, channels),
        "shift": normal(number, channels),
        "gain": normal(positions),
    }
    return b.graph([y], ["y"]), arrays


@pytest.mark.parametrize("pool", ["none", "extremes"])
@pytest.mark.parametrize(
    ("entries", "depth", "positions", "parts", "taps", "blocks", "block", "target"),
    [
        (1, 1, 1, 1, 1, 1, 16, None),
        (13, 7, 11, 3, 5, 2, 16, None),
        (6, 1, 9, 1, 9, 1, 8, None),
        (258, 5, 31, 4, 2, 1, 16, None),
        (17, 3, 6, 2, 6, 3, 16, None),
        (5, 3, 7, 2, 3, 2, 32, "x86-64-v4"),
        (7, 2, 5, 1, 2, 1, 8, "aarch64-linux"),
    ],
)
def test_sizes(entries, depth, positions, parts, taps, blocks, block, target, pool):
    graph, arrays = gathered(entries, depth, positions, parts, taps, blocks, block, pool)
    assert check_template(graph, arrays, target) == ["gathered", "gathered"]
