"""The rewrite driver: patches, regions, termination, dead code, and that a sweep is linear."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.errors import Error
from tcompile.ir.build import Builder
from tcompile.ir.dtypes import F32
from tcompile.ir.interpret import interpret
from tcompile.ir.verify import verify
from tcompile.passes.dead_code import EliminateDeadCode
from tcompile.passes.rewrite import patch, rewrite, rule
from tests.passes.cases import graph


@rule("map")
def neg_to_abs(node, context):
    if node.attrs["fn"] != "neg":
        return None
    b = context.build(node)
    return patch("neg is abs here", b, b.map("abs", node.inputs[0]))


def test_a_patch_carries_the_source_of_what_it_replaces() -> None:
    g = rewrite(graph('inputs %x: f32[2]\n%y: f32[2] = map(%x) {fn = "neg"} from "Neg_3"\nreturn %y'), [neg_to_abs])
    assert [(node.attrs["fn"], node.source) for node in g.nodes] == [("abs", ("Neg_3",))]
    assert g.output_names == ("y",)


def test_regions_are_rewritten_too() -> None:
    g = rewrite(
        graph("""inputs %c: bool[], %x: f32[2]
        %y: f32[2] = if(%c, %x) {shape_symbols = ()}
        region "then" {
          inputs %p: f32[2]
          %q: f32[2] = map(%p) {fn = "neg"}
          return %q
        }
        region "else" {
          inputs %r: f32[2]
          return %r
        }
        return %y"""),
        [neg_to_abs],
    )
    verify(g)
    assert g.nodes[0].regions[0].nodes[0].attrs["fn"] == "abs"


def test_rules_that_never_end_are_named() -> None:
    @rule("map")
    def forth_and_back(node, context):
        b = context.build(node)
        return patch("forth and back", b, b.map("neg" if node.attrs["fn"] == "abs" else "abs", node.inputs[0]))

    with pytest.raises(Error, match=r"does not end.*forth and back"):
        rewrite(graph('inputs %x: f32[2]\n%y: f32[2] = map(%x) {fn = "neg"}\nreturn %y'), [forth_and_back])


def test_a_patch_of_another_type_is_refused() -> None:
    @rule("map")
    def widen(node, context):
        b = context.build(node)
        return patch("wider", b, b.reshape(node.inputs[0], (1, 2)))

    with pytest.raises(Error, match="'wider' replaces map of type"):
        rewrite(graph('inputs %x: f32[2]\n%y: f32[2] = map(%x) {fn = "neg"}\nreturn %y'), [widen])


def test_uses_are_counted_through_patches() -> None:
    seen = []

    @rule("reduce")
    def watch(node, context):
        seen.append(context.used_once(node.inputs[0]))
        return None

    body = """inputs %x: f32[2]
    %a: f32[2] = map(%x) {fn = "neg"}
    %b: f32[] = reduce(%a) {fn = "add", axes = (0,)}
    %c: f32[] = reduce(%a) {fn = "max", axes = (0,)}
    return %b, %c"""
    rewrite(graph(body), [neg_to_abs, watch])
    assert seen == [False] * 4


def test_dead_nodes_go_but_what_binds_a_live_symbol_stays() -> None:
    g = EliminateDeadCode().apply(
        graph("""symbols m in 0..k, k in 0.., j in 0..
        inputs %a: i64[], %b: i64[], %c: i64[]
        bind_dim(%a) {symbol = "k"}
        bind_dim(%b) {symbol = "m"}
        bind_dim(%c) {symbol = "j"}
        %i: i64[m] = iota {shape = (m,), axis = 0, dtype = i64}
        %dead: i64[j] = iota {shape = (j,), axis = 0, dtype = i64}
        return %i""")
    )
    assert [node.attrs.get("symbol", node.op) for node in g.nodes] == ["k", "m", "iota"]  # k is in the range of m


@pytest.mark.parametrize("count", [100, 3000])
def test_a_sweep_offers_each_node_once(count: int) -> None:
    offered = []

    @rule("map")
    def watched(node, context):
        offered.append(node)
        return neg_to_abs(node, context)

    b = Builder("g")
    value = b.input("x", F32, (2,))
    for _ in range(count):
        value = b.map("neg", value)
    rewritten = rewrite(b.graph([value], ["y"]), [watched])
    assert interpret(rewritten, [-np.ones(2, np.float32)])["y"].tolist() == [1, 1]
    assert len(offered) == 3 * count  # the node, its replacement, and once more in the sweep that changes nothing
