"""The Graph IR as text: what prints, parses back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from tcompile.errors import InvalidModelError
from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.text import constants, parse_graph, print_graph
from tcompile.ir.verify import verify

ZOO = """graph "zoo" {
  symbols n in 1..64, m in 0.., k in 0..floordiv(n, 2) + 1, t in 0.., e in 0..
  inputs %x: f32[n, 4], %"a b:0": i64[], %yes: bool[]
  bind_dim(%"a b:0") {symbol = "m"} from "NonZero_1", "Shape \\"2\\""
  %i: i32[m] = iota {shape = (m,), axis = 0, dtype = i32}
  %d: i64[2] = dim {exprs = (n, 2*m*n + floordiv(m, 3) - 1), shape = (2,)}
  %c: f16[3] = constant {value = (1.5, nan, -inf)}
  %s: f32[64, 64] = constant {value = splat -0.0}
  %w: f32[4] = constant {value = (0.125, 2.0, 3.0, -4.0)}
  %y: f32[k, 4] = if(%yes, %x) {shape_symbols = ((0, 0, "k"),)}
  region "then" {
    inputs %p: f32[n, 4]
    %q: f32[1, 4] = slice(%p) {start = (n - 1, 0), size = (1, 4), step = (-1, 1)}
    return %q
  }
  region "else" {
    inputs %p~1: f32[n, 4]
    return %p~1 as "p"
  }
  %z: f32[4], %st: f32[e, 4] = loop(%"a b:0", %yes, %w) {carried = 1, trip = none, counter = "t", @more}
  region "body" {
    inputs %turn: i64[], %v: f32[4]
    %go: bool[] = constant {value = (true,)}
    return %go, %v, %v
  }
  return %y as "out", %z, %st, %i, %d, %c, %s
}
""".replace("@more", "always = false, scans = 1, scan_extent = e")


def test_a_graph_with_everything_prints_as_it_was_written() -> None:
    graph = parse_graph(ZOO)
    verify(graph)
    assert print_graph(graph) == ZOO


def test_comments_are_skipped() -> None:
    assert print_graph(parse_graph(f"; a graph\n{ZOO}")) == ZOO


@given(st.data())
def test_every_constant_keeps_its_bits(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([dtypes.F32, dtypes.F64, dtypes.F16, dtypes.I64, dtypes.U8, dtypes.BOOL]))
    array = data.draw(arrays(dtype.numpy, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)))
    b = Builder("g")
    graph = b.graph([b.constant(array)])
    (node,) = parse_graph(print_graph(graph), constants(graph)).nodes
    got = node.attrs["value"]
    assert got.dtype == array.dtype and got.shape == array.shape
    if dtype.is_float:
        np.testing.assert_array_equal(np.signbit(got[~np.isnan(got)]), np.signbit(array[~np.isnan(array)]))
    np.testing.assert_array_equal(got, array)


def test_narrow_types_have_text_too() -> None:
    b = Builder("g")
    signed = [dtype for dtype in dtypes.ALL if dtype.kind == "i" or (dtype.is_float and dtype != dtypes.F8E8M0)]
    values = [b.constant(np.array([1, -2]), dtype) for dtype in signed]
    text = print_graph(b.graph(values))
    assert print_graph(parse_graph(text)) == text


def test_equal_names_are_told_apart() -> None:
    b = Builder("g")
    x, y, z = (b.input("x", dtypes.F32, (dims.symbol("n"),)) for _ in range(3))
    b.symbols["n"] = dims.Range(0, None)
    text = print_graph(b.graph([x, y, z], ["a", "b", "c"]))
    assert "%x, %x~1, %x~2" in text.replace(": f32[n]", "") and print_graph(parse_graph(text)) == text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('%y: f32[2] = map(%z) {fn = "neg"}', "%z is not defined"),
        ('%y: f32[2] = map(%y) {fn = "neg"}', "%y is not defined"),
        ('%y: f33[2] = map(%x) {fn = "neg"}', "f33 is no element type"),
        ("%y: f32[2] = map(%x) {fun = 1}", "map has no attribute fun"),
        ("%y: f32[2] = frobnicate(%x)", "frobnicate"),
        ("%y: f32[9999] = constant {value = #0123456789abcdef}", "not among those given"),
        ("%y: f32[2] = constant {value = (1.0,)}", "expected 2 elements, got 1"),
    ],
)
def test_an_error_names_the_line(line: str, words: str) -> None:
    with pytest.raises(InvalidModelError, match=words) as caught:
        parse_graph(f'graph "g" {{\n  inputs %x: f32[2]\n  {line}\n  return %x\n}}')
    assert "line 3" in str(caught.value) or "core op" in str(caught.value)
