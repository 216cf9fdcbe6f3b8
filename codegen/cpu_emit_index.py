"""Index expressions as instructions: sums grouped by how deep in the loops their terms are known.

    address of b[i*n*8 + 3*n + k]  ->  p1 = b + 3*n (outside all loops); p2 = p1 + 8*n*i (in loop i); p2 + k

so that what an inner loop adds is one register, and constants land in the addressing mode. Divisions round
towards minus infinity; x // 0 and x % 0 are 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tcompile.codegen import cpu_emit_lanes as ops
from tcompile.codegen.cpu_emit_function import Function
from tcompile.codegen.cpu_emit_values import Value
from tcompile.errors import InvalidModelError
from tcompile.ir import dims
from tcompile.ir.dims import Atom, Call, DimLike, Range, Symbol


@dataclass
class Lane:
    """The variable of a vector loop: ``start`` + 0 .. lanes-1. ``start`` is an int or an i64 scalar that ``step`` divides."""

    start: int | Value
    lanes: int
    step: int = 1


@dataclass
class Names:
    """What symbols stand for: an int, an i64 value, or a lane variable; and their ranges."""

    fn: Function
    values: dict[str, int | Value | Lane] = field(default_factory=dict)
    ranges: dict[str, Range] = field(default_factory=dict)


def value(names: Names, expr: DimLike) -> int | Value:
    """An index expression as an int or an i64 value; with lanes where it differs between them."""
    if isinstance(expr, int):
        return expr
    constant, terms = _terms(names, expr)
    return total(names.fn, constant, terms)


def as_value(number: int | Value) -> Value:
    """An int as a literal."""
    return Value(str(number)) if isinstance(number, int) else number


def uniform(names: Names, expr: DimLike) -> bool:
    """Whether an index expression is the same on all lanes."""
    return all(not varies(names.values.get(name)) for name in dims.symbols(expr))


def scalars(names: Names, expr: DimLike) -> tuple[int, list[tuple[int, Value]]]:
    """An expression that is the same on all lanes, as a constant and (factor, scalar) terms."""
    return _terms(names, expr)


def pointer(names: Names, base: Value, scalar: str, constant: int, terms: list[tuple[int, Value]]) -> Value:
    """base + (constant + terms) elements, the terms of outer loops added first and the constant last."""
    fn, place = names.fn, base
    for depth in sorted({term.depth for _, term in terms}):
        offset = total(fn, 0, [(factor, term) for factor, term in terms if term.depth == depth])
        place = _step(fn, place, scalar, as_value(offset))
    return _step(fn, place, scalar, Value(str(constant))) if constant else place


def _step(fn: Function, place: Value, scalar: str, offset: Value) -> Value:
    depth = max(place.depth, offset.depth)
    return Value(fn.pure(f"getelementptr {scalar}, ptr {place.name}, i64 {offset.name}", depth), depth)


def varies(known: int | Value | Lane | None) -> bool:
    """Whether what a symbol stands for differs between lanes."""
    return isinstance(known, Lane) or (isinstance(known, Value) and bool(known.lanes))


def _terms(names: Names, expr: DimLike) -> tuple[int, list[tuple[int, Value]]]:
    """An expression as constant + sum of factor * value."""
    if isinstance(expr, int):
        return expr, []
    constant, terms = 0, []
    for monomial, factor in expr.terms:
        product: Value | None = None
        for atom in outermost_first(names, monomial):
            if isinstance(atom, int):
                factor *= atom
            else:
                product = atom if product is None else ops.binary(names.fn, "mul", "i64", product, atom)
        if product is None:
            constant += factor
        elif factor:
            terms.append((factor, product))
    return constant, terms


def outermost_first(names: Names, monomial: tuple[Atom, ...]) -> list[int | Value]:
    """The values of atoms, ints first, then those known outside of loops."""
    known = [_atom(names, atom) for atom in monomial]
    return sorted(known, key=lambda atom: (-1, 0) if isinstance(atom, int) else (atom.depth, atom.lanes)) if len(known) > 1 else known


def total(fn: Function, constant: int, terms: list[tuple[int, Value]]) -> int | Value:
    """constant + sum of factor * value, added from the outermost loop inwards."""
    result: Value | None = None
    for factor, term in sorted(terms, key=lambda item: (item[1].depth, item[1].lanes)):
        scaled = term if factor == 1 else ops.binary(fn, "mul", "i64", term, Value(str(factor)))
        result = scaled if result is None else ops.binary(fn, "add", "i64", result, scaled)
    if result is None:
        return constant
    return ops.binary(fn, "add", "i64", result, Value(str(constant))) if constant else result


def _atom(names: Names, atom: Atom) -> int | Value:
    if isinstance(atom, Symbol):
        known = names.values.get(atom.name)
        if known is None:
            raise InvalidModelError(f"index expression: nothing binds the symbol {atom.name}")
        if isinstance(known, Lane):
            return _lanes(names.fn, known)
        return known
    args = [value(names, arg) for arg in atom.args]
    if all(isinstance(arg, int) for arg in args):
        a, b = args
        return 0 if atom.fn in ("floordiv", "mod") and b == 0 else _FOLD[atom.fn](a, b)
    return _CALLS[atom.fn](names, atom, *map(as_value, args))


def _lanes(fn: Function, lane: Lane) -> Value:
    if isinstance(lane.start, int):
        return ops.iota(lane.lanes, first=lane.start)
    return ops.binary(fn, "add", "i64", lane.start, ops.iota(lane.lanes))


_FOLD = {
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "min": min,
    "max": max,
    "bcast": lambda a, b: b if a == 1 else a,
}


def _floordiv(names: Names, atom: Call, a: Value, b: Value) -> Value:
    divisor, zero = _divisor(names, atom, b)
    return _unless(names.fn, zero, quotient(names.fn, a, divisor, _never_negative(names, atom)))


def _mod(names: Names, atom: Call, a: Value, b: Value) -> Value:
    divisor, zero = _divisor(names, atom, b)
    return _unless(names.fn, zero, remainder(names.fn, a, divisor, _never_negative(names, atom)))


def _never_negative(names: Names, atom: Call) -> bool:
    return all(dims.nonnegative(arg, names.ranges) for arg in atom.args)


def quotient(fn: Function, a: Value, b: Value, nonnegative: bool) -> Value:
    """a // b of i64 values, rounded down; b is not 0."""
    if nonnegative:
        return ops.binary(fn, "udiv", "i64", a, b)
    if b.literal and _power_of_two(b):
        return ops.binary(fn, "ashr", "i64", a, Value(str(int(b.name).bit_length() - 1)))
    down = ops.binary(fn, "and", "i1", *_inexact(fn, ops.binary(fn, "srem", "i64", a, b), b))
    return ops.binary(fn, "add", "i64", ops.binary(fn, "sdiv", "i64", a, b), ops.convert(fn, "sext", "i1", "i64", down))


def remainder(fn: Function, a: Value, b: Value, nonnegative: bool) -> Value:
    """a % b of i64 values, with the sign of b; b is not 0."""
    if nonnegative:
        return ops.binary(fn, "urem", "i64", a, b)
    if b.literal and _power_of_two(b):
        return ops.binary(fn, "and", "i64", a, Value(str(int(b.name) - 1)))
    rest = ops.binary(fn, "srem", "i64", a, b)
    up = ops.binary(fn, "and", "i1", *_inexact(fn, rest, b))
    return ops.select(fn, up, "i64", ops.binary(fn, "add", "i64", rest, b), rest)


def _divisor(names: Names, atom: Call, b: Value) -> tuple[Value, Value | None]:
    """The divisor made nonzero, and whether it was 0 (None: it never is). An INT_MIN / -1 cannot come from shapes."""
    if b.literal:
        return b, None
    low = dims.lower_bound(atom.args[1], names.ranges)
    if low is not None and low >= 1:
        return b, None
    zero = ops.binary(names.fn, "icmp eq", "i64", b, Value("0"))
    return ops.select(names.fn, zero, "i64", Value("1"), b), zero


def _unless(fn: Function, zero: Value | None, result: Value) -> Value:
    return result if zero is None else ops.select(fn, zero, "i64", Value("0"), result)


def _inexact(fn: Function, rest: Value, b: Value) -> tuple[Value, Value]:
    """Whether a remainder is not 0, and whether its sign is not the divisor's."""
    signs = ops.binary(fn, "xor", "i64", rest, b)
    return ops.binary(fn, "icmp ne", "i64", rest, Value("0")), ops.binary(fn, "icmp slt", "i64", signs, Value("0"))


def _power_of_two(divisor: Value) -> bool:
    number = int(divisor.name)
    return number > 0 and number & (number - 1) == 0


def _bcast(names: Names, atom: Call, a: Value, b: Value) -> Value:
    one = ops.binary(names.fn, "icmp eq", "i64", a, Value("1"))
    return ops.select(names.fn, one, "i64", b, a)


_CALLS = {
    "floordiv": _floordiv,
    "mod": _mod,
    "min": lambda names, atom, a, b: ops.call(names.fn, "smin", "i64", a, b),
    "max": lambda names, atom, a, b: ops.call(names.fn, "smax", "i64", a, b),
    "bcast": _bcast,
}
