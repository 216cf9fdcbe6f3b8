"""Index expressions over lanes as a scalar plus small 32-bit offsets: what keeps i64 vectors out of vector loops.

    lane variable i = start + (0 .. W-1)      ->  start + <0 1 2 ...>
    x // c, x % c for x = base + offsets      ->  base // c and base % c are scalar;
                                                  offsets: (base % c + offsets) // c, which is 0 or 1 and a comparison
    x < y                                     ->  offsets of x - y against a scalar

Offsets known at compile time stay Python ints, so that a division that never wraps within a vector leaves a
contiguous access. What does not fit (products of lanes, data-dependent vectors, negative divisors) is None: the
caller works on i64 vectors then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tcompile.codegen import cpu_emit_index as index
from tcompile.codegen import cpu_emit_lanes as ops
from tcompile.codegen.cpu_emit_function import Function
from tcompile.codegen.cpu_emit_index import Lane, Names
from tcompile.codegen.cpu_emit_values import Value
from tcompile.ir import dims
from tcompile.ir.dims import Atom, Call, DimLike, Symbol

_LIMIT = 1 << 30  # offsets stay below, so that a sum of two fits 32 bits

Numbers = tuple[int, ...] | Value  # one 32-bit offset a lane: constants, or a vector


@dataclass(frozen=True)
class Offsets:
    """factor * numbers, numbers in [low, high]; the factor is an int or an i64 scalar."""

    factor: int | Value
    numbers: Numbers
    low: int
    high: int


@dataclass
class Spread:
    """constant + sum of factor * scalar + offsets. ``step`` of a scalar: a number known to divide it."""

    lanes: int
    constant: int = 0
    scalars: list[tuple[int, Value, int]] = field(default_factory=list)
    offsets: list[Offsets] = field(default_factory=list)

    @property
    def terms(self) -> list[tuple[int, Value]]:
        """The scalars with their factors."""
        return [(factor, value) for factor, value, _ in self.scalars]

    def base(self, fn: Function) -> int | Value:
        """Lane-independent part."""
        return index.total(fn, self.constant, self.terms)


def spread(names: Names, expr: DimLike) -> Spread | None:
    """An index expression as a scalar plus offsets, or None."""
    lanes = next((known.lanes for known in map(names.values.get, dims.symbols(expr)) if isinstance(known, Lane)), 0)
    result = Spread(lanes)
    if isinstance(expr, int):
        result.constant = expr
        return result
    for monomial, factor in expr.terms:
        if not _add(names, result, monomial, factor):
            return None
    return result


def joined(fn: Function, found: Spread) -> Offsets | None:
    """All offsets as one with the factor 1; None where they do not fit 32 bits."""
    total: Numbers = (0,) * found.lanes
    low = high = 0
    for part in found.offsets:
        if not isinstance(part.factor, int):
            return None
        ends = sorted((part.factor * part.low, part.factor * part.high))
        low, high = low + ends[0], high + ends[1]
        if not -_LIMIT < low <= high < _LIMIT:
            return None
        total = _plus(fn, total, _times(fn, part.numbers, part.factor))
    return Offsets(1, total, low, high)


def value(names: Names, expr: DimLike) -> Value:
    """An index expression on all lanes, as i64; a scalar where it is the same on all."""
    found = None if index.uniform(names, expr) else spread(names, expr)
    return index.as_value(index.value(names, expr)) if found is None else vector(names.fn, found)


def vector(fn: Function, found: Spread) -> Value:
    """The value on all lanes, as i64."""
    total = index.as_value(found.base(fn))
    one = joined(fn, found)
    parts = found.offsets if one is None else [one]
    for part in parts:
        wide = ops.convert(fn, "sext", "i32", "i64", as_vector(part.numbers))
        scaled = wide if part.factor == 1 else ops.binary(fn, "mul", "i64", wide, index.as_value(part.factor))
        total = ops.binary(fn, "add", "i64", total, scaled)
    return ops.widened(fn, total, "i64", found.lanes)


def as_vector(numbers: Numbers) -> Value:
    """Offsets as an i32 vector."""
    if isinstance(numbers, Value):
        return numbers
    return Value("<" + ", ".join(f"i32 {number}" for number in numbers) + ">", 0, len(numbers))


def compare(names: Names, predicate: str, a: DimLike, b: DimLike) -> Value | None:
    """A signed comparison of two index expressions that differ between lanes, on 32-bit offsets; None where it cannot be."""
    found = spread(names, a - b)
    one = found and found.lanes and joined(names.fn, found)
    if not one:
        return None
    # base + offset < 0  ==  offset < -base, with -base clamped to what no offset reaches
    fn, base = names.fn, found.base(names.fn)
    limit = Value(str(max(min(-base, _LIMIT), -_LIMIT))) if isinstance(base, int) else _clamped(fn, base)
    return ops.binary(fn, f"icmp {predicate}", "i32", as_vector(one.numbers), limit)


def _clamped(fn: Function, base: Value) -> Value:
    negative = ops.binary(fn, "sub", "i64", Value("0"), base)
    upper = ops.call(fn, "smin", "i64", negative, Value(str(_LIMIT)))
    return ops.convert(fn, "trunc", "i64", "i32", ops.call(fn, "smax", "i64", upper, Value(str(-_LIMIT))))


# Building ---------------------------------------------------------------------------------------------------


def _add(names: Names, result: Spread, monomial: tuple[Atom, ...], factor: int) -> bool:
    """Adds factor * monomial; False where it has no such form."""
    varying = [atom for atom in monomial if _varies(names, atom)]
    if len(varying) > 1:
        return False
    product: Value | None = None
    for atom in index.outermost_first(names, tuple(atom for atom in monomial if atom not in varying)):
        if isinstance(atom, int):
            factor *= atom
        else:
            product = atom if product is None else ops.binary(names.fn, "mul", "i64", product, atom)
    inner = _atom(names, varying[0]) if varying else Spread(0, 1)
    if inner is None:
        return False
    _accumulate(names.fn, result, inner, factor, product)
    return True


def _accumulate(fn: Function, result: Spread, inner: Spread, factor: int, product: Value | None) -> None:
    """result += inner * factor * product."""
    if product is None:
        result.constant += inner.constant * factor
        result.scalars += [(scale * factor, value, step) for scale, value, step in inner.scalars]
        result.offsets += [_scaled(fn, part, factor) for part in inner.offsets]
        return
    if inner.constant:
        result.scalars.append((inner.constant * factor, product, 1))
    for scale, value, step in inner.scalars:
        result.scalars.append((scale * factor, ops.binary(fn, "mul", "i64", value, product), step))
    result.offsets += [_scaled(fn, _scaled(fn, part, factor), product) for part in inner.offsets]


def _scaled(fn: Function, part: Offsets, factor: int | Value) -> Offsets:
    if isinstance(part.factor, int) and isinstance(factor, int):
        return Offsets(part.factor * factor, part.numbers, part.low, part.high)
    scale = ops.binary(fn, "mul", "i64", index.as_value(part.factor), index.as_value(factor)) if part.factor != 1 else factor
    return Offsets(scale, part.numbers, part.low, part.high)


def _varies(names: Names, atom: Atom) -> bool:
    if isinstance(atom, Symbol):
        return index.varies(names.values.get(atom.name))
    return any(index.varies(names.values.get(name)) for name in dims.shape_symbols(atom.args))


def _atom(names: Names, atom: Atom) -> Spread | None:
    if isinstance(atom, Call):
        return _CALLS[atom.fn](names, atom) if atom.fn in _CALLS else None
    known = names.values[atom.name]
    if not isinstance(known, Lane):
        return None
    made = Spread(known.lanes, offsets=[Offsets(1, tuple(range(known.lanes)), 0, known.lanes - 1)])
    if isinstance(known.start, int):
        made.constant = known.start
    else:
        made.scalars.append((1, known.start, known.step))
    return made


@dataclass(frozen=True)
class _Division:
    """x = divisor * (quotient + q) + rest, where q and rest come from ``offsets``: rest of the base plus offsets, >= 0."""

    quotient: int | Value
    rest: int | Value  # of the base: in [0, divisor)
    offsets: Offsets
    top: int  # rest + offsets is never above
    divisor: int
    step: int  # a number that divides the rest of the base


def _division(names: Names, atom: Call) -> _Division | None:
    dividend, divisor = atom.args
    if not isinstance(divisor, int) or not 0 < divisor < _LIMIT:
        return None
    found = spread(names, dividend)
    one = found and joined(names.fn, found)
    if not one:
        return None
    fn, shift = names.fn, min(one.low, 0)  # a negative offset goes into the base
    numbers = _plus(fn, one.numbers, (-shift,) * found.lanes) if shift else one.numbers
    found.constant += shift
    step = math.gcd(divisor, *(factor * step for factor, _, step in found.scalars))
    base = found.base(fn)
    if isinstance(base, int):
        quotient, rest, highest = base // divisor, base % divisor, base % divisor
    else:
        known = shift == 0 and dims.nonnegative(dividend, names.ranges)
        quotient = index.quotient(fn, base, Value(str(divisor)), known)
        rest = index.remainder(fn, base, Value(str(divisor)), known)
        highest = divisor - step + found.constant % step
    return _Division(
        quotient,
        rest,
        Offsets(1, numbers, 0, one.high - shift),
        highest + one.high - shift,
        divisor,
        step if found.constant % step == 0 else 1,
    )


def _floordiv(names: Names, atom: Call) -> Spread | None:
    if not isinstance(atom.args[1], int):
        return _symbolic_floordiv(names, atom)
    parts = _division(names, atom)
    if parts is None:
        return None
    result = _scalar(parts.quotient, _lanes_of(parts))
    if parts.top >= parts.divisor:
        wrapped = _wrapped(names.fn, parts)
        if isinstance(wrapped, tuple):
            numbers: Numbers = tuple(number // parts.divisor for number in wrapped)
        elif parts.top < 2 * parts.divisor:
            over = ops.binary(names.fn, "icmp sge", "i32", wrapped, Value(str(parts.divisor)))
            numbers = ops.convert(names.fn, "zext", "i1", "i32", over)
        else:
            numbers = ops.binary(names.fn, "udiv", "i32", wrapped, Value(str(parts.divisor)))
        result.offsets.append(Offsets(1, numbers, 0, parts.top // parts.divisor))
    return result


def _mod(names: Names, atom: Call) -> Spread | None:
    if not isinstance(atom.args[1], int):
        return _symbolic_mod(names, atom)
    parts = _division(names, atom)
    if parts is None:
        return None
    if parts.top < parts.divisor:  # never wraps within a vector
        result = _scalar(parts.rest, _lanes_of(parts), parts.step)
        result.offsets.append(parts.offsets)
        return result
    wrapped = _wrapped(names.fn, parts)
    if isinstance(wrapped, tuple):
        numbers: Numbers = tuple(number % parts.divisor for number in wrapped)
    elif parts.top < 2 * parts.divisor:
        over = ops.binary(names.fn, "icmp sge", "i32", wrapped, Value(str(parts.divisor)))
        less = ops.binary(names.fn, "sub", "i32", wrapped, Value(str(parts.divisor)))
        numbers = ops.select(names.fn, over, "i32", less, wrapped)
    else:
        numbers = ops.binary(names.fn, "urem", "i32", wrapped, Value(str(parts.divisor)))
    return Spread(_lanes_of(parts), offsets=[Offsets(1, numbers, 0, parts.divisor - 1)])


@dataclass(frozen=True)
class _Wraps:
    """x = divisor * quotient + rest + offsets; offsets from ``divisor - rest`` on are past a multiple of the divisor.

    ``over``: whether they are; ``turns`` and ``left``: (offset - (divisor - rest)) divided by the divisor.
    """

    quotient: Value
    rest: Value
    offsets: Offsets
    over: Value
    turns: Value
    left: Value


_EXACT = 1 << 20  # the division of smaller numbers in f32, truncated, is exact


def _wraps(names: Names, atom: Call) -> _Wraps | None:
    """The division by a symbolic divisor that is not negative; 0 is taken as 1."""
    dividend, by = atom.args
    if not index.uniform(names, by) or not dims.nonnegative(by, names.ranges):
        return None
    found = spread(names, dividend)
    one = found and joined(names.fn, found)
    if not one or one.low < 0 or one.high >= _EXACT:
        return None
    fn, divisor = names.fn, index.as_value(index.value(names, by))
    divisor = ops.call(fn, "umax", "i64", divisor, Value("1"))
    base = index.as_value(found.base(fn))
    known = dims.nonnegative(dividend, names.ranges)
    quotient, rest = index.quotient(fn, base, divisor, known), index.remainder(fn, base, divisor, known)
    room = _few(fn, ops.binary(fn, "sub", "i64", divisor, rest))
    past = ops.binary(fn, "sub", "i32", as_vector(one.numbers), room)
    over = ops.binary(fn, "icmp sge", "i32", past, Value("0"))
    few = _few(fn, divisor)
    real = ops.binary(fn, "fdiv", "float", ops.convert(fn, "sitofp", "i32", "float", past), ops.convert(fn, "sitofp", "i32", "float", few))
    turns = ops.convert(fn, "fptosi", "float", "i32", real)
    left = ops.binary(fn, "sub", "i32", past, ops.binary(fn, "mul", "i32", turns, few))
    return _Wraps(quotient, rest, one, over, turns, left)


def _few(fn: Function, number: Value) -> Value:
    """A positive i64 in 32 bits, cut to what offsets never reach."""
    return ops.convert(fn, "trunc", "i64", "i32", ops.call(fn, "smin", "i64", number, Value(str(_EXACT))))


def _symbolic_floordiv(names: Names, atom: Call) -> Spread | None:
    parts = _wraps(names, atom)
    if parts is None:
        return None
    fn, zero = names.fn, Value("0")
    divides = ops.binary(fn, "icmp ne", "i64", index.as_value(index.value(names, atom.args[1])), zero)  # x // 0 is 0
    result = _scalar(ops.select(fn, divides, "i64", parts.quotient, zero), parts.over.lanes)
    more = ops.binary(fn, "add", "i32", parts.turns, Value("1"))
    numbers = ops.select(fn, divides, "i32", ops.select(fn, parts.over, "i32", more, zero), zero)
    result.offsets.append(Offsets(1, numbers, 0, parts.offsets.high + 1))
    return result


def _symbolic_mod(names: Names, atom: Call) -> Spread | None:
    """rest + offset, or what is left past the last multiple: - rest * over takes the rest away again."""
    parts = _wraps(names, atom)
    if parts is None:
        return None
    fn = names.fn
    result = _scalar(parts.rest, parts.over.lanes)
    numbers = ops.select(fn, parts.over, "i32", parts.left, as_vector(parts.offsets.numbers))
    result.offsets.append(Offsets(1, numbers, 0, parts.offsets.high))
    away = ops.binary(fn, "sub", "i64", Value("0"), parts.rest)
    result.offsets.append(Offsets(away, ops.convert(fn, "zext", "i1", "i32", parts.over), 0, 1))
    return result


def _lanes_of(parts: _Division) -> int:
    numbers = parts.offsets.numbers
    return numbers.lanes if isinstance(numbers, Value) else len(numbers)


def _wrapped(fn: Function, parts: _Division) -> Numbers:
    """rest + offsets."""
    if isinstance(parts.rest, int):
        return _plus(fn, parts.offsets.numbers, (parts.rest,) * _lanes_of(parts))
    few = ops.convert(fn, "trunc", "i64", "i32", parts.rest)
    return ops.binary(fn, "add", "i32", few, as_vector(parts.offsets.numbers))


def _scalar(value: int | Value, lanes: int, step: int = 1) -> Spread:
    return Spread(lanes, value) if isinstance(value, int) else Spread(lanes, 0, [(1, value, step)])


def _extreme(name: str):
    def extreme(names: Names, atom: Call) -> Spread | None:
        values = []
        ends = []
        for arg in atom.args:
            low, high = dims.lower_bound(arg, names.ranges), dims.upper_bound(arg, names.ranges)
            found = spread(names, arg)
            one = found and joined(names.fn, found)
            if found is None or one is None or not _small(low, high):
                return None
            values.append(_whole(names.fn, found, one))
            ends.append((low, high))
        pick = min if name == "smin" else max
        low, high = pick(low for low, _ in ends), pick(high for _, high in ends)
        result = ops.call(names.fn, name, "i32", *values)
        return Spread(result.lanes, offsets=[Offsets(1, result, low, high)])

    return extreme


def _small(low: int | None, high: int | None) -> bool:
    return low is not None and high is not None and -_LIMIT < low <= high < _LIMIT


def _whole(fn: Function, found: Spread, one: Offsets) -> Value:
    """base + offsets in 32 bits, which they are known to fit."""
    base = found.base(fn)
    few = Value(str(base)) if isinstance(base, int) else ops.convert(fn, "trunc", "i64", "i32", base)
    return ops.binary(fn, "add", "i32", few, as_vector(one.numbers)) if found.lanes else few


def _plus(fn: Function, a: Numbers, b: Numbers) -> Numbers:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return tuple(x + y for x, y in zip(a, b, strict=True))
    if isinstance(a, tuple) and not any(a):
        return b
    if isinstance(b, tuple) and not any(b):
        return a
    return ops.binary(fn, "add", "i32", as_vector(a), as_vector(b))


def _times(fn: Function, a: Numbers, factor: int) -> Numbers:
    if isinstance(a, tuple):
        return tuple(number * factor for number in a)
    return a if factor == 1 else ops.binary(fn, "mul", "i32", a, Value(str(factor)))


_CALLS = {"floordiv": _floordiv, "mod": _mod, "min": _extreme("smin"), "max": _extreme("smax")}
