"""Operations on single elements, with broadcasting."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from onnx import TensorProto, helper

from tests.fuzz.draw import FLOATS, INTEGERS, GraphDraw, Tracked, combined, need, renamed
from tests.fuzz.registry import operation

F32, F64, F16, BOOL = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL

# name -> (largest derivative, bound of the result given the operand's)
SMOOTH = {
    "Tanh": (1.0, lambda x: 1.0),
    "Sigmoid": (0.25, lambda x: 1.0),
    "Erf": (1.13, lambda x: 1.0),
    "Sin": (1.0, lambda x: 1.0),
    "Cos": (1.0, lambda x: 1.0),
    "Atan": (1.0, lambda x: 1.58),
    "Asinh": (1.0, lambda x: math.asinh(x)),
    "Softplus": (1.0, lambda x: x + 0.7),
    "Softsign": (1.0, lambda x: 1.0),
    "Elu": (1.0, lambda x: max(x, 1.0)),
    "Selu": (1.8, lambda x: 1.8 * max(x, 1.0)),
    "LeakyRelu": (1.0, lambda x: x),
    "HardSigmoid": (0.2, lambda x: 1.0),
    "HardSwish": (1.5, lambda x: x),
    "Mish": (1.1, lambda x: x + 0.5),
    "Gelu": (1.13, lambda x: x),
}
EXACT_FLOAT = ("Floor", "Ceil", "Round", "Sign")


def partner(g: GraphDraw, x: Tracked) -> Tracked:
    """A second operand that broadcasts with the first: another value, or a constant with some axes of extent 1 or left out."""

    def fits(y: Tracked) -> bool:
        pairs = zip(reversed(x.shape), reversed(y.shape), strict=False)
        return y.kind == x.kind and all(a == b or 1 in (a, b) for a, b in pairs)

    if g.flag():
        return g.value(fits)
    shape = [extent if g.flag() else 1 for extent in x.shape[g.integer(0, x.rank) :]]
    return g.weights(x.kind, shape)


def joined(*values: Tracked) -> tuple[int, ...]:
    """The broadcast of shapes."""
    return np.broadcast_shapes(*(value.shape for value in values))


@operation(weight=4)
def arithmetic(g: GraphDraw) -> None:
    """Add, Sub, Mul."""
    x = g.value(lambda v: v.kind != BOOL)
    y, op = partner(g, x), g.pick(("Add", "Sub", "Mul"))
    need(x.kind != TensorProto.UINT8 or op == "Add")
    if op == "Mul":
        grain = x.grain + y.grain if x.exact and y.exact else None
        out = combined(x.kind, joined(x, y), (x, y), x.bound * y.bound, grain, x.noise * y.bound + y.noise * x.bound)
    else:
        grain = max(x.grain, y.grain) if x.exact and y.exact else None
        out = combined(x.kind, joined(x, y), (x, y), x.bound + y.bound, grain, x.noise + y.noise)
    g.emit(op, (x, y), out)


@operation(weight=2)
def extremes(g: GraphDraw) -> None:
    """Min, Max of two."""
    x = g.value(lambda v: v.kind != BOOL)
    y = partner(g, x)
    g.emit(g.pick(("Min", "Max")), (x, y), chosen(x, y, joined(x, y)))


def chosen(x: Tracked, y: Tracked, shape: tuple[int, ...]) -> Tracked:
    """What is an element of either."""
    grain = max(x.grain, y.grain) if x.exact and y.exact else None
    return Tracked("?", x.kind, shape, max(x.bound, y.bound), grain, max(x.noise, y.noise), x.free or y.free)


@operation()
def division(g: GraphDraw) -> None:
    """x / (|y| + 1), and of integers by a constant that is not 0."""
    x = g.value(lambda v: v.is_float or v.kind in (TensorProto.INT32, TensorProto.INT64))
    if not x.is_float:
        divisor = np.array(g.pick((-3, -1, 2, 5)), helper.tensor_dtype_to_np_dtype(x.kind))
        g.emit("Div", (x, g.constant(divisor)), replace(x, low=None))
        return
    y = partner(g, x)
    below = combined(y.kind, y.shape, (y,), y.bound + 1, None, y.noise)
    size = _away_from_zero(g, y, below)
    g.emit("Div", (x, size), combined(x.kind, joined(x, y), (x, y), x.bound, None, x.noise + x.bound * size.noise))


def _away_from_zero(g: GraphDraw, x: Tracked, like: Tracked) -> Tracked:
    """|x| + 1"""
    size = g.emit("Abs", (x,), replace(x, low=0.0))
    one = g.constant(np.ones((), helper.tensor_dtype_to_np_dtype(x.kind)))
    return g.emit("Add", (size, one), replace(like, low=1.0))


@operation()
def roots(g: GraphDraw) -> None:
    """Sqrt, Log, Reciprocal of |x| + 1, and Exp of a clipped x."""
    x, op = g.value(lambda v: v.is_float), g.pick(("Sqrt", "Log", "Reciprocal", "Exp"))
    if op == "Exp":
        kind = helper.tensor_dtype_to_np_dtype(x.kind)
        clipped = g.emit("Clip", (x, g.constant(np.array(-4, kind)), g.constant(np.array(2, kind))), replace(x, bound=4.0, low=-4.0))
        g.emit("Exp", (clipped,), combined(x.kind, x.shape, (x,), math.exp(2), None, x.noise * math.exp(2)))
        return
    base = _away_from_zero(g, x, combined(x.kind, x.shape, (x,), x.bound + 1, x.grain, x.noise))
    bound = {"Sqrt": math.sqrt(base.bound), "Log": math.log(base.bound) + 1e-3, "Reciprocal": 1.0}[op]
    g.emit(op, (base,), combined(x.kind, x.shape, (base,), bound, None, base.noise))


@operation(weight=4)
def smooth(g: GraphDraw) -> None:
    """Functions with a bounded derivative."""
    x, op = g.value(lambda v: v.is_float), g.pick(list(SMOOTH))
    slope, bound = SMOOTH[op]
    g.emit(op, (x,), combined(x.kind, x.shape, (x,), bound(x.bound), None, slope * x.noise))


@operation(weight=2)
def plain(g: GraphDraw) -> None:
    """Neg, Abs, Relu, Identity."""
    op = g.pick(("Neg", "Abs", "Relu", "Identity"))
    x = g.value(lambda v: v.kind not in (BOOL, TensorProto.UINT8) or op == "Identity")
    need(op != "Relu" or x.is_float)
    g.emit(op, (x,), replace(x, low=0.0 if op in ("Abs", "Relu") else x.low if op == "Identity" else None))


@operation()
def clip(g: GraphDraw) -> None:
    """Clip by constants, one of them left out now and then."""
    x = g.value(lambda v: v.is_float or v.kind in INTEGERS)
    kind = helper.tensor_dtype_to_np_dtype(x.kind)
    low, high = np.array(g.integer(0, 2) - 1 if x.kind != TensorProto.UINT8 else 0).astype(kind), np.array(g.integer(1, 3)).astype(kind)
    g.emit("Clip", (x, g.constant(low) if g.flag() else "", g.constant(high)), replace(x, low=None))


@operation()
def rounding(g: GraphDraw) -> None:
    """Functions with steps, of exact values."""
    x = g.value(lambda v: v.is_float and v.exact)
    g.emit(g.pick(EXACT_FLOAT), (x,), replace(x, bound=x.bound + 1, grain=0, low=None))


@operation(weight=2)
def comparison(g: GraphDraw) -> None:
    """Comparisons of exact values."""
    x = g.value(lambda v: v.exact and v.kind != BOOL)
    y = partner(g, x)
    need(y.exact)
    op = g.pick(("Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Equal"))
    g.emit(op, (x, y), truth(joined(x, y), x, y))


def truth(shape: tuple[int, ...], *parts: Tracked) -> Tracked:
    """A boolean of a shape."""
    return Tracked("?", BOOL, shape, 1.0, 0, 0.0, any(part.free for part in parts), 0.0)


@operation()
def logic(g: GraphDraw) -> None:
    """And, Or, Xor, Not."""
    x = g.value(lambda v: v.kind == BOOL)
    op = g.pick(("And", "Or", "Xor", "Not"))
    y = x if op == "Not" else partner(g, x)
    g.emit(op, (x,) if op == "Not" else (x, y), truth(joined(x, y), x, y))


@operation(weight=2)
def where(g: GraphDraw) -> None:
    """Where, all three operands broadcast."""
    condition = g.value(lambda v: v.kind == BOOL)
    x = g.value(lambda v: _broadcasts(v, condition))
    y = partner(g, x)
    need(_broadcasts(y, condition))
    out = chosen(x, y, joined(condition, x, y))
    g.emit("Where", (condition, x, y), replace(out, free=out.free or condition.free))


def _broadcasts(x: Tracked, y: Tracked) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(reversed(x.shape), reversed(y.shape), strict=False))


@operation(weight=2)
def cast(g: GraphDraw) -> None:
    """Cast of exact values to any type that holds them; of others between floats."""
    x, to = g.value(), g.pick((*FLOATS, *INTEGERS, BOOL))
    need(to != x.kind and (x.exact or to in FLOATS))
    if to == BOOL:
        g.emit("Cast", (x,), truth(x.shape, x), to=to)
    elif to in FLOATS:
        g.emit("Cast", (x,), replace(combined(to, x.shape, (x,), x.bound, x.grain, x.noise), low=x.low), to=to)
    else:
        need(to != TensorProto.UINT8 or (x.low is not None and x.low >= 0))
        g.emit("Cast", (x,), Tracked("?", to, x.shape, max(x.bound, 1.0), 0, 0.0, x.free, x.low), to=to)


@operation()
def modulo(g: GraphDraw) -> None:
    """Mod by a constant, both conventions."""
    x = g.value(lambda v: v.kind in (TensorProto.INT32, TensorProto.INT64))
    divisor = np.array(g.pick((-3, 2, 5)), helper.tensor_dtype_to_np_dtype(x.kind))
    g.emit("Mod", (x, g.constant(divisor)), replace(renamed(x, "?"), bound=5.0, low=None), fmod=g.integer(0, 1))


@operation()
def quantised(g: GraphDraw) -> None:
    """Exact values through u8 or i8 and back."""
    x = g.value(lambda v: v.kind == F32 and v.exact and v.bound <= 60)
    kind = g.pick((np.uint8, np.int8))
    scale, zero = g.constant(np.array(0.5, np.float32)), g.constant(np.array(3 if kind == np.uint8 else -3, kind))
    number = TensorProto.UINT8 if kind == np.uint8 else TensorProto.INT8
    q = g.emit("QuantizeLinear", (x, scale, zero), Tracked("?", number, x.shape, 127.0 if kind == np.int8 else 255.0, 0, 0.0, x.free))
    g.emit("DequantizeLinear", (q, scale, zero), Tracked("?", F32, x.shape, 130.0, 1, 0.0, x.free))
