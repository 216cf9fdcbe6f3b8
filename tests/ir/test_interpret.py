"""The interpreter: symbols from input shapes, control flow, messages, and the f64 reference."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.errors import ExecutionError, InputError
from tcompile.ir.interpret import interpret
from tcompile.ir.text import parse_graph
from tcompile.ir.verify import verify


def graph(body: str):
    parsed = parse_graph(f'graph "g" {{\nsymbols n in 1..8, m in 0..5, t in 0.., e in 0.., a in 0.., z in 0..\n{body}\n}}')
    verify(parsed)
    return parsed


def test_a_symbol_that_occurs_twice_must_agree() -> None:
    g = graph('inputs %x: f32[n], %y: f32[n]\n%s: f32[n] = map(%x, %y) {fn = "add"}\nreturn %s')
    assert interpret(g, [np.ones(3, np.float32)] * 2)["s"].tolist() == [2, 2, 2]
    with pytest.raises(InputError, match="n is 2, but another input has 3"):
        interpret(g, [np.ones(3, np.float32), np.ones(2, np.float32)])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": np.ones(9, np.float32)}, "the dimension n is 9, outside 1..8"),
        ({"x": np.ones(3)}, "input x: expected f32, got f64"),
        ({"x": np.ones((3, 1), np.float32)}, "expected rank 1"),
        ({"y": np.ones(3, np.float32)}, "expected the inputs x, got y"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        interpret(graph("inputs %x: f32[n]\nreturn %x"), inputs)


def test_an_extent_that_is_an_expression_is_checked() -> None:
    g = graph("inputs %x: f32[n], %y: f32[2*n + 1]\nreturn %y")
    assert interpret(g, [np.ones(3, np.float32), np.ones(7, np.float32)])["y"].size == 7
    with pytest.raises(InputError, match="expected an extent of 2\\*n \\+ 1 = 7, got 6"):
        interpret(g, [np.ones(3, np.float32), np.ones(6, np.float32)])


def test_a_bound_dimension_has_its_range() -> None:
    g = graph("""inputs %k: i64[]
    bind_dim(%k) {symbol = "m"} from "Range_7"
    %y: i64[m] = iota {shape = (m,), axis = 0, dtype = i64}
    return %y""")
    assert interpret(g, [np.array(4)])["y"].tolist() == [0, 1, 2, 3]
    with pytest.raises(ExecutionError, match=r"bind_dim \(Range_7\): the dimension m is 6, outside 0..5"):
        interpret(g, [np.array(6)])


LOOP = """inputs %trip: i64[], %go: bool[], %x: f32[2]
%v: f32[2], %s: f32[e, 2] = loop(%trip, %go, %x) {carried = 1, trip = none, counter = "t", always = false, scans = 1, scan_extent = e}
region "body" {
  inputs %i: i64[], %c: f32[2]
  %d: f32[2] = map(%c, %c) {fn = "add"}
  %hundred: f32[] = constant {value = (100.0,)}
  %top: f32[] = reduce(%d) {fn = "max", axes = (0,)}
  %more: bool[] = map(%top, %hundred) {fn = "lt"}
  return %more, %d, %c
}
return %v, %s"""


@pytest.mark.parametrize(("trip", "go", "turns"), [(3, True, 3), (-1, True, 7), (5, False, 0), (0, True, 0)])
def test_a_loop_runs_to_its_trip_or_its_condition(trip: int, go: bool, turns: int) -> None:
    outputs = interpret(graph(LOOP), [np.array(trip), np.array(go), np.array([1, 0.5], np.float32)])
    assert outputs["v"].tolist() == [2.0**turns, 2.0 ** (turns - 1)] and outputs["s"].shape == (turns, 2)


def test_a_carried_value_may_grow() -> None:
    g = graph(
        """inputs %trip: i64[], %x: f32[1]
    %yes: bool[] = constant {value = (true,)}
    %v: f32[z] = loop(%trip, %yes, %x) {carried = 1, trip = none, counter = "t", always = true, scans = 0, @shapes}
    region "body" {
      inputs %i: i64[], %c: f32[a]
      %yes2: bool[] = constant {value = (true,)}
      %d: f32[2*a] = concat(%c, %c) {axis = 0}
      return %yes2, %d
    }
    return %v""".replace("@shapes", 'shape_symbols = ((0, 0, "a", "z"),)')
    )
    assert interpret(g, [np.array(3), np.ones(1, np.float32)])["v"].shape == (8,)


def test_an_error_in_a_region_names_the_inner_node_once() -> None:
    g = graph("""inputs %c: bool[], %x: f32[2], %k: i64[1]
    %y: f32[1] = if(%c, %x, %k) {shape_symbols = ()} from "If_0"
    region "then" {
      inputs %p: f32[2], %q: i64[1]
      %r: f32[1] = gather(%p, %q) {axis = 0} from "Gather_1"
      return %r
    }
    region "else" {
      inputs %u: f32[2], %w: i64[1]
      %s: f32[1] = slice(%u) {start = (0,), size = (1,), step = (1,)}
      return %s
    }
    return %y""")
    with pytest.raises(ExecutionError) as caught:
        interpret(g, [np.array(True), np.ones(2, np.float32), np.array([2])])
    assert str(caught.value) == "gather (Gather_1): gather: index 2 is outside [0, 2)"


def test_float64_widens_every_float_but_not_the_meaning_of_a_bitcast() -> None:
    g = graph("""inputs %x: f32[2]
    %k: f32[] = constant {value = (0.10000000149011612,)}
    %b: f32[2] = broadcast(%k) {shape = (2,), axes = ()}
    %h: bf16[2] = convert(%x) {dtype = bf16, saturate = true}
    %f: f32[2] = convert(%h) {dtype = f32, saturate = true}
    %y: f32[2] = map(%f, %b) {fn = "add"}
    %i: i32[2] = bitcast(%x) {dtype = i32}
    return %y, %i""")
    x = np.array([1 / 3, 7], np.float32)
    exact = interpret(g, [x], float64=True)
    assert exact["y"].dtype == np.float64 and exact["y"][0] == np.float64(x[0]) + np.float64(np.float32(0.1))
    assert exact["i"].tolist() == x.view(np.int32).tolist()
