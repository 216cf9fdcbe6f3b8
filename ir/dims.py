"""Integer expressions over named symbols: tensor dimensions, and the indices of loops.

A dimension is an ``int`` or a ``Dim``: a polynomial with integer coefficients whose atoms are symbols
(``n``, or a loop variable) and calls of ``floordiv``, ``mod``, ``min``, ``max`` and ``bcast``. Every
function here takes either and returns an ``int`` whenever the result is constant, so static shapes never
meet this class. Equal expressions in canonical form compare equal; what is not canonical (division,
min, max) is simplified where ranges prove it.

``floordiv`` and ``mod`` round towards minus infinity, as Python's ``//`` and ``%``. ``bcast(a, b)`` is the
extent that broadcasting a and b gives: b where a is 1, else a.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from tcompile.errors import Error


class DimError(Error):
    """An expression that cannot be evaluated or parsed."""


@dataclass(frozen=True)
class Symbol:
    """An atom: a named integer."""

    name: str

    def __str__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Call:
    """An atom: a function of expressions that is no polynomial."""

    fn: str
    args: tuple[DimLike, ...]

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self):
        return (Call, (self.fn, self.args))  # another process hashes anew

    @cached_property
    def _hash(self) -> int:
        return hash((self.fn, self.args))

    @cached_property
    def text(self) -> str:
        return f"{self.fn}({', '.join(map(str, self.args))})"

    def __str__(self) -> str:
        return self.text


Atom = Symbol | Call
Monomial = tuple[Atom, ...]  # sorted by text; a power is a repeated atom; () is the constant term


class Dim:
    """A polynomial over atoms, never constant. Build one with ``symbol`` and operators."""

    __slots__ = ("_hash", "_symbols", "_text", "terms")

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)
        self._text: str | None = None
        self._symbols: frozenset[str] | None = None

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Dim) and self._hash == other._hash and self.terms == other.terms)

    def __str__(self) -> str:
        if self._text is None:
            self._text = _format(self.terms)
        return self._text

    def __repr__(self) -> str:
        return f"Dim({self})"

    def __reduce__(self):
        return (Dim, (self.terms,))

    def __bool__(self) -> bool:
        raise DimError(f"the truth of the symbolic dimension {self} is not known at compile time")

    def __add__(self, other: DimLike) -> DimLike:
        return _with_constant(self.terms, int(other)) if isinstance(other, int) else _polynomial((*self.terms, *_terms(other)))

    def __neg__(self) -> DimLike:
        return Dim(tuple((monomial, -factor) for monomial, factor in self.terms))

    def __sub__(self, other: DimLike) -> DimLike:
        return self + -other

    def __rsub__(self, other: DimLike) -> DimLike:
        return -self + other

    def __mul__(self, other: DimLike) -> DimLike:
        if isinstance(other, int):  # the order stays, and what was joined
            return Dim(tuple((monomial, factor * int(other)) for monomial, factor in self.terms)) if other else 0
        return _polynomial((_merge(a, b), x * y) for a, x in self.terms for b, y in _terms(other))

    def __floordiv__(self, other: DimLike) -> DimLike:
        return floordiv(self, other)

    def __rfloordiv__(self, other: DimLike) -> DimLike:
        return floordiv(other, self)

    def __mod__(self, other: DimLike) -> DimLike:
        return mod(self, other)

    def __rmod__(self, other: DimLike) -> DimLike:
        return mod(other, self)

    __radd__ = __add__
    __rmul__ = __mul__


DimLike = int | Dim
Shape = tuple[DimLike, ...]


@dataclass(frozen=True)
class Range:
    """The values a symbol may take, both ends included; ``hi`` None is unbounded. Ends may be symbolic."""

    lo: DimLike = 0
    hi: DimLike | None = None


Ranges = Mapping[str, Range]


def symbol(name: str) -> Dim:
    """The expression that is the symbol ``name``."""
    return Dim((((Symbol(name),), 1),))


def product(dims: Iterable[DimLike]) -> DimLike:
    """The product of dimensions; 1 of none."""
    return math.prod(dims)


def floordiv(a: DimLike, b: DimLike, ranges: Ranges | None = None) -> DimLike:
    """a // b; what b divides exactly leaves the call, and a remainder proved in [0, b) is dropped."""
    _refuse_zero(b)
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if b == 1:
        return a
    quotient, rest = _divide(a, b)
    if rest == 0 or _within(rest, b, ranges):  # q*b // b == q: a b of 0 has no quotient to get wrong
        return quotient
    if isinstance(rest, int) and isinstance(b, int):
        return quotient + rest // b
    if isinstance(b, int) and isinstance(rest, Dim):
        # (g*x + r) // (g*c) == (x + r//g) // c
        g = math.gcd(b, *(factor for monomial, factor in rest.terms if monomial))
        if g > 1:
            return quotient + floordiv(_exact(rest, g), b // g, ranges)
        # (g*x + r) // (g*c) == x // c for 0 <= r < g
        split = _split_small(rest, b, ranges)
        if split is not None:
            return quotient + floordiv(split[1], b // split[0], ranges)
        nested = _only_atom(rest, "floordiv")
        if nested is not None and isinstance(nested.args[1], int):
            return quotient + floordiv(nested.args[0], nested.args[1] * b, ranges)
    return quotient + _atom("floordiv", rest, b)


def mod(a: DimLike, b: DimLike, ranges: Ranges | None = None) -> DimLike:
    """a % b, which for b > 0 is in [0, b)."""
    _refuse_zero(b)
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if b == 1:
        return 0
    rest = _divide(a, b)[1]
    if rest == 0 or _within(rest, b, ranges):
        return rest
    if isinstance(rest, int) and isinstance(b, int):
        return rest % b
    if isinstance(b, int) and isinstance(rest, Dim):
        # (g*x + r) % (g*c) == g*((x + r//g) % c) + r%g
        g = math.gcd(b, *(factor for monomial, factor in rest.terms if monomial))
        if g > 1:
            return mod(_exact(rest, g), b // g, ranges) * g + _constant(rest) % g
        # (g*x + r) % (g*c) == g*(x % c) + r for 0 <= r < g
        split = _split_small(rest, b, ranges)
        if split is not None:
            return mod(split[1], b // split[0], ranges) * split[0] + split[2]
    return _atom("mod", rest, b)


def ceildiv(a: DimLike, b: DimLike, ranges: Ranges | None = None) -> DimLike:
    """The smallest integer not below a / b, for b > 0."""
    return floordiv(a + b - 1, b, ranges)


def minimum(a: DimLike, b: DimLike, ranges: Ranges | None = None) -> DimLike:
    """The smaller of two expressions."""
    if nonnegative(b - a, ranges):
        return a
    if nonnegative(a - b, ranges):
        return b
    return _atom("min", *sorted((a, b), key=str))


def maximum(a: DimLike, b: DimLike, ranges: Ranges | None = None) -> DimLike:
    """The larger of two expressions."""
    if nonnegative(a - b, ranges):
        return a
    if nonnegative(b - a, ranges):
        return b
    return _atom("max", *sorted((a, b), key=str))


def bcast(a: DimLike, b: DimLike) -> DimLike:
    """The extent of broadcasting extents a and b. Raises DimError where they can never agree."""
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int) and isinstance(b, int):
        raise DimError(f"cannot broadcast extents {a} and {b}", hint="they must be equal, or one of them 1")
    if isinstance(a, int):
        return a  # b is a or 1; checked when it runs
    if isinstance(b, int):
        return b
    return _bcast_all((*_bcast_parts(a), *_bcast_parts(b)))


def _bcast_parts(d: Dim) -> tuple[DimLike, ...]:
    """bcast(bcast(a, b), c) holds a, b and c."""
    call = _only_atom(d, "bcast")
    return (d,) if call is None else tuple(part for arg in call.args for part in _bcast_parts(arg))


def _bcast_all(parts: tuple[DimLike, ...]) -> DimLike:
    kept = sorted(dict.fromkeys(parts), key=str)
    kept = [part for part in kept if not any(_bcast_absorbs(other, part) for other in kept)]
    result = kept[0]
    for part in kept[1:]:
        result = _atom("bcast", result, part)
    return result


def _bcast_absorbs(a: DimLike, b: DimLike) -> bool:
    """bcast(a, min(a, c)) == a for c >= 1: the two agree, or min gives 1, or the pair is refused when it runs."""
    call = _only_atom(b, "min") if isinstance(b, Dim) else None
    return call is not None and a in call.args and all(arg == a or (isinstance(arg, int) and arg >= 1) for arg in call.args)


_FUNCTIONS = {"floordiv": floordiv, "mod": mod, "min": minimum, "max": maximum, "bcast": bcast}


def symbols(d: DimLike) -> frozenset[str]:
    """Names of all symbols of an expression."""
    if isinstance(d, int):
        return frozenset()
    if d._symbols is None:
        d._symbols = frozenset().union(*(_atom_symbols(atom) for monomial, _ in d.terms for atom in monomial))
    return d._symbols


def shape_symbols(shape: Iterable[DimLike]) -> frozenset[str]:
    """Names of all symbols of a shape."""
    return frozenset().union(*map(symbols, shape))


def substitute(d: DimLike, values: Mapping[str, DimLike], ranges: Ranges | None = None) -> DimLike:
    """The expression with symbols replaced, simplified anew under ``ranges``."""
    if isinstance(d, int) or (not ranges and symbols(d).isdisjoint(values)):
        return d

    def atom_value(atom: Atom) -> DimLike:
        if isinstance(atom, Symbol):
            return values[atom.name] if atom.name in values else Dim((((atom,), 1),))
        args = [substitute(arg, values, ranges) for arg in atom.args]
        return bcast(*args) if atom.fn == "bcast" else _FUNCTIONS[atom.fn](*args, ranges)

    total: DimLike = 0
    for monomial, factor in d.terms:
        total = total + product(map(atom_value, monomial)) * factor
    return total


def simplify(d: DimLike, ranges: Ranges) -> DimLike:
    """The expression, its divisions, minima and maxima resolved where ``ranges`` prove it."""
    return substitute(d, {}, ranges)


def evaluate(d: DimLike, values: Mapping[str, int]) -> int:
    """The value with every symbol given. Raises DimError for a missing one, or a division by zero."""
    missing = symbols(d) - values.keys()
    if missing:
        raise DimError(f"no value for the symbol {sorted(missing)[0]} of {d}")
    result = substitute(d, values)
    assert isinstance(result, int), result
    return result


def nonnegative(d: DimLike, ranges: Ranges | None = None) -> bool:
    """Whether d >= 0 is proved for all symbols in their ranges (a symbol without a range is >= 0)."""
    if isinstance(d, int):
        return d >= 0
    known = {} if ranges is None else ranges
    low = lower_bound(d, known)
    return (isinstance(low, int) and low >= 0) or _nonnegative_above(d, known)


def lower_bound(d: DimLike, ranges: Ranges) -> int | None:
    """A constant that d is never below, or None."""
    return _bound(d, ranges, upper=False)


def upper_bound(d: DimLike, ranges: Ranges) -> int | None:
    """A constant that d is never above, or None."""
    return _bound(d, ranges, upper=True)


def arguments(d: DimLike, fn: str) -> tuple[DimLike, ...]:
    """The arguments of an expression that is nothing but a call of ``fn``; () for any other."""
    call = _only_atom(d, fn) if isinstance(d, Dim) else None
    return () if call is None else call.args


def linear(d: DimLike, name: str) -> tuple[DimLike, DimLike] | None:
    """(factor, rest) with d == factor * name + rest and neither using ``name``; None where d is not linear."""
    if isinstance(d, int):
        return 0, d
    factor, rest = [], []
    for monomial, scale in d.terms:
        here = [atom for atom in monomial if name in _atom_symbols(atom)]
        if not here:
            rest.append((monomial, scale))
        elif len(here) == 1 and here[0] == Symbol(name):
            factor.append((tuple(atom for atom in monomial if atom != here[0]), scale))
        else:
            return None
    return _polynomial(factor), _polynomial(rest)


def parse(text: str) -> DimLike:
    """The expression that ``str`` wrote, or that a user did: ``2*n + floordiv(m, 4) - 1``; // and % work too."""
    try:
        return _parse(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DimError(f"cannot read the dimension {text!r}", hint="write it like 2*n + 1") from error


def _parse(node: ast.expr) -> DimLike:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_parse(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_parse(left), _parse(right))
        case ast.Call(func=ast.Name(id=fn), args=args):
            return _FUNCTIONS[fn](*map(_parse, args))
    raise ValueError(ast.dump(node))


_OPERATORS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: floordiv,
    ast.Mod: mod,
}


def _refuse_zero(b: DimLike) -> None:
    if isinstance(b, int) and b == 0:
        raise DimError("division of a dimension by zero")


def _terms(d: DimLike) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(d, Dim):
        return d.terms
    return (((), int(d)),) if d else ()


def _with_constant(terms: tuple[tuple[Monomial, int], ...], more: int) -> Dim:
    """A polynomial's terms plus a constant, which stands last; nothing else changes."""
    monomial, factor = terms[-1]
    if not monomial:
        terms, more = terms[:-1], more + factor
    return Dim((*terms, ((), more)) if more else terms)


def _polynomial(terms: Iterable[tuple[Monomial, int]]) -> DimLike:
    total: dict[Monomial, int] = {}
    for monomial, factor in terms:
        total[monomial] = total.get(monomial, 0) + factor
    for monomial in [monomial for monomial in total if _order(monomial)[1]]:
        _join_mod(total, monomial)
    kept = [(monomial, factor) for monomial, factor in total.items() if factor]
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    kept.sort(key=_place)
    return Dim(tuple(kept))


def _place(term: tuple[Monomial, int]) -> tuple[bool, int, list[str]]:
    return _order(term[0])[0]


@lru_cache(maxsize=1 << 16)
def _order(monomial: Monomial) -> tuple[tuple[bool, int, list[str]], bool]:
    """Where a monomial stands among others (the constant last), and whether it holds a remainder."""
    return (not monomial, -len(monomial), [str(atom) for atom in monomial]), any(map(_is_mod, monomial))


def _is_mod(atom: Atom) -> bool:
    return isinstance(atom, Call) and atom.fn == "mod" and isinstance(atom.args[1], int)


def _join_mod(total: dict[Monomial, int], monomial: Monomial) -> None:
    """j*(x//j) + x%j == x keeps flattened indices free of divisions."""
    factor = total.get(monomial, 0)
    for atom in monomial if factor else ():
        if not _is_mod(atom):
            continue
        x, j = atom.args
        quotient = floordiv(x, j)
        if isinstance(quotient, int) or len(quotient.terms) != 1:
            continue
        others = list(monomial)
        others.remove(atom)
        (atoms, scale) = quotient.terms[0]
        partner = _merge(tuple(others), atoms)
        if total.get(partner) == factor * j * scale:
            total[monomial] = total[partner] = 0
            for rest, amount in _terms(x):
                key = _merge(tuple(others), rest)
                total[key] = total.get(key, 0) + amount * factor
            return


def _merge(a: Monomial, b: Monomial) -> Monomial:
    return tuple(sorted((*a, *b), key=str)) if a and b else a or b


def _atom(fn: str, *args: DimLike) -> Dim:
    return Dim((((Call(fn, args),), 1),))


def _atom_symbols(atom: Atom) -> frozenset[str]:
    return frozenset((atom.name,)) if isinstance(atom, Symbol) else shape_symbols(atom.args)


def _only_atom(d: Dim, fn: str) -> Call | None:
    if len(d.terms) == 1 and d.terms[0][1] == 1 and len(d.terms[0][0]) == 1:
        atom = d.terms[0][0][0]
        if isinstance(atom, Call) and atom.fn == fn:
            return atom
    return None


def _constant(d: DimLike) -> int:
    return d if isinstance(d, int) else dict(d.terms).get((), 0)


def _split_small(d: Dim, b: int, ranges: Ranges | None) -> tuple[int, DimLike, DimLike] | None:
    """(g, x, r) with d == g*x + r, g > 1 a divisor of b, x no constant, and 0 <= r < g proved; the largest such g."""
    if ranges is None or b <= 0:
        return None
    candidates = sorted({math.gcd(factor, b) for monomial, factor in d.terms if monomial} - {1}, reverse=True)
    for g in candidates:
        # a constant goes to both: its multiple of g, and what is left
        large = _polynomial((monomial, factor // g) for monomial, factor in d.terms if not monomial or factor % g == 0)
        small = _polynomial((monomial, factor if monomial else factor % g) for monomial, factor in d.terms if not monomial or factor % g)
        if isinstance(large, Dim) and isinstance(small, Dim) and _within(small, g, ranges):
            return g, large, small
    return None


def _exact(d: Dim, g: int) -> DimLike:
    """(d - d_constant % g) / g, for a d whose other coefficients g divides."""
    return _polynomial((monomial, factor // g) for monomial, factor in d.terms)


def _divide(a: DimLike, b: DimLike) -> tuple[DimLike, DimLike]:
    """(q, r) with a == q*b + r: terms that b divides exactly go into q."""
    divisors = _terms(b)
    if len(divisors) != 1:
        return _divide_polynomial(a, b)
    divisor, scale = divisors[0]
    quotient, rest = [], []
    for monomial, factor in _terms(a):
        left = list(monomial)
        for atom in divisor:
            if atom in left:
                left.remove(atom)
            else:
                break
        else:
            if factor % scale == 0:
                quotient.append((tuple(left), factor // scale))
                continue
            if not divisor and not monomial:
                quotient.append(((), factor // scale))
                rest.append(((), factor % scale))
                continue
        rest.append((monomial, factor))
    return _polynomial(quotient), _polynomial(rest)


def _divide_polynomial(a: DimLike, b: Dim) -> tuple[DimLike, DimLike]:
    """Division by a sum: exact multiples only, found by the leading term."""
    quotient: DimLike = 0
    rest = a
    lead, scale = b.terms[0]
    for monomial, factor in _terms(a):
        left = list(monomial)
        if factor % scale == 0 and all(atom in left and not left.remove(atom) for atom in lead):
            step = _polynomial([(tuple(left), factor // scale)])
            if len(_terms(rest - step * b)) < len(_terms(rest)):
                quotient, rest = quotient + step, rest - step * b
    return quotient, rest


def _within(rest: DimLike, b: DimLike, ranges: Ranges | None) -> bool:
    """Whether 0 <= rest < b is proved."""
    return nonnegative(rest, ranges) and nonnegative(b - 1 - rest, ranges)


class _Known:
    """Ranges during one question, with the bounds found so far: nested divisions meet the same parts again and again."""

    __slots__ = ("bounds", "get")

    def __init__(self, ranges: Ranges) -> None:
        self.get = ranges.get
        self.bounds: dict[tuple[Dim, bool], int | None] = {}


def _bound(d: DimLike, ranges: Ranges | _Known, *, upper: bool, depth: int = 0) -> int | None:
    """A bound of d from one side, or None."""
    if isinstance(d, int):
        return d
    known = ranges if isinstance(ranges, _Known) else _Known(ranges)
    if (d, upper) not in known.bounds:
        known.bounds[d, upper] = _term_bounds(d, known, upper, depth)
    return known.bounds[d, upper]


def _term_bounds(d: Dim, ranges: _Known, upper: bool, depth: int) -> int | None:
    """The better of two bounds: that of each term added up, and what is left when a variable is replaced by its symbolic
    end first, so that i < n cancels n."""
    total = _sum_of_bounds(d, ranges, upper)
    chosen = _replaceable(d, ranges, upper) if depth < 8 else None
    if chosen is None:
        return total
    monomial, factor, atom, end = chosen
    rest = list(monomial)
    rest.remove(atom)
    replaced = d - _polynomial([(monomial, factor)]) + _polynomial([(tuple(rest), factor)]) * end
    cancelled = _bound(replaced, ranges, upper=upper, depth=depth + 1)
    if total is None or cancelled is None:
        return cancelled if total is None else total
    return min(total, cancelled) if upper else max(total, cancelled)


def _sum_of_bounds(d: Dim, ranges: _Known, upper: bool) -> int | None:
    total = 0
    for monomial, factor in d.terms:
        bound = _monomial_bound(monomial, ranges, (factor > 0) == upper)
        if bound is None:
            return None
        total += factor * bound
    return total


def _replaceable(d: Dim, ranges: _Known, upper: bool) -> tuple[Monomial, int, Atom, Dim] | None:
    """A factor that has a symbolic end: no variable that another's end mentions, as inner loops' ends mention outer variables."""
    found = []
    for monomial, factor in d.terms:
        for atom in monomial:
            end = _symbolic_end(atom, ranges, (factor > 0) == upper)
            if end is not None and _others_nonnegative(monomial, atom, ranges):
                found.append((monomial, factor, atom, end))
    if len(found) < 2:
        return found[0] if found else None
    mentioned = frozenset().union(*(symbols(end) for _, _, _, end in found))
    return next((item for item in found if not isinstance(item[2], Symbol) or item[2].name not in mentioned), found[0])


def _symbolic_end(atom: Atom, ranges: Ranges, upper: bool) -> DimLike | None:
    """The end of an atom's range, where it is an expression."""
    end: DimLike | None = None
    if isinstance(atom, Symbol):
        known = ranges.get(atom.name, Range())
        end = known.hi if upper else known.lo
    elif atom.fn == "mod" and upper and nonnegative(atom.args[1] - 1, ranges):
        end = atom.args[1] - 1
    elif (atom.fn, upper) in (("min", True), ("max", False)):
        end = next((arg for arg in atom.args if isinstance(arg, Dim)), None)
    return end if isinstance(end, Dim) else None


def _others_nonnegative(monomial: Monomial, atom: Atom, ranges: Ranges) -> bool:
    others = list(monomial)
    others.remove(atom)
    lows = [_atom_bound(other, ranges, upper=False) for other in others]
    return all(low is not None and low >= 0 for low in lows)


def _nonnegative_above(d: Dim, ranges: Ranges) -> bool:
    """Whether no term is below 0 once each atom of a product stands as its lower bound and the rest above it.

    (n - 2) * (m - 2) with n, m >= 3   ->   (n' + 1) * (m' + 1) with n', m' >= 0
    """
    if max(len(monomial) for monomial, _ in d.terms) < 2:
        return False  # a sum of single atoms: its bounds have told
    lows = {atom: _atom_bound(atom, ranges, upper=False) for monomial, _ in d.terms for atom in monomial}
    if None in lows.values() or not any(lows.values()):
        return False
    total: DimLike = 0
    for monomial, factor in d.terms:
        total = total + factor * product(symbol(f"{atom}'") + lows[atom] for atom in monomial)
    return all(factor >= 0 for _, factor in _terms(total))


def _monomial_bound(monomial: Monomial, ranges: Ranges, upper: bool) -> int | None:
    if len(monomial) == 1:
        return _atom_bound(monomial[0], ranges, upper=upper)
    lows = [_atom_bound(atom, ranges, upper=False) for atom in monomial]
    if any(low is None or low < 0 for low in lows):
        return None
    if not upper:
        return math.prod(lows)
    highs = [_atom_bound(atom, ranges, upper=True) for atom in monomial]
    return None if any(high is None for high in highs) else math.prod(highs)


def _atom_bound(atom: Atom, ranges: Ranges, *, upper: bool) -> int | None:
    if isinstance(atom, Symbol):
        known = ranges.get(atom.name, Range())
        end = known.hi if upper else known.lo
        return None if end is None else _bound(end, ranges, upper=upper, depth=1)
    if atom.fn == "floordiv":
        return _floordiv_bound(*atom.args, ranges, upper=upper)
    if atom.fn == "mod":
        return _mod_bound(*atom.args, ranges, upper=upper)
    ends = [_bound(arg, ranges, upper=upper) for arg in atom.args]
    known = [end for end in ends if end is not None]
    # one bounded argument bounds a min from above and a max from below
    one_is_enough = (atom.fn == "min" and upper) or (atom.fn == "max" and not upper)
    if not known or (len(known) < len(ends) and not one_is_enough):
        return None
    if atom.fn == "bcast":
        return max(known) if upper else min(known)
    return min(known) if atom.fn == "min" else max(known)


def _floordiv_bound(a: DimLike, b: DimLike, ranges: Ranges, *, upper: bool) -> int | None:
    low, high = lower_bound(b, ranges), upper_bound(b, ranges)
    if low is None or low < 1:
        return None
    end = _bound(a, ranges, upper=upper)
    if end is None:
        return None
    # a larger divisor brings the quotient nearer to 0
    far = low if (end >= 0) == upper else high
    return end // far if far is not None else (0 if end >= 0 else -1)


def _mod_bound(a: DimLike, b: DimLike, ranges: Ranges, *, upper: bool) -> int | None:
    low = lower_bound(b, ranges)
    if low is None or low < 1:
        return None
    if not upper:
        return 0
    high = upper_bound(b, ranges)
    ends = [] if high is None else [high - 1]
    if nonnegative(a, ranges) and (top := upper_bound(a, ranges)) is not None:
        ends.append(top)
    return min(ends, default=None)


def _format(terms: tuple[tuple[Monomial, int], ...]) -> str:
    text = ""
    for monomial, factor in terms:
        body = "*".join(map(str, monomial))
        size = abs(factor)
        piece = str(size) if not monomial else body if size == 1 else f"{size}*{body}"
        sign = "-" if factor < 0 else "+"
        text = f"{text} {sign} {piece}" if text else f"-{piece}" if factor < 0 else piece
    return text
