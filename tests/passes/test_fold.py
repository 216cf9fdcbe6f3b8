"""Constant folding: what is computed now, and what must not be."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.errors import ExecutionError
from tcompile.ir.interpret import interpret
from tcompile.passes.fold import FoldConstants
from tests.passes.cases import expect, graph

CASES = {
    "arithmetic on constants is done": (
        """inputs %x: f32[3]
        %a: f32[3] = constant {value = (1.0, 2.0, 4.0)}
        %b: f32[3] = map(%a) {fn = "recip"}
        %y: f32[3] = map(%x, %b) {fn = "mul"}
        return %y""",
        """inputs %x: f32[3]
        %b: f32[3] = constant {value = (1.0, 0.5, 0.25)}
        %y: f32[3] = map(%x, %b) {fn = "mul"}
        return %y""",
    ),
    "a scalar keeps rank 0": (
        "%a: i64[] = constant {value = (7,)}\n%y: f32[] = convert(%a) {dtype = f32, saturate = true}\nreturn %y",
        "%y: f32[] = constant {value = (7.0,)}\nreturn %y",
    ),
    "a broadcast operand counts as known, and the result is its own size": (
        """%a: f32[2] = constant {value = (1.0, 2.0)}
        %b: f32[2, 2] = broadcast(%a) {shape = (2, 2), axes = (1,)}
        %c: f32[2, 2] = constant {value = (1.0, 2.0, 3.0, 4.0)}
        %y: f32[2, 2] = map(%c, %b) {fn = "add"}
        return %y""",
        "%y: f32[2, 2] = constant {value = (2.0, 4.0, 4.0, 6.0)}\nreturn %y",
    ),
    "a broadcast stays a broadcast": (
        "%a: f32[2] = constant {value = (1.0, 2.0)}\n%y: f32[9, 2] = broadcast(%a) {shape = (9, 2), axes = (1,)}\nreturn %y",
        "%a: f32[2] = constant {value = (1.0, 2.0)}\n%y: f32[9, 2] = broadcast(%a) {shape = (9, 2), axes = (1,)}\nreturn %y",
    ),
    "weights that repeat a number are constants": (
        """inputs %x: f32[4, 2]
        %a: f32[] = constant {value = (0.5,)}
        %b: f32[2, 3] = broadcast(%a) {shape = (2, 3), axes = ()}
        %y: f32[4, 3] = dot_general(%x, %b) {batch = ((), ()), contract = ((1,), (0,)), dtype = f32}
        return %y""",
        """inputs %x: f32[4, 2]
        %b: f32[2, 3] = constant {value = (0.5, 0.5, 0.5, 0.5, 0.5, 0.5)}
        %y: f32[4, 3] = dot_general(%x, %b) {batch = ((), ()), contract = ((1,), (0,)), dtype = f32}
        return %y""",
    ),
    "a dimension that its range decides is a constant": (
        """symbols n in 3..8
        inputs %x: f32[n]
        %y: i64[] = dim {exprs = (floordiv(n, 9),), shape = ()}
        return %y""",
        "symbols n in 3..8\ninputs %x: f32[n]\n%y: i64[] = constant {value = (0,)}\nreturn %y",
    ),
    "a dimension that folding finds becomes an extent": (
        """symbols m in 0..10
        inputs %x: f32[8]
        %a: i64[1] = constant {value = (3,)}
        %b: i64[] = reduce(%a) {fn = "add", axes = (0,)}
        bind_dim(%b) {symbol = "m"}
        %y: f32[m] = slice(%x) {start = (0,), size = (m,), step = (1,)}
        return %y""",
        "inputs %x: f32[8]\n%y: f32[3] = slice(%x) {start = (0,), size = (3,), step = (1,)}\nreturn %y",
    ),
}


@pytest.mark.parametrize("sentence", CASES)
def test_fold(sentence: str) -> None:
    expect(FoldConstants(), *CASES[sentence])


def test_folding_never_grows_large_values() -> None:
    wide = "%a: i64[100, 100] = iota {shape = (100, 100), axis = 0, dtype = i64}\nreturn %a"
    assert [node.op for node in FoldConstants().apply(graph(wide)).nodes] == ["iota"]
    assert [node.op for node in FoldConstants(limit=80_000).apply(graph(wide)).nodes] == ["constant"]


STOPS = {
    "an index out of range": """%a: f32[2] = constant {value = (1.0, 2.0)}
    %i: i64[2, 1] = constant {value = (0, 5)}
    %y: f32[2, 1] = gather(%a, %i) {axis = 0}
    return %y""",
    "a dimension outside its range": """symbols m in 0..2
    inputs %x: f32[8]
    %b: i64[] = constant {value = (3,)}
    bind_dim(%b) {symbol = "m"}
    %y: f32[m] = slice(%x) {start = (0,), size = (m,), step = (1,)}
    return %y""",
}


@pytest.mark.parametrize("what", STOPS)
def test_what_stops_a_run_is_left_to_the_run(what: str) -> None:
    folded = FoldConstants().apply(graph(STOPS[what]))
    with pytest.raises(ExecutionError):
        interpret(folded, [np.ones(8, np.float32)] * len(folded.inputs))
