"""Instructions over scalars or lanes: operands are brought to one width, results go where ``Function.pure`` puts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tcompile.codegen.cpu_emit_function import Function
from tcompile.codegen.cpu_emit_values import Value, suffix, vector


def width(*values: Value) -> int:
    """The lanes of an operation: those of any operand that has lanes."""
    for value in values:
        if value.lanes:
            return value.lanes
    return 0


def splat(fn: Function, value: Value, scalar: str, lanes: int) -> str:
    """The operand text of a value at ``lanes`` lanes."""
    if value.lanes == lanes:
        return value.name
    if value.literal:
        return "zeroinitializer" if value.name in ("0", "false") else f"splat ({scalar} {value.name})"
    wide = vector(scalar, lanes)
    first = fn.pure(f"insertelement {wide} poison, {scalar} {value.name}, i64 0", value.depth)
    return fn.pure(f"shufflevector {wide} {first}, {wide} poison, <{lanes} x i32> zeroinitializer", value.depth)


def widened(fn: Function, value: Value, scalar: str, lanes: int) -> Value:
    """The value at ``lanes`` lanes (itself where it is)."""
    if value.lanes == lanes:
        return value
    made = Value(splat(fn, value, scalar, lanes), value.depth, lanes)
    made.nan_free = value.nan_free
    return made


def binary(fn: Function, opcode: str, scalar: str, a: Value, b: Value) -> Value:
    """opcode a, b (arithmetic, bitwise, comparisons: ``fcmp olt``)."""
    lanes = a.lanes or b.lanes
    left, right = (splat(fn, a, scalar, lanes), splat(fn, b, scalar, lanes)) if lanes else (a.name, b.name)
    depth = max(a.depth, b.depth)
    return Value(fn.pure(f"{opcode} {vector(scalar, lanes)} {left}, {right}", depth), depth, lanes)


def unary(fn: Function, opcode: str, scalar: str, a: Value) -> Value:
    """opcode a (fneg)."""
    return Value(fn.pure(f"{opcode} {vector(scalar, a.lanes)} {operand(a)}", a.depth), a.depth, a.lanes)


def operand(value: Value) -> str:
    """The text of a value at its own width."""
    return value.name


def convert(fn: Function, opcode: str, source: str, target: str, a: Value) -> Value:
    """opcode a to target (zext, sitofp, bitcast, ...)."""
    lanes = a.lanes
    return Value(fn.pure(f"{opcode} {vector(source, lanes)} {a.name} to {vector(target, lanes)}", a.depth), a.depth, lanes)


def select(fn: Function, cond: Value, scalar: str, then: Value, otherwise: Value) -> Value:
    """then where cond, else otherwise; a uniform condition selects whole vectors."""
    lanes = width(cond, then, otherwise)
    kind = vector(scalar, lanes)
    depth = max(cond.depth, then.depth, otherwise.depth)
    chooser = f"{vector('i1', cond.lanes)} {cond.name}"
    text = f"select {chooser}, {kind} {splat(fn, then, scalar, lanes)}, {kind} {splat(fn, otherwise, scalar, lanes)}"
    return Value(fn.pure(text, depth), depth, lanes)


def call(fn: Function, intrinsic: str, scalar: str, *args: Value, tail: str = "") -> Value:
    """An LLVM intrinsic of one overloaded type whose operands and result have it. ``tail`` is appended to the operands."""
    lanes = width(*args)
    kind = vector(scalar, lanes)
    operands = ", ".join(f"{kind} {splat(fn, arg, scalar, lanes)}" for arg in args)
    depth = max(arg.depth for arg in args)
    return Value(fn.pure(f"call {kind} @llvm.{intrinsic}.{suffix(scalar, lanes)}({operands}{tail})", depth), depth, lanes)


def pieces(fn: Function, scalar: str, most: int, operation: Callable[..., Value], *values: Value) -> Value:
    """An operation on operands of more than ``most`` lanes, done ``most`` lanes at a time.

    For patterns that instruction selection knows on vectors of its registers' size only; taking the parts costs nothing.
    """
    lanes = width(*values)
    count, rest = divmod(lanes, most)
    if count < 2 or rest or count & (count - 1):
        return operation(*values)
    return _join_all(
        fn, scalar, [operation(*(_piece(fn, value, scalar, first, most) for value in values)) for first in range(0, lanes, most)]
    )


def pieces_as(fn: Function, result: str, most: int, operation: Callable[[Value], Value], value: Value, scalar: str) -> Value:
    """``pieces`` of one operand, for an operation whose result has another type."""
    count, rest = divmod(value.lanes, most)
    if count < 2 or rest or count & (count - 1):
        return operation(value)
    return _join_all(fn, result, [operation(_piece(fn, value, scalar, first, most)) for first in range(0, value.lanes, most)])


def _join_all(fn: Function, scalar: str, parts: list[Value]) -> Value:
    while len(parts) > 1:
        parts = [_joined(fn, scalar, *parts[k : k + 2]) for k in range(0, len(parts), 2)]
    return parts[0]


def _piece(fn: Function, value: Value, scalar: str, first: int, count: int) -> Value:
    if not value.lanes:
        return value
    made = shuffle(fn, value, value, scalar, range(first, first + count))
    made.nan_free = value.nan_free
    return made


def _joined(fn: Function, scalar: str, a: Value, b: Value | None = None) -> Value:
    return a if b is None else shuffle(fn, a, b, scalar, range(2 * a.lanes))


def shuffle(fn: Function, a: Value, b: Value, scalar: str, places: Iterable[int]) -> Value:
    """Lanes of a (0 ...) and b (lanes of a ...) by number."""
    numbers = [f"i32 {place}" for place in places]
    wide, depth = f"<{a.lanes} x {scalar}>", max(a.depth, b.depth)
    other = "poison" if a is b else b.name
    text = f"shufflevector {wide} {a.name}, {wide} {other}, <{len(numbers)} x i32> <{', '.join(numbers)}>"
    return Value(fn.pure(text, depth), depth, len(numbers))


def better(fn: Function, predicate: str, scalar: str, most: int, a: Value, b: Value) -> Value:
    """a where ``a predicate b`` (fcmp ogt, fcmp olt), else b; so b where either is NaN. One instruction on x86."""

    def choose(a: Value, b: Value) -> Value:
        return select(fn, binary(fn, predicate, scalar, a, b), scalar, a, b)

    return pieces(fn, scalar, most, choose, a, b)


def iota(lanes: int, scalar: str = "i64", first: int = 0, step: int = 1) -> Value:
    """The constant vector first, first + step, ..."""
    return Value("<" + ", ".join(f"{scalar} {first + step * k}" for k in range(lanes)) + ">", 0, lanes)


def extract(fn: Function, value: Value, scalar: str, lane: str, depth: int = 0) -> Value:
    """One lane of a vector."""
    depth = max(value.depth, depth)
    return Value(fn.pure(f"extractelement {vector(scalar, value.lanes)} {value.name}, i64 {lane}", depth), depth)


def all_lanes(fn: Function, cond: Value) -> Value:
    """Whether a bool vector holds on all lanes."""
    bits = fn.pure(f"bitcast <{cond.lanes} x i1> {cond.name} to i{cond.lanes}", cond.depth)
    return Value(fn.pure(f"icmp eq i{cond.lanes} {bits}, -1", cond.depth), cond.depth)
