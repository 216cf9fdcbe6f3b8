"""Fusion: which nodes share a kernel, and that the answers stay."""

import numpy as np
import pytest

from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.dtypes import F32, I64
from tcompile.ir.graph import Graph
from tcompile.ir.interpret import interpret
from tcompile.ir.target import named_target
from tcompile.ir.terms import Term
from tcompile.ir.verify import verify
from tcompile.passes.canonicalise import Canonicalise
from tcompile.passes.fuse import Fuse

RNG = np.random.default_rng(1)


def fused_kinds(graph: Graph, **arrays: np.ndarray) -> list[str]:
    """The kernels after fusion (constants left out), after checking types and answers."""
    fused = Fuse(named_target("x86-64-v3")).apply(graph)
    verify(fused)
    want, got = interpret(graph, arrays), interpret(fused, arrays)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
    return [node.attrs["kind"] if node.op == "fused" else node.op for node in fused.nodes if node.op != "constant"]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def softmax(x: Term) -> Term:
    e = (x - x.reduce("max", [x.rank - 1], keepdims=True)).map("exp")
    return e / e.sum(e.rank - 1, keepdims=True)


def layer_norm(x: Term, scale: np.ndarray) -> Term:
    centred = x - x.mean(x.rank - 1, keepdims=True)
    variance = (centred * centred).mean(x.rank - 1, keepdims=True)
    return centred * (variance + 1e-5).map("rsqrt") * scale


def test_elementwise_chain_is_one_map():
    b = Builder()
    x = Term(b, b.input("x", F32, (3, 4)))
    y = ((x + 1.0) * x).map("tanh")
    assert fused_kinds(b.graph([y.value], ["y"]), x=normal(3, 4)) == ["map"]


def test_softmax_with_mask_and_scale_is_one_kernel():
    b = Builder()
    x, mask = Term(b, b.input("x", F32, (2, 3, 5))), Term(b, b.input("mask", F32, (2, 1, 5)))
    y = softmax(x * 0.5 + mask)
    assert fused_kinds(b.graph([y.value], ["y"]), x=normal(2, 3, 5), mask=normal(2, 1, 5)) == ["rows"]


def test_layer_norm_is_one_kernel():
    b = Builder()
    x = Term(b, b.input("x", F32, (2, 3, 8)))
    y = layer_norm(x, normal(8))
    assert fused_kinds(b.graph([y.value], ["y"]), x=normal(2, 3, 8)) == ["rows"]


def test_symbolic_layer_norm_is_one_kernel():
    b = Builder()
    b.symbols["n"] = Range(0, None)
    x = Term(b, b.input("x", F32, (dims.symbol("n"), 3, 8)))
    y = layer_norm(x, normal(8))
    assert fused_kinds(b.graph([y.value], ["y"]), x=normal(2, 3, 8)) == ["rows"]


def test_contraction_takes_bias_activation_and_residual():
    b = Builder()
    x, r = Term(b, b.input("x", F32, (2, 3, 4))), Term(b, b.input("r", F32, (2, 3, 5)))
    w = Term(b, b.constant(normal(4, 5)))
    y = (x.dot(w, contract=((2,), (0,))) + normal(5)).map("tanh") + r
    assert fused_kinds(b.graph([y.value], ["y"]), x=normal(2, 3, 4), r=normal(2, 3, 5)) == ["dot"]


def test_of_two_contractions_the_later_takes_the_sum():
    b = Builder()
    x = Term(b, b.input("x", F32, (3, 4)))
    y = x.dot(Term(b, b.constant(normal(4, 5))), contract=((1,), (0,))) + x.dot(Term(b, b.constant(normal(4, 5))), contract=((1,), (0,)))
    assert fused_kinds(b.graph([y.value], ["y"]), x=normal(3, 4)) == ["dot", "dot"]


def test_value_with_two_kernels_is_stored_once():
    b = Builder()
    x, y = Term(b, b.input("x", F32, (3, 4))), Term(b, b.input("y", F32, (3, 4)))
    total = (x + y).map("exp")
    graph = b.graph([(total * 2.0).value, softmax(total).value], ["a", "b"])
    assert sorted(fused_kinds(graph, x=normal(3, 4), y=normal(3, 4))) == ["map", "map", "rows"]


def test_cheap_value_is_computed_by_both_readers():
    b = Builder()
    x = Term(b, b.input("x", F32, (3, 4)))
    shifted = x + 1.0
    graph = b.graph([shifted.map("exp").value, shifted.map("tanh").value], ["a", "b"])
    assert fused_kinds(graph, x=normal(3, 4)) == ["map", "map"]


def test_expensive_producer_is_not_recomputed_along_a_broadcast():
    b = Builder()
    x, y = Term(b, b.input("x", F32, (64,))), Term(b, b.input("y", F32, (64, 64)))
    graph = b.graph([(x.map("exp") + y).value], ["y"])
    assert fused_kinds(graph, x=normal(64), y=normal(64, 64)) == ["map", "map"]


def test_cheap_producer_follows_a_broadcast():
    b = Builder()
    x, y = Term(b, b.input("x", F32, (64,))), Term(b, b.input("y", F32, (64, 64)))
    graph = b.graph([((x + 1.0) + y).value], ["y"])
    assert fused_kinds(graph, x=normal(64), y=normal(64, 64)) == ["map"]


def test_reshape_of_a_stored_value_is_no_kernel():
    b = Builder()
    x = Term(b, b.input("x", F32, (3, 4)))
    y = x.reshape(12).map("exp").reshape(2, 6)
    assert fused_kinds(b.graph([y.value], ["y"]), x=normal(3, 4)) == ["reshape", "map", "reshape"]


def test_reduction_of_leading_axes_stays_alone():
    b = Builder()
    x = Term(b, b.input("x", F32, (3, 4)))
    graph = b.graph([(x.map("exp").sum(0) + 1.0).value], ["y"])
    assert fused_kinds(graph, x=normal(3, 4)) == ["map", "reduce", "map"]


def test_sums_over_other_rows_are_not_mixed_in():
    """The column sums of x are no row value of a kernel over its rows."""
    b = Builder()
    x = Term(b, b.input("x", F32, (4, 4)))
    total = x.sum(1, keepdims=True).transpose(1, 0)
    graph = b.graph([(x / total).value], ["y"])
    assert [kind for kind in fused_kinds(graph, x=normal(4, 4) + 9) if kind != "reshape"] == ["rows", "map"]


class Heads:
    """q, k, v of [2, 3, 5, 4] and the probabilities between them."""

    def __init__(self) -> None:
        self.b = Builder()
        self.q, self.k, self.v = (Term(self.b, self.b.input(name, F32, (2, 3, 5, 4))) for name in "qkv")
        self.scores = self.q.dot(self.k, batch=((0, 1), (0, 1)), contract=((3,), (3,))) * 0.5

    def mixed(self, p: Term) -> Term:
        return p.dot(self.v, batch=((0, 1), (0, 1)), contract=((3,), (2,)))

    def kinds(self, *outputs: Term, **arrays: np.ndarray) -> list[str]:
        graph = self.b.graph([term.value for term in outputs], [f"y{k}" for k in range(len(outputs))])
        return fused_kinds(Canonicalise().apply(graph), **{name: normal(2, 3, 5, 4) for name in "qkv"}, **arrays)


def test_attention_is_one_kernel_with_its_mask_and_epilogue():
    heads = Heads()
    mask = Term(heads.b, heads.b.input("mask", F32, (2, 1, 1, 5)))
    y = heads.mixed(softmax(heads.scores + mask)).transpose(0, 2, 1, 3) + 1.0
    assert heads.kinds(y, mask=normal(2, 1, 1, 5)) == ["reshape", "attention"]


def test_probabilities_that_are_wanted_are_stored():
    heads = Heads()
    p = softmax(heads.scores)
    assert heads.kinds(heads.mixed(p), p) == ["dot", "rows", "dot"]


def test_a_mask_that_takes_work_is_made_once():
    heads = Heads()
    mask = Term(heads.b, heads.b.input("mask", F32, (1, 1, 5, 5)))
    assert heads.kinds(heads.mixed(softmax(heads.scores + mask.map("tanh"))), mask=normal(1, 1, 5, 5)) == ["map", "reshape", "attention"]


def test_a_softmax_over_queries_is_no_attention():
    heads = Heads()
    p = softmax(heads.scores.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    assert "attention" not in heads.kinds(heads.mixed(p))


def test_kernel_stands_after_the_symbol_it_uses():
    b = Builder()
    x = Term(b, b.input("x", F32, (6,)))
    count = b.input("count", I64, ())
    early = x.map("exp")
    n = b.bind_dim(count, "n", 0, 6)
    y = early.part(0, 0, n) * 2.0
    graph = b.graph([y.value], ["y"])
    assert fused_kinds(graph, x=normal(6), count=np.array(4)) == ["bind_dim", "map"]


@pytest.mark.parametrize("n", [0, 3])
def test_loop_bodies_are_fused_too(n):
    b = Builder()
    x = b.input("x", F32, (4,))
    trip, always = b.constant(n, I64), b.constant(True)
    b.symbols["turn"] = Range(0, n)
    body = b.region("body")
    body.input("i", I64, ())
    carried = Term(body, body.input("c", F32, (4,)))
    out = (carried * 0.5).map("tanh")
    region = body.graph([body.constant(True), out.value])
    attrs = {"carried": 1, "trip": n, "counter": "turn", "always": True, "scans": 0, "scan_extent": 0}
    (y,) = b.emit_all("loop", (trip, always, x), attrs, (region,))
    graph = b.graph([y], ["y"])
    fused = Fuse(named_target("x86-64-v3")).apply(graph)
    assert [node.op for node in fused.walk() if node.op in ("fused", "map")].count("fused") == 1
    assert fused_kinds(graph, x=normal(4)) == ["loop"]


@pytest.mark.parametrize("names", [("o0", "c0"), ("crop0", "k0"), ("c1", "o1")])
def test_extents_may_be_called_like_anything(names):
    b = Builder()
    b.symbols.update({name: Range() for name in names})
    x = Term(b, b.input("x", F32, (*map(dims.symbol, names), 5)))
    part = x.part(0, 0, dims.symbol(names[0]) - 1)
    y = softmax(part * 0.5)
    assert fused_kinds(b.graph([y.value], ["y"]), x=normal(3, 4, 5)) == ["rows"]


def test_a_sum_that_is_gathered_from_is_a_kernel_of_its_own():
    b = Builder()
    b.symbols["count"] = Range(0, 9)
    x = Term(b, b.input("x", F32, (1, dims.symbol("count"))))
    (found,) = b.emit_all("gather_nd", (x.sum(1).value, b.constant(np.array([[0]]))), {"batch": 0}, ())
    assert fused_kinds(b.graph([found], ["y"]), x=normal(1, 5)) == ["rows", "map"]


@pytest.mark.parametrize(("target", "kernels"), [("x86-64-v3", ["conv", "map"]), ("cuda-sm90", ["conv"])])
def test_what_follows_a_plain_convolution_joins_it_where_no_layout_is_blocked(target, kernels):
    b = Builder()
    x, w = b.input("x", F32, (1, 3, 5, 5)), b.input("w", F32, (4, 3, 3, 3))
    attrs = {"strides": (1, 1), "lhs_dilation": (1, 1), "dilation": (1, 1), "low": (0, 0), "high": (0, 0), "groups": 1}
    y = Term(b, b.emit("conv", x, w, **attrs, dtype=F32)).map("exp")
    fused = Fuse(named_target(target)).apply(b.graph([y.value], ["y"]))
    assert [node.attrs["kind"] if node.op == "fused" else node.op for node in fused.nodes] == kernels
