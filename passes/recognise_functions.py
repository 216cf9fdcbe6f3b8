"""Formulas that exporters write out; part of ``passes/recognise.py``."""

from __future__ import annotations

import numpy as np

from tcompile.ir.graph import Node, Value
from tcompile.passes.rewrite import Context, Patch, patch, rule


def _map_of(value: Value, fn: str, context: Context) -> Node | None:
    made = context.producer(value, "map")
    return made if made is not None and made.attrs["fn"] == fn else None


@rule("map")
def sigmoid(node: Node, context: Context) -> Patch | None:
    # 1 / (1 + exp(-x)) == sigmoid(x), within its tolerance
    if node.attrs["fn"] == "recip":
        total = _map_of(node.inputs[0], "add", context)
    elif node.attrs["fn"] == "div" and context.scalar(node.inputs[0]) == 1:
        total = _map_of(node.inputs[1], "add", context)
    else:
        return None
    power = _map_of(total.inputs[0], "exp", context) if total and context.scalar(total.inputs[1]) == 1 else None
    negated = _map_of(power.inputs[0], "neg", context) if power else None
    if negated is None:
        return None
    b = context.build(node)
    return patch("sigmoid", b, b.map("sigmoid", negated.inputs[0]))


@rule("map")
def silu(node: Node, context: Context) -> Patch | None:
    # x * sigmoid(x) == silu(x), within its tolerance
    if node.attrs["fn"] != "mul":
        return None
    for x, other in (node.inputs, node.inputs[::-1]):
        gate = _map_of(other, "sigmoid", context)
        if gate is not None and gate.inputs[0] is x and context.used_once(other):
            b = context.build(node)
            return patch("silu", b, b.map("silu", x))
    return None


@rule("map")
def divide_by_row(node: Node, context: Context) -> Patch | None:
    """x / broadcast(y) == x * broadcast(1 / y), one more rounding, a division per row instead of one per element.

    Only where 1 / y cannot overflow for a y other than 0: y is a square root, or the sum of a softmax (at least 1).
    """
    if node.attrs["fn"] != "div":
        return None
    spread = context.producer(node.inputs[1], "broadcast")
    if spread is None or not spread.inputs[0].rank or not _safe_divisor(spread.inputs[0], context):
        return None
    b = context.build(node)
    inverse = b.emit("broadcast", b.map("recip", spread.inputs[0]), **spread.attrs)
    return patch("division by a row", b, b.map("mul", node.inputs[0], inverse))


@rule("map")
def erf_of_quotient(node: Node, context: Context) -> Patch | None:
    """erf(x / c) == erf(x * (1 / c)), one more rounding of the argument, which erf does not amplify: a GELU has x / sqrt(2)."""
    inner = _map_of(node.inputs[0], "div", context) if node.attrs["fn"] == "erf" else None
    c = context.scalar(inner.inputs[1]) if inner else None
    if c is None or node.output.dtype.bits < 32 or not 1e-3 < abs(float(c)) < 1e3:
        return None
    b = context.build(node)
    x = inner.inputs[0]
    return patch("erf of a quotient", b, b.map("erf", b.map("mul", x, b.scalar_like(1 / np.float64(c), x))))


def _safe_divisor(value: Value, context: Context) -> bool:
    if value.dtype.bits < 32:
        return False  # the reciprocal of a narrow float rounds too coarsely
    moved = context.producer(value, "reshape")
    value = moved.inputs[0] if moved else value
    if _map_of(value, "sqrt", context):
        return True
    total = context.producer(value, "reduce")
    power = _map_of(total.inputs[0], "exp", context) if total and total.attrs["fn"] == "add" else None
    shifted = _map_of(power.inputs[0], "sub", context) if power else None
    spread = context.producer(shifted.inputs[1], "broadcast") if shifted else None
    moved = context.producer(spread.inputs[0], "reshape") if spread else None
    top = context.producer(moved.inputs[0] if moved else spread.inputs[0], "reduce") if spread else None
    return top is not None and top.attrs == {"fn": "max", "axes": total.attrs["axes"]} and top.inputs[0] is shifted.inputs[0]


RULES = (sigmoid, silu, divide_by_row, erf_of_quotient)
