"""Polynomials with integer coefficients over atoms: the canonical form of dimensions and indices.

A ``Dim`` is a sum of terms, each a coefficient and a monomial; a monomial is a product of atoms: symbols, and calls of functions
that are no polynomials (``floordiv``, ``mod``, ``min``, ``max``, ``bcast``). What those functions simplify to is said in
``dim_functions.py``; here are sums, products and exact division. ``dims.py`` is what others import.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from tcompile.errors import Error


class DimError(Error):
    """An expression that cannot be evaluated or parsed."""


class Symbol(NamedTuple):
    """An atom: a named integer. Hashed often, and so by C."""

    name: str

    def __str__(self) -> str:
        return self.name


class Call:
    """An atom: a function of expressions that is no polynomial. Make one with ``call``, which keeps one of each."""

    __slots__ = ("_hash", "args", "fn", "text")

    def __init__(self, fn: str, args: tuple[DimLike, ...]) -> None:
        self.fn, self.args = fn, args
        self._hash = hash((fn, args))
        self.text = f"{fn}({', '.join(map(str, args))})"

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Call) and self._hash == other._hash and (self.fn, self.args) == (other.fn, other.args))

    def __reduce__(self):
        return (call, (self.fn, self.args))  # another process hashes anew

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Call({self})"


Atom = Symbol | Call
Monomial = tuple[Atom, ...]  # sorted by text; a power is a repeated atom; () is the constant term
Terms = tuple[tuple[Monomial, int], ...]

call = lru_cache(maxsize=1 << 16)(Call)  # equal calls are mostly one object, which makes comparing them cheap


class Dim:
    """A polynomial over atoms, never constant. Build one with ``symbol`` and operators."""

    __slots__ = ("_hash", "_symbols", "_text", "terms")

    def __init__(self, terms: Terms) -> None:
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
        return _with_constant(self.terms, int(other)) if isinstance(other, int) else polynomial((*self.terms, *terms_of(other)))

    def __neg__(self) -> DimLike:
        return Dim(tuple((monomial, -factor) for monomial, factor in self.terms))

    def __sub__(self, other: DimLike) -> DimLike:
        return self + -other

    def __rsub__(self, other: DimLike) -> DimLike:
        return -self + other

    def __mul__(self, other: DimLike) -> DimLike:
        if isinstance(other, int):  # the order stays, and what was joined
            return Dim(tuple((monomial, factor * int(other)) for monomial, factor in self.terms)) if other else 0
        return polynomial((merge(a, b), x * y) for a, x in self.terms for b, y in terms_of(other))

    __radd__ = __add__
    __rmul__ = __mul__


DimLike = int | Dim
Shape = tuple[DimLike, ...]


def symbol(name: str) -> Dim:
    """The expression that is the symbol ``name``."""
    return Dim((((Symbol(name),), 1),))


def applied(fn: str, *args: DimLike) -> Dim:
    """The expression that is nothing but a call."""
    return Dim((((call(fn, args),), 1),))


def only_atom(d: Dim, fn: str) -> Call | None:
    """The call of ``fn`` that an expression is, if it is nothing else."""
    if len(d.terms) == 1 and d.terms[0][1] == 1 and len(d.terms[0][0]) == 1:
        found = d.terms[0][0][0]
        if isinstance(found, Call) and found.fn == fn:
            return found
    return None


def product(dims: Iterable[DimLike]) -> DimLike:
    """The product of dimensions; 1 of none."""
    return math.prod(dims)


def symbols(d: DimLike) -> frozenset[str]:
    """Names of all symbols of an expression."""
    if isinstance(d, int):
        return frozenset()
    if d._symbols is None:
        d._symbols = frozenset().union(*map(atom_symbols, {atom for monomial, _ in d.terms for atom in monomial}))
    return d._symbols


def shape_symbols(shape: Iterable[DimLike]) -> frozenset[str]:
    """Names of all symbols of a shape."""
    return frozenset().union(*map(symbols, shape))


def atom_symbols(atom: Atom) -> frozenset[str]:
    """Names of all symbols of an atom."""
    return frozenset((atom.name,)) if isinstance(atom, Symbol) else shape_symbols(atom.args)


# Terms ------------------------------------------------------------------------------------------------


def terms_of(d: DimLike) -> Terms:
    """The terms of an expression; of 0, none."""
    if isinstance(d, Dim):
        return d.terms
    return (((), int(d)),) if d else ()


def constant_term(d: DimLike) -> int:
    """The term without atoms; 0 if there is none."""
    return d if isinstance(d, int) else dict(d.terms).get((), 0)


def merge(a: Monomial, b: Monomial) -> Monomial:
    """The product of monomials."""
    return tuple(sorted((*a, *b), key=str)) if a and b else a or b


def polynomial(terms: Iterable[tuple[Monomial, int]]) -> DimLike:
    """The sum of terms in any order, in canonical form: terms of one monomial are one, quotients and remainders are joined."""
    total: dict[Monomial, int] = {}
    for monomial, factor in terms:
        total[monomial] = total.get(monomial, 0) + factor
    placed = [(_order(monomial), monomial) for monomial in total]
    remainders = [monomial for (_, holds_remainder), monomial in placed if holds_remainder]
    if remainders:
        for monomial in remainders:
            _join_mod(total, monomial)
        placed = [(_order(monomial), monomial) for monomial in total]
    kept = [(place, monomial) for (place, _), monomial in placed if total[monomial]]
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][1]:
        return total[()]
    kept.sort(key=_place)
    return Dim(tuple([(monomial, total[monomial]) for _, monomial in kept]))


_Place = tuple[bool, int, list[str]]  # the constant last, long monomials first, then by text


def _place(term: tuple[_Place, Monomial]) -> _Place:
    return term[0]


@lru_cache(maxsize=1 << 16)
def _order(monomial: Monomial) -> tuple[_Place, bool]:
    """Where a monomial stands among others, and whether it holds a remainder."""
    return (not monomial, -len(monomial), [str(atom) for atom in monomial]), any(map(_is_mod, monomial))


def _with_constant(terms: Terms, more: int) -> Dim:
    """A polynomial's terms plus a constant, which stands last; nothing else changes."""
    monomial, factor = terms[-1]
    if not monomial:
        terms, more = terms[:-1], more + factor
    return Dim((*terms, ((), more)) if more else terms)


# Division ---------------------------------------------------------------------------------------------


def divide(a: DimLike, b: DimLike) -> tuple[DimLike, DimLike]:
    """(q, r) with a == q*b + r: terms that b divides exactly go into q."""
    divisors = terms_of(b)
    if len(divisors) != 1:
        return _divide_polynomial(a, b)
    divisor, scale = divisors[0]
    quotient, rest = [], []
    for monomial, factor in terms_of(a):
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
    return polynomial(quotient), polynomial(rest)


def _divide_polynomial(a: DimLike, b: Dim) -> tuple[DimLike, DimLike]:
    """Division by a sum: exact multiples only, found by the leading term."""
    quotient: DimLike = 0
    rest = a
    lead, scale = b.terms[0]
    for monomial, factor in terms_of(a):
        left = list(monomial)
        if factor % scale == 0 and all(atom in left and not left.remove(atom) for atom in lead):
            step = polynomial([(tuple(left), factor // scale)])
            if len(terms_of(rest - step * b)) < len(terms_of(rest)):
                quotient, rest = quotient + step, rest - step * b
    return quotient, rest


def common_factor(d: Dim, b: int) -> int:
    """The greatest common divisor of b and the coefficients of d, but for its constant."""
    return math.gcd(b, *(factor for monomial, factor in d.terms if monomial))


def exact(d: Dim, g: int) -> DimLike:
    """(d - d_constant % g) / g, for a d whose other coefficients g divides."""
    return polynomial((monomial, factor // g) for monomial, factor in d.terms)


def _is_mod(atom: Atom) -> bool:
    return isinstance(atom, Call) and atom.fn == "mod" and isinstance(atom.args[1], int)


def _join_mod(total: dict[Monomial, int], monomial: Monomial) -> None:
    """j*(x//j) + x%j == x keeps flattened indices free of divisions."""
    factor = total.get(monomial, 0)
    for atom in monomial if factor else ():
        if not _is_mod(atom):
            continue
        x, j = atom.args
        others = list(monomial)
        others.remove(atom)
        partner = merge(tuple(others), (_quotient(x, j),))
        if total.get(partner) == factor * j:
            total[monomial] = total[partner] = 0
            for rest, amount in terms_of(x):
                key = merge(tuple(others), rest)
                total[key] = total.get(key, 0) + amount * factor
            return


def _quotient(x: DimLike, j: int) -> Call:
    """The call that x // j is where x % j is a call too: (y // m) // j == y // (m*j), (g*y) // (g*j) == y // j."""
    nested = only_atom(x, "floordiv")
    if nested is not None and isinstance(nested.args[1], int):
        return _quotient(nested.args[0], nested.args[1] * j)
    g = common_factor(x, j)
    return call("floordiv", (x, j)) if g == 1 else _quotient(exact(x, g), j // g)


def _format(terms: Terms) -> str:
    text = ""
    for monomial, factor in terms:
        body = "*".join(map(str, monomial))
        size = abs(factor)
        piece = str(size) if not monomial else body if size == 1 else f"{size}*{body}"
        sign = "-" if factor < 0 else "+"
        text = f"{text} {sign} {piece}" if text else f"-{piece}" if factor < 0 else piece
    return text
