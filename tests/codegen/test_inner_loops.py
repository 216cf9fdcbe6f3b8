"""The inner loops that templates come down to: full register tiles of FMAs, and nothing spilled, on every target."""

import numpy as np
import pytest

from tcompile.codegen.cpu_llvm import emit_kernel
from tcompile.codegen.cpu_object import assembly
from tcompile.codegen.lower import lower
from tcompile.ir.build import Builder
from tcompile.ir.dtypes import F32, I32
from tcompile.ir.program_text import program_kernels
from tcompile.ir.target import named_target
from tcompile.pipeline import optimise
from tests.codegen.inner_loops import inner_loops

TARGETS = ("x86-64-v3", "x86-64-v4", "aarch64-linux")


def _constant(b, *shape):
    return b.constant(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def _conv(size=28, channels=64, kernel=3, stride=1, groups=1):
    def build(b, _):
        x = b.input("x", F32, (1, channels, size, size))
        low = (kernel // 2,) * 2
        attrs = {"strides": (stride,) * 2, "lhs_dilation": (1, 1), "dilation": (1, 1), "low": low, "high": low, "groups": groups}
        return b.emit("conv", x, _constant(b, 64, channels // groups, kernel, kernel), **attrs, dtype=F32)

    return build


def _pointwise_in_blocks(b, target):
    x = _conv(channels=3, stride=2)(b, target)
    attrs = {"strides": (1, 1), "lhs_dilation": (1, 1), "dilation": (1, 1), "low": (0, 0), "high": (0, 0), "groups": 1}
    return b.emit("conv", x, _constant(b, 64, 64, 1, 1), **attrs, dtype=F32)


def _conv_of_vectors(stride=1):
    """Groups of as many channels as a vector of the target has lanes: given blocked, as layouts of every target may have them."""

    def build(b, target):
        lanes = target.float_lanes
        x = b.input("x", F32, (1, 4, 30, 30, lanes))
        return b.emit(
            "conv_blocked", x, _constant(b, 4, 1, 3, 3, lanes, lanes), strides=(stride,) * 2, dilation=(1, 1), groups=4, dtype=F32
        )

    return build


def _dot(rows):
    def build(b, _):
        x = b.input("x", F32, (rows, 512))
        return b.emit("dot_general", x, _constant(b, 512, 768), batch=((), ()), contract=((1,), (0,)), dtype=F32)

    return build


def _gathered(b, _):
    rows, channels = b.input("rows", I32, (1, 300, 3)), b.input("channels", F32, (1, 96))
    shapes = (300,), (4, 1, 32), (4, 3, 32, 5, 32)
    return b.emit(
        "conv_gathered", _constant(b, 120, 32), rows, channels, channels, *(_constant(b, *shape) for shape in shapes), pool="none"
    )


# The layer, its template, and the least number of FMAs that a turn of its busiest loop holds: what hides the latency of two FMAs
# a cycle is 8 of them.
LAYERS = {
    "pointwise": (_conv(kernel=1), "pointwise", 10),
    "pointwise in blocks": (_pointwise_in_blocks, "conv", 10),
    "strided": (_conv(stride=3), "conv", 10),
    "winograd strided": (_conv(stride=2), "winograd", 8),
    "winograd": (_conv(32), "winograd", 8),
    "winograd of 49 tiles": (_conv(28), "winograd", 8),
    "winograd of few channels": (_conv(28, 24), "winograd", 8),
    "gathered": (_gathered, "gathered", 12),
    "5x5": (_conv(kernel=5, stride=2), "conv", 10),
    "stem": (_conv(112, 3, 7, 2), "conv", 8),
    "depthwise": (_conv(groups=64), "depthwise", 20),
    "depthwise strided": (_conv(groups=64, stride=2), "depthwise", 20),
    "groups of 2": (_conv(groups=32), "depthwise", 25),
    "groups of 4": (_conv(groups=16), "depthwise", 25),
    "groups of 4 strided": (_conv(groups=16, stride=2), "depthwise", 20),
    "groups of a vector": (_conv_of_vectors(), "conv", 25),
    "groups of a vector strided": (_conv_of_vectors(stride=2), "conv", 20),
    "depthwise 5x5": (_conv(kernel=5, groups=64), "depthwise", 45),
    "depthwise 5x5 strided": (_conv(kernel=5, groups=64, stride=2), "depthwise", 35),
    "depthwise 7x7": (_conv(kernel=7, groups=64), "depthwise", 40),
    "depthwise 13x13": (_conv(kernel=13, groups=64), "depthwise", 40),
    "matrix": (_dot(128), "gemm", 12),
    "vector": (_dot(1), "gemm", 7),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", TARGETS)
def test_the_busiest_loop(name, layer):
    build, template, least = LAYERS[layer]
    b, target = Builder(), named_target(name)
    graph = optimise(b.graph([build(b, target)], ["y"]), target)
    *_, kernel = (k for k in program_kernels(lower(graph, target)) if k.tags.get("template") == template)
    loops = inner_loops(assembly(emit_kernel(kernel, target), target), target.arch)
    if template == "winograd":  # its transforms have FMAs too, among more of other instructions
        loops = [loop for loop in loops if loop.fmas > 0.4 * loop.instructions]
    busiest = max(loops, key=lambda loop: (loop.fmas, -loop.instructions))
    assert busiest.fmas >= least, busiest
    # beside each FMA a broadcast, where a tile is one vector wide; its weights, and three instructions of the loop itself
    assert busiest.instructions <= 2 * busiest.fmas + 4, busiest
    assert busiest.spills == 0 and busiest.stack <= 2, busiest  # an address or two may be reloaded
