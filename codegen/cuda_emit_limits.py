"""What must hold for 32-bit indices where shapes have no bounds: limits that the host checks before a launch.

    128*g + t with g < floordiv(n + 127, 128), t < 128   ->   n + 254 <= 2**31 - 1

A limit is a sum of products of a kernel's dims with factors above 0 that no value of the expression, and no part of the
sum, exceeds in size.
"""

from __future__ import annotations

from collections.abc import Iterable

from tcompile.ir import dims
from tcompile.ir.dims import Atom, Call, DimLike, Monomial, Ranges, Symbol

INT_MAX = 2**31 - 1


def terms_of(expr: DimLike) -> tuple[tuple[Monomial, int], ...]:
    """The terms of an expression; a constant is one without atoms."""
    if isinstance(expr, int):
        return (((), expr),) if expr else ()
    return expr.terms


def limit(expr: DimLike, base: frozenset[str], ranges: Ranges) -> DimLike | None:
    """A limit of an expression's size over the dims ``base``; None where a variable has no end."""
    found = _sum(expr, base, ranges, positive=False)
    return None if found is None else _sum(found, base, ranges, positive=True)  # what loops' ends brought in cancels too


def nonnegative(expr: DimLike, ranges: Ranges) -> bool:
    """Whether an expression is never below 0: beyond what bounds prove, quotients and remainders by what may be 0 are not."""
    if dims.nonnegative(expr, ranges):
        return True
    return all(factor > 0 and all(_atom_nonnegative(atom, ranges) for atom in monomial) for monomial, factor in terms_of(expr))


def _atom_nonnegative(atom: Atom, ranges: Ranges) -> bool:
    if isinstance(atom, Symbol):
        known = ranges.get(atom.name)
        return known is None or nonnegative(known.lo, ranges)
    return all(nonnegative(arg, ranges) for arg in atom.args)


def undominated(limits: Iterable[DimLike]) -> tuple[DimLike, ...]:
    """The limits that no other one implies, in the order of their text."""
    kept: list[DimLike] = []
    for one in sorted(set(limits), key=lambda one: (-len(str(one)), str(one))):
        if not any(all(factor >= 0 for _, factor in terms_of(other - one)) for other in kept):
            kept = [other for other in kept if not all(factor >= 0 for _, factor in terms_of(one - other))] + [one]
    return tuple(kept)


def _sum(expr: DimLike, base: frozenset[str], ranges: Ranges, *, positive: bool) -> DimLike | None:
    """``positive``: of an expression that is not below 0, so that what is subtracted may be left out."""
    total: DimLike = 0
    for monomial, factor in terms_of(expr):
        if positive and factor < 0 and all(_atom_nonnegative(atom, ranges) for atom in monomial):
            continue
        product = _product(monomial, abs(factor), base, ranges)
        if product is None:
            return None
        total = total + product
    return total


def _product(monomial: Monomial, factor: int, base: frozenset[str], ranges: Ranges) -> DimLike | None:
    total: DimLike = 1
    left = list(monomial)
    for atom in sorted(monomial, key=lambda atom: not isinstance(atom, Call)):
        if atom not in left:
            continue  # cancelled
        left.remove(atom)
        found = _quotient(atom, left, factor, ranges)
        if found is not None:  # d * (x // d) <= x
            dividend, left, factor = found
            part = _sum(dividend, base, ranges, positive=True)
        else:
            part = _atom(atom, base, ranges)
        if part is None:
            return None
        total = total * part
    return total * factor


def _quotient(atom: Atom, left: list[Atom], factor: int, ranges: Ranges) -> tuple[DimLike, list[Atom], int] | None:
    """For a quotient whose divisor is among the other factors: the dividend, and what is left of those."""
    if not isinstance(atom, Call) or atom.fn != "floordiv" or not nonnegative(atom.args[0], ranges):
        return None
    divisor = terms_of(atom.args[1])
    if len(divisor) != 1 or divisor[0][1] < 1 or factor % divisor[0][1]:
        return None
    rest = list(left)
    for part in divisor[0][0]:
        if part not in rest or not _atom_nonnegative(part, ranges):
            return None
        rest.remove(part)
    return atom.args[0], rest, factor // divisor[0][1]


def _atom(atom: Atom, base: frozenset[str], ranges: Ranges) -> DimLike | None:
    if isinstance(atom, Symbol):
        return _symbol(atom.name, base, ranges)
    a, b = atom.args
    if atom.fn == "floordiv" and all(nonnegative(arg, ranges) for arg in atom.args):
        part = _sum(a, base, ranges, positive=True)
        over_dims = dims.symbols(b) <= base
        return dims.floordiv(part, b) if part is not None and over_dims else part  # a quotient by 0 is 0
    if atom.fn == "mod":
        return limit(b, base, ranges)
    left = limit(a, base, ranges)
    if left is None or atom.fn == "floordiv":
        return left
    right = limit(b, base, ranges)
    return None if right is None else left + right


def _symbol(name: str, base: frozenset[str], ranges: Ranges) -> DimLike | None:
    known = ranges.get(name)
    if name in base:
        return dims.symbol(name) if known is None or nonnegative(known.lo, ranges) else None
    if known is None or known.hi is None or (isinstance(known.hi, int) and known.hi > INT_MAX):
        return None
    if known.lo == known.hi:
        return limit(known.hi, base, ranges)
    return _sum(known.hi, base, ranges, positive=True) if nonnegative(known.lo, ranges) else None
