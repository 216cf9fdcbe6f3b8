"""If and Loop with small bodies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import TensorProto, helper

from tests.fuzz.draw import GraphDraw, Tracked, combined, need
from tests.fuzz.registry import operation

BOOL, I64 = TensorProto.BOOL, TensorProto.INT64


@operation()
def branch(g: GraphDraw) -> None:
    """An If on the sum of an exact value, whose branches capture another value."""
    x, asked = g.value(lambda v: v.kind != BOOL), g.value(lambda v: v.exact and v.kind == TensorProto.FLOAT and v.size > 0)
    (total,) = g.node("ReduceSum", (asked,), keepdims=0)
    need(asked.bound * asked.size * 2.0**asked.grain < 2**24)
    zero = g.constant(np.array(0, np.float32))
    (condition,) = g.node("Greater", (total, zero))
    then, otherwise = (_branch(g, op, x) for op in ("Identity", "Neg" if x.kind != TensorProto.UINT8 else "Identity"))
    g.used.add(x.name)
    g.emit("If", (condition,), replace(x, low=None, free=x.free or asked.free), then_branch=then, else_branch=otherwise)


def _branch(g: GraphDraw, op: str, x: Tracked):
    name = g.fresh()
    result = helper.make_tensor_value_info(name, x.kind, [None] * x.rank)
    return helper.make_graph([helper.make_node(op, [x.name], [name])], op, [], [result])


@operation()
def loop(g: GraphDraw) -> None:
    """A running sum with its states stacked; none, some or many turns."""
    x = g.value(lambda v: v.kind in (TensorProto.FLOAT, I64) and v.size > 0)
    turns = g.integer(0, 4)
    body = helper.make_graph(
        [
            helper.make_node("Add", ["state", x.name], ["next"]),
            helper.make_node("Identity", ["going"], ["still"]),
            helper.make_node("Identity", ["next"], ["seen"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", I64, []),
            helper.make_tensor_value_info("going", BOOL, []),
            helper.make_tensor_value_info("state", x.kind, [None] * x.rank),
        ],
        [
            helper.make_tensor_value_info("still", BOOL, []),
            helper.make_tensor_value_info("next", x.kind, [None] * x.rank),
            helper.make_tensor_value_info("seen", x.kind, [None] * x.rank),
        ],
    )
    bound = x.bound * (turns + 1)
    out = combined(x.kind, x.shape, (x,), bound, x.grain, x.noise * (turns + 1))
    need(bound < 1e6 and out.noise <= 0.02 * bound)
    inputs = (g.constant(np.array(turns)), g.constant(np.array(True)), x)
    last, seen = g.node("Loop", inputs, 2, body=body)
    g.keep(replace(out, name=last))
    g.keep(replace(out, name=seen, shape=(turns, *x.shape)))


@operation()
def scan(g: GraphDraw) -> None:
    """A Scan that multiplies a state by halves and adds each row."""
    x = g.value(lambda v: v.kind == TensorProto.FLOAT and v.rank >= 2 and v.size > 0)
    row = [None] * (x.rank - 1)
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Add", ["state", "row"], ["next"]), helper.make_node("Neg", ["next"], ["seen"])],
        "rows",
        [info("state", x.kind, row), info("row", x.kind, row)],
        [info("next", x.kind, row), info("seen", x.kind, row)],
    )
    bound = x.bound * x.shape[0] + 4
    out = combined(x.kind, x.shape[1:], (x,), bound, x.grain if x.grain is None else max(x.grain, 2), x.noise * x.shape[0])
    need(not x.free and out.noise <= 0.02 * bound)
    start = g.weights(x.kind, x.shape[1:])
    last, seen = g.node("Scan", (start, x), 2, body=body, num_scan_inputs=1)
    g.keep(replace(out, name=last))
    g.keep(replace(out, name=seen, shape=x.shape))
