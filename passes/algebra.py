"""Algebra of elementwise functions and conversions; part of ``passes/canonicalise.py``.

Every rule is exact for every element, NaN, infinities and signed zeros included, unless its comment says otherwise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tcompile.ir import dtypes, elementwise
from tcompile.ir.casts import integer_limits
from tcompile.ir.dtypes import BOOL, DType
from tcompile.ir.graph import Node, Value
from tcompile.ir.text import is_splat
from tcompile.passes.rewrite import Context, Patch, patch, rule

_MOST_COMPARED = 1 << 18  # elements of a constant that is searched for repeats
COMMUTATIVE = ("add", "mul", "min", "max", "and", "or", "xor", "eq", "ne")


@rule("map")
def repeated_operands(node: Node, context: Context) -> Patch | None:
    """A constant that repeats along axes is the broadcast of a smaller one: nothing is stored twice, and scalars and factors of
    channels are easy to see."""
    replaced = [_smallest(value, context) for value in node.inputs]
    if all(found is None for found in replaced):
        return None
    b = context.build(node)
    operands = [
        value if found is None else b.emit("broadcast", b.constant(found[0]), shape=value.shape, axes=found[1])
        for value, found in zip(node.inputs, replaced, strict=True)
    ]
    return patch("repeated constant", b, b.map(node.attrs["fn"], *operands))


def _smallest(value: Value, context: Context) -> tuple[np.ndarray, tuple[int, ...]] | None:
    """The constant that a value repeats along some of its axes, and the other axes; None where it is none, or repeats nothing."""
    producer = context.producer(value, "constant")
    array = None if producer is None else producer.attrs["value"]
    if array is None or not array.ndim or not array.size:
        return None
    if is_splat(array):
        return array.reshape(-1)[0], ()
    if array.size > _MOST_COMPARED:
        return None
    kept = tuple(axis for axis, extent in enumerate(array.shape) if extent > 1 and not _repeats(array, axis))
    if math.prod(array.shape[axis] for axis in kept) == array.size:
        return None
    return np.ascontiguousarray(array[tuple(slice(None) if axis in kept else 0 for axis in range(array.ndim))]), kept


def _repeats(array: np.ndarray, axis: int) -> bool:
    """Whether all elements along an axis have the same bits."""
    raw = np.moveaxis(array.view(np.dtype(f"u{array.dtype.itemsize}")), axis, 0)
    return bool((raw[0] == raw[1]).all() and (raw[:1] == raw).all())


def _as_scalar(value: Value, context: Context) -> np.ndarray | None:
    found = _smallest(value, context)
    return found[0] if found is not None and not found[1] else None


@rule("broadcast")
def splat_broadcast(node: Node, context: Context) -> Patch | None:
    """The broadcast of a constant of equal elements is that of a scalar."""
    scalar = _as_scalar(node.inputs[0], context)
    if scalar is None:
        return None
    b = context.build(node)
    return patch("broadcast of a splat", b, b.broadcast_to(b.constant(scalar), node.output.shape))


@rule("map")
def constants_last(node: Node, context: Context) -> Patch | None:
    # c + x == x + c, likewise the other commutative functions: one form to match, and to find equal nodes by
    if node.attrs["fn"] not in COMMUTATIVE:
        return None
    x, y = node.inputs
    if not context.is_constant(x) or context.is_constant(y):
        return None
    b = context.build(node)
    return patch("constant operand last", b, b.map(node.attrs["fn"], y, x))


def _is(value: Any, number: float, *, negative_zero: bool | None = None) -> bool:
    """Whether a scalar is a number; for zeros of floats also which."""
    if value is None or value != number:
        return False
    return negative_zero is None or bool(np.signbit(np.float64(value))) == negative_zero


@rule("map")
def identities(node: Node, context: Context) -> Patch | None:
    """Functions of a constant that give the other operand back."""
    fn, inputs = node.attrs["fn"], node.inputs
    if len(inputs) != 2:
        return None
    x, dtype, c = inputs[0], inputs[0].dtype, context.scalar(inputs[1])
    if c is None:
        return None
    zero = {"negative_zero": True} if dtype.is_float else {}
    same = (
        (fn == "add" and _is(c, 0, **zero))  # x + -0.0 == x; x + 0.0 makes -0.0 into 0.0, so x must not be that
        or (fn == "add" and _is(c, 0) and never_negative_zero(x, context))
        or (fn == "sub" and _is(c, 0, **({"negative_zero": False} if dtype.is_float else {})))  # x - 0.0 == x
        or (fn in ("mul", "div", "pow") and _is(c, 1))  # x * 1 == x / 1 == x**1 == x
        or (fn == "max" and _is(c, _lowest(dtype)))  # max(x, -inf) == x, a NaN stays
        or (fn == "min" and _is(c, _highest(dtype)))  # min(x, inf) == x
        or (fn in ("or", "xor", "shl", "shr") and _is(c, 0))  # x | 0 == x ^ 0 == x << 0 == x
        or (fn == "and" and _is(c, True if dtype == BOOL else integer_limits(dtype)[1] if dtype.kind == "u" else -1))  # x & ~0 == x
    )
    return patch(f"{fn} with its identity", None, x) if same else None


def _lowest(dtype: DType) -> float | int:
    return -math.inf if dtype.kind in "fb" else integer_limits(dtype)[0]


def _highest(dtype: DType) -> float | int:
    return math.inf if dtype.kind in "fb" else integer_limits(dtype)[1]


MOVEMENTS = ("reshape", "transpose", "broadcast", "slice")


def never_negative_zero(value: Value, context: Context, depth: int = 8) -> bool:
    """Whether no element can be -0.0. A sum that starts from 0.0 cannot, nor one with a term that cannot."""
    made = context.producer(value)
    if made is None or depth == 0:
        return False
    if made.op in MOVEMENTS:
        return never_negative_zero(made.inputs[0], context, depth - 1)
    if made.op == "map":
        fn, inputs = made.attrs["fn"], made.inputs
        if fn in ("exp", "sigmoid", "abs") or (fn == "mul" and inputs[0] is inputs[1]):
            return True
        return fn == "add" and any(never_negative_zero(x, context, depth - 1) for x in inputs)
    if made.op == "constant":
        array = made.attrs["value"]
        return array.size == 1 and not np.signbit(array.reshape(-1).astype(np.float64)[0])
    summed = made.op == "reduce" and made.attrs["fn"] == "add"
    return summed or made.op in ("conv", "dot_general", "iota") or (made.op == "convert" and not made.inputs[0].dtype.is_float)


@rule("map")
def absorbing(node: Node, context: Context) -> Patch | None:
    """Functions of a constant that give the constant back."""
    fn, inputs = node.attrs["fn"], node.inputs
    if len(inputs) != 2:
        return None
    c, dtype = context.scalar(inputs[1]), inputs[0].dtype
    same = (
        (fn == "mul" and dtype.is_integer and _is(c, 0))  # x * 0 == 0, for integers: NaN * 0 is NaN
        or (fn == "and" and _is(c, 0))  # x & 0 == 0
        or (fn == "or" and dtype == BOOL and _is(c, True))  # x | true == true
    )
    return patch(f"{fn} absorbs", None, inputs[1]) if same else None


@rule("map")
def same_operands(node: Node, context: Context) -> Patch | None:
    fn, inputs = node.attrs["fn"], node.inputs
    if fn == "where" and inputs[1] is inputs[2]:  # where(c, x, x) == x
        return patch("where of equal branches", None, inputs[1])
    if fn in ("max", "min", "and", "or") and inputs[0] is inputs[1]:  # max(x, x) == x
        return patch(f"{fn} of equal operands", None, inputs[0])
    if fn in ("sub", "xor") and inputs[0] is inputs[1] and not inputs[0].dtype.is_float:  # x - x == 0, for integers: inf - inf is NaN
        b = context.build(node)
        return patch(f"{fn} of equal operands", b, b.scalar_like(0, inputs[0]))
    return None


@rule("map")
def unary_pairs(node: Node, context: Context) -> Patch | None:
    """A function of one operand whose operand is one too."""
    fn = node.attrs["fn"]
    inner = context.producer(node.inputs[0], "map")
    if len(node.inputs) != 1 or inner is None or len(inner.inputs) != 1:
        return None
    pair, x = (fn, inner.attrs["fn"]), inner.inputs[0]
    if pair in (("neg", "neg"), ("not", "not")):  # -(-x) == x, ~~x == x
        return patch(f"double {fn}", None, x)
    if pair in {(f, f) for f in ("abs", "ceil", "floor", "round", "trunc", "sign")}:  # f(f(x)) == f(x)
        return patch(f"{fn} twice", None, inner.output)
    if pair == ("abs", "neg"):  # |-x| == |x|
        b = context.build(node)
        return patch("abs of neg", b, b.map("abs", x))
    return None


@rule("map")
def known_condition(node: Node, context: Context) -> Patch | None:
    # where(true, x, y) == x
    if node.attrs["fn"] != "where":
        return None
    c = context.scalar(node.inputs[0])
    return None if c is None else patch("where of a constant", None, node.inputs[1 if c else 2])


@rule("map")
def cheaper(node: Node, context: Context) -> Patch | None:
    """Functions that a constant operand makes cheaper."""
    fn, inputs = node.attrs["fn"], node.inputs
    c = context.scalar(inputs[1]) if len(inputs) == 2 else None
    if c is None or not inputs[0].dtype.is_float:
        return None
    b, x = context.build(node), inputs[0]
    if fn == "sub" and x.dtype != dtypes.F8E8M0:  # x - c == x + -c, where numbers have a sign
        return patch("subtract a constant", b, b.map("add", x, b.scalar_like(-c, x)))
    if fn == "div" and _exact_reciprocal(c, x.dtype):  # x / 2**k == x * 2**-k, where 2**-k is a normal number
        return patch("divide by a power of two", b, b.map("mul", x, b.scalar_like(1 / np.float64(c), x)))
    if fn == "pow" and _is(c, 2):  # x**2 == x * x
        return patch("square", b, b.map("mul", x, x))
    if fn == "pow" and _is(c, 3):  # x**3 == x * x * x, within an ulp
        return patch("cube", b, b.map("mul", b.map("mul", x, x), x))
    if fn == "pow" and _is(c, -1):  # x**-1 == 1 / x
        return patch("reciprocal", b, b.map("recip", x))
    if fn == "pow" and _is(c, 0):  # x**0 == 1, also of NaN
        return patch("zeroth power", b, b.scalar_like(1, x))
    return None


def _exact_reciprocal(c: Any, dtype: DType) -> bool:
    if not np.isfinite(np.float64(c)) or c == 0:
        return False
    mantissa, exponent = math.frexp(float(c))
    return abs(mantissa) == 0.5 and abs(exponent) < {64: 1000, 32: 120, 16: 13}.get(dtype.bits, 0)


@rule("map")
def subtract_vector(node: Node, context: Context) -> Patch | None:
    # x - c == x + -c, c any constant: the form that folds into weights; f8e8m0 has no -c
    x = node.inputs[0]
    if node.attrs["fn"] != "sub" or not x.dtype.is_float or x.dtype == dtypes.F8E8M0 or context.is_constant(x):
        return None
    producer = _stored(node.inputs[1], context)
    if producer is None:
        return None
    b = context.build(node)
    negated = b.constant(elementwise.apply("neg", [producer.attrs["value"]]))
    return patch("subtract a constant", b, b.map("add", x, _like(b, negated, node.inputs[1], context)))


def _stored(value: Value, context: Context) -> Node | None:
    """The constant under at most one broadcast."""
    outer = context.producer(value, "broadcast")
    return context.producer(outer.inputs[0] if outer else value, "constant")


def _like(b: Any, value: Value, old: Value, context: Context) -> Value:
    outer = context.producer(old, "broadcast")
    return b.emit("broadcast", value, **outer.attrs) if outer else value


@rule("map")
def clamp_chain(node: Node, context: Context) -> Patch | None:
    # max(max(x, a), b) == max(x, max(a, b)), likewise min, for constants that are not NaN
    fn = node.attrs["fn"]
    inner = context.producer(node.inputs[0], "map")
    if fn not in ("max", "min") or inner is None or inner.attrs["fn"] != fn:
        return None
    a, c = context.scalar(inner.inputs[1]), context.scalar(node.inputs[1])
    if a is None or c is None or a != a or c != c:
        return None
    b = context.build(node)
    return patch(f"{fn} of {fn}", b, b.map(fn, inner.inputs[0], b.scalar_like(max(a, c) if fn == "max" else min(a, c), node.output)))


@rule("map")
def integer_chain(node: Node, context: Context) -> Patch | None:
    # (x + a) + b == x + (a + b), (x * a) * b == x * (a * b): integers wrap, so they associate
    fn = node.attrs["fn"]
    inner = context.producer(node.inputs[0], "map")
    if fn not in ("add", "mul") or not node.output.dtype.is_integer or inner is None or inner.attrs["fn"] != fn:
        return None
    a, c = context.scalar(inner.inputs[1]), context.scalar(node.inputs[1])
    if a is None or c is None:
        return None
    b = context.build(node)
    both = elementwise.apply(fn, [np.asarray(a), np.asarray(c)])
    return patch(f"{fn} of {fn}", b, b.map(fn, inner.inputs[0], b.broadcast_to(b.constant(both), node.output.shape)))


# Conversions ------------------------------------------------------------------------------------------------


def is_lossless(source: DType, target: DType) -> bool:
    """Whether every value of ``source`` is a value of ``target``."""
    if source in (target, BOOL):
        return target != dtypes.F8E8M0 or source == target
    if source.is_float:
        return target.is_float and (target == dtypes.F64 or (target == dtypes.F32 and source.bits < 32))
    magnitude = source.bits - (source.kind == "i")
    if target.is_integer:
        return (source.kind == target.kind and source.bits <= target.bits) or (target.kind == "i" and source.bits < target.bits)
    return magnitude <= {dtypes.F64: 53, dtypes.F32: 24, dtypes.F16: 11, dtypes.BF16: 8}.get(target, 0)


@rule("convert")
def convert_chain(node: Node, context: Context) -> Patch | None:
    source, target = node.inputs[0].dtype, node.attrs["dtype"]
    if source == target:
        return patch("conversion to the same type", None, node.inputs[0])
    inner = context.producer(node.inputs[0], "convert")
    if inner is None:
        return None
    x = inner.inputs[0]
    if not _composes(x.dtype, source, target):
        return None
    if x.dtype == target:
        return patch("conversion there and back", None, x)
    b = context.build(node)
    return patch("conversion of a conversion", b, b.emit("convert", x, **node.attrs))


def _composes(first: DType, middle: DType, last: DType) -> bool:
    """Whether first -> middle -> last is first -> last."""
    if first.is_integer and middle.is_integer and last.is_integer and middle.bits >= last.bits:
        return True  # both keep the low bits
    if not is_lossless(first, middle):
        return False
    if first.is_integer and middle.is_float and last != BOOL:
        # a float saturates where an integer wraps, and an integer rounds twice on its way to a narrow float
        return is_lossless(first, last) or last == dtypes.F64 or (last.is_float and is_lossless(first, dtypes.F32))
    return True


@rule("bitcast")
def bitcast_chain(node: Node, context: Context) -> Patch | None:
    # bitcast(bitcast(x)) == bitcast(x)
    inner = context.producer(node.inputs[0], "bitcast")
    x = inner.inputs[0] if inner else node.inputs[0]
    if x.dtype == node.attrs["dtype"]:
        return patch("bitcast to the same type", None, x)
    if inner is None:
        return None
    b = context.build(node)
    return patch("bitcast of a bitcast", b, b.emit("bitcast", x, dtype=node.attrs["dtype"]))


RULES = (
    repeated_operands,
    splat_broadcast,
    constants_last,
    known_condition,
    same_operands,
    identities,
    absorbing,
    cheaper,
    subtract_vector,
    unary_pairs,
    clamp_chain,
    integer_chain,
    convert_chain,
    bitcast_chain,
)
