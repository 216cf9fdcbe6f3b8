"""Sums of rows join the kernels of depthwise convolutions: which do."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.ir.build import Builder
from tcompile.ir.dtypes import F16, F32
from tcompile.ir.interpret import interpret
from tcompile.ir.target import named_target
from tcompile.ir.verify import verify
from tcompile.passes.fuse import Fuse
from tcompile.passes.fuse_sums import SumRows

RNG = np.random.default_rng(5)


def kernels(dtype=F32, axes=(2, 3), fn="add", border=False):
    """A depthwise convolution whose result is reduced, after the passes: the graph before, the graph after."""
    b = Builder()
    x = b.input("x", dtype, (2, 3, 7, 5, 8))
    w = b.constant(RNG.standard_normal((3, 3, 3, 8)).astype(dtype.numpy))
    y = b.map("silu", b.emit("depthwise_blocked", x, w, strides=(1, 1), dilation=(1, 1), dtype=dtype))
    if border:
        around = (0, 0, 1, 1, 0)
        y = b.emit("pad", y, b.constant(np.zeros((), dtype.numpy)), mode="constant", low=around, high=around)
    graph = b.graph([y, b.emit("reduce", y, fn=fn, axes=axes)], ["y", "s"])
    summed = SumRows().apply(Fuse(named_target("x86-64-v3")).apply(graph))
    verify(summed)
    return graph, summed


def test_the_kernel_gives_sums_of_rows_which_are_summed_again():
    graph, summed = kernels()
    (kernel,) = [node for node in summed.nodes if node.op == "fused"]
    (total,) = [node for node in summed.nodes if node.op == "reduce"]
    assert [value.shape for value in kernel.outputs] == [(2, 3, 5, 3, 8), (2, 3, 5, 8)]
    assert total.inputs == kernel.outputs[1:] and total.attrs["axes"] == (2,)
    x = RNG.standard_normal((2, 3, 7, 5, 8)).astype(np.float32)
    want, got = interpret(graph, {"x": x}), interpret(summed, {"x": x})
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("other", [{"dtype": F16}, {"axes": (3,)}, {"axes": (2, 3, 4)}, {"fn": "max"}, {"border": True}], ids=str)
def test_other_reductions_stay(other):
    _, summed = kernels(**other)
    assert all(len(node.outputs) == 1 for node in summed.nodes)
