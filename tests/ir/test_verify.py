"""The verifier: one broken graph per invariant; the message stands under the offending line."""

from __future__ import annotations

import pytest

from tcompile.ir.build import Builder
from tcompile.ir.dtypes import F32
from tcompile.ir.graph import Graph
from tcompile.ir.text import parse_graph
from tcompile.ir.verify import VerifyError, verify

BROKEN = {
    "an output type that is not the op's": (
        'inputs %x: f32[n]\n%y: f32[n, 1] = map(%x) {fn = "neg"}\nreturn %y',
        "types: map gives (f32[n]), but the node has (f32[n, 1])",
    ),
    "an operand of a dtype the op refuses": ('inputs %x: i32[n]\n%y: i32[n] = map(%x) {fn = "exp"}\nreturn %y', "map exp: expected"),
    "a symbol that nothing binds": (
        "inputs %x: f32[n]\n%y: i64[m] = iota {shape = (m,), axis = 0, dtype = i64}\nreturn %y",
        "symbols: m in the attribute shape is not bound above",
    ),
    "a symbol that is bound only below": (
        'inputs %k: i64[]\n%y: i64[m] = iota {shape = (m,), axis = 0, dtype = i64}\nbind_dim(%k) {symbol = "m"}\nreturn %y',
        "symbols: m in the attribute shape is not bound above",
    ),
    "a symbol that is bound twice": (
        'inputs %k: i64[]\nbind_dim(%k) {symbol = "m"}\nbind_dim(%k) {symbol = "m"}\nreturn %k',
        "symbols: m is bound twice",
    ),
    "a symbol without a range": ('inputs %k: i64[]\nbind_dim(%k) {symbol = "q"}\nreturn %k', "symbols: q has no range"),
    "a symbol that only a region binds": (
        """inputs %c: bool[], %k: i64[]
        %r: i64[] = if(%c, %k) {shape_symbols = ()}
        region "then" {
          inputs %p: i64[]
          bind_dim(%p) {symbol = "m"}
          return %p
        }
        region "else" {
          inputs %q: i64[]
          return %q
        }
        %y: i64[m] = iota {shape = (m,), axis = 0, dtype = i64}
        return %y""",
        "symbols: m in the attribute shape is not bound above",
    ),
    "an empty range": ("inputs %x: f32[w]\nreturn %x", "symbols: the range of w is empty: 5..4"),
    "a negative extent": ("inputs %x: f32[-1]\nreturn %x", "extents: x has a negative extent"),
    "two outputs of one name": ('inputs %x: f32[n]\nreturn %x as "a", %x as "a"', "outputs: two of the names a, a are equal"),
    "a region that takes other types than the node": (
        """inputs %c: bool[], %k: i64[]
        %r: i64[] = if(%c, %k) {shape_symbols = ()}
        region "then" {
          inputs %p: i64[]
          return %p
        }
        region "else" {
          inputs %q: i32[]
          %s: i64[] = convert(%q) {dtype = i64, saturate = true}
          return %s
        }
        return %r""",
        "expected the region else to take (i64[]), got (i32[])",
    ),
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_broken(sentence: str) -> None:
    body, words = BROKEN[sentence]
    graph = parse_graph(f'graph "g" {{\nsymbols n in 0..9, m in 0.., w in 5..4\n{body}\n}}')
    with pytest.raises(VerifyError) as caught:
        verify(graph)
    assert words in str(caught.value)


def test_the_message_stands_under_the_line() -> None:
    body = 'inputs %x: f32[2]\n%a: f32[2] = map(%x) {fn = "neg"}\n%b: f32[3] = map(%a) {fn = "neg"}\nreturn %b'
    graph = parse_graph(f'graph "g" {{\n{body}\n}}')
    with pytest.raises(VerifyError) as caught:
        verify(graph)
    lines = str(caught.value).split("\n")
    at = next(k for k, line in enumerate(lines) if "%b: f32[3]" in line)
    assert lines[at + 1].startswith("  ^ types:")


def test_a_value_of_another_graph_is_not_visible() -> None:
    b, other = Builder("g"), Builder("other")
    x, y = b.input("x", F32, (2,)), other.input("y", F32, (2,))
    z = b.map("add", x, y)
    with pytest.raises(VerifyError, match="dominance: operand y is not defined above"):
        verify(b.graph([z]))


def test_a_node_that_stands_twice_defines_twice() -> None:
    b = Builder("g")
    y = b.map("neg", b.input("x", F32, (2,)))
    graph = b.graph([y])
    with pytest.raises(VerifyError, match=r"dominance: .* is defined twice"):
        verify(Graph("g", graph.inputs, graph.outputs, graph.nodes * 2, {}, ("y",)))
