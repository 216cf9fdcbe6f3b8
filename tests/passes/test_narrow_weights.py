"""Constant factors as narrow as the precision: which, and what products of them give."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tcompile.ir.build import Builder
from tcompile.ir.dtypes import BF16, F16, F32, F64
from tcompile.ir.graph import Graph
from tcompile.ir.interpret import interpret
from tcompile.ir.target import named_target
from tcompile.ir.verify import verify
from tcompile.passes.narrow_weights import NarrowWeights
from tcompile.pipeline import passes

RNG = np.random.default_rng(0)
GPU = named_target("cuda-sm90")
ONES = {"strides": (1, 1), "lhs_dilation": (1, 1), "dilation": (1, 1), "low": (0, 0), "high": (0, 0)}


def product(dtype=F32, *, constant: bool = True) -> Graph:
    b = Builder()
    x, values = b.input("x", dtype, (3, 40)), RNG.standard_normal((40, 5)).astype(dtype.numpy)
    w = b.constant(values) if constant else b.input("w", dtype, values.shape)
    return b.graph([b.emit("dot_general", x, w, batch=((), ()), contract=((1,), (0,)), dtype=dtype)], ["y"])


def convolution(groups: int) -> Graph:
    b = Builder()
    x = b.input("x", F32, (1, 16, 5, 5))
    w = b.constant(RNG.standard_normal((16, 16 // groups, 3, 3)).astype(np.float32))
    return b.graph([b.emit("conv", x, w, **ONES, groups=groups, dtype=F32)], ["y"])


def factors(graph: Graph) -> list:
    (node,) = [node for node in graph.nodes if node.op != "constant"]
    return [value.dtype for value in node.inputs]


@pytest.mark.parametrize(("precision", "kind", "bound"), [("f16", F16, 2.0**-11), ("bf16", BF16, 2.0**-8)])
@pytest.mark.parametrize("graph", [product(), convolution(1)], ids=["product", "convolution"])
def test_constants_are_rounded_once(graph, precision, kind, bound):
    narrow = NarrowWeights(replace(GPU, precision=precision)).apply(graph)
    verify(narrow)
    assert factors(narrow) == [F32, kind]
    x = {"x": RNG.standard_normal(graph.inputs[0].shape).astype(np.float32)}
    got, expected = interpret(narrow, x)["y"], interpret(graph, x)["y"]
    assert got.dtype == np.float32
    # each weight is off by half a unit of its last place at most, and sums are of 144 products near 1 at most
    np.testing.assert_allclose(got, expected, rtol=0, atol=bound * 144)
    assert np.abs(got - expected).max() > 0


@pytest.mark.parametrize(
    ("graph", "precision"),
    [
        (product(), "f32"),
        (product(), "tf32"),
        (product(F64), "f16"),
        (product(constant=False), "f16"),
        (convolution(16), "f16"),
    ],
    ids=["exact", "tf32", "f64", "factors of the run", "depthwise"],
)
def test_others_stay(graph, precision):
    assert factors(NarrowWeights(replace(GPU, precision=precision)).apply(graph)) == factors(graph)


def test_it_runs_after_the_last_folding():
    names = [step.name for step in passes(GPU)]
    assert names.index("fold-packed") < names.index("narrow-weights") < names.index("weights-by-taps") < names.index("fuse")
