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
    return Limiter(base, ranges).limit(expr)


def undominated(limits: Iterable[DimLike]) -> tuple[DimLike, ...]:
    """The limits that no other one implies, in the order of their text."""
    kept: list[DimLike] = []
    for one in sorted(set(limits), key=lambda one: (-len(str(one)), str(one))):
        if not any(all(factor >= 0 for _, factor in terms_of(other - one)) for other in kept):
            kept = [other for other in kept if not all(factor >= 0 for _, factor in terms_of(one - other))] + [one]
    return tuple(kept)


class Limiter:
    """Limits and signs under ``ranges``, remembered by atom: ``forget`` them when ranges change."""

    def __init__(self, base: frozenset[str], ranges: Ranges) -> None:
        self.base, self.ranges = base, ranges
        self.limits: dict[Atom, DimLike | None] = {}
        self.signs: dict[Atom, bool] = {}

    def forget(self) -> None:
        """Drops what was found."""
        self.limits.clear()
        self.signs.clear()

    def limit(self, expr: DimLike) -> DimLike | None:
        """A limit of an expression's size; None where a variable has no end."""
        found = self._sum(expr, positive=False)
        return None if found is None else self._sum(found, positive=True)  # what loops' ends brought in cancels too

    def nonnegative(self, expr: DimLike) -> bool:
        """Whether an expression is never below 0: beyond what bounds prove, quotients and remainders by what may be 0 are not."""
        if all(factor > 0 and all(map(self._atom_nonnegative, monomial)) for monomial, factor in terms_of(expr)):
            return True
        return dims.nonnegative(expr, self.ranges)

    def _atom_nonnegative(self, atom: Atom) -> bool:
        if atom not in self.signs:
            self.signs[atom] = self._sign(atom)
        return self.signs[atom]

    def _sign(self, atom: Atom) -> bool:
        if isinstance(atom, Symbol):
            known = self.ranges.get(atom.name)
            return known is None or self.nonnegative(known.lo)
        if all(map(self.nonnegative, atom.args)):
            return True
        return dims.nonnegative(dims.Dim((((atom,), 1),)), self.ranges)

    def _sum(self, expr: DimLike, *, positive: bool) -> DimLike | None:
        """``positive``: of an expression that is not below 0, so that what is subtracted may be left out."""
        total: DimLike = 0
        for monomial, factor in terms_of(expr):
            if positive and factor < 0 and all(map(self._atom_nonnegative, monomial)):
                continue
            product = self._product(monomial, abs(factor))
            if product is None:
                return None
            total = total + product
        return total

    def _product(self, monomial: Monomial, factor: int) -> DimLike | None:
        total: DimLike = 1
        left = list(monomial)
        for atom in sorted(monomial, key=lambda atom: not isinstance(atom, Call)):
            if atom not in left:
                continue  # cancelled
            left.remove(atom)
            found = self._quotient(atom, left, factor)
            if found is not None:  # d * (x // d) <= x
                dividend, left, factor = found
                part = self._sum(dividend, positive=True)
            else:
                part = self._atom(atom)
            if part is None:
                return None
            total = total * part
        return total * factor

    def _quotient(self, atom: Atom, left: list[Atom], factor: int) -> tuple[DimLike, list[Atom], int] | None:
        """For a quotient whose divisor is among the other factors: the dividend, and what is left of those."""
        if not isinstance(atom, Call) or atom.fn != "floordiv" or not self.nonnegative(atom.args[0]):
            return None
        divisor = terms_of(atom.args[1])
        if len(divisor) != 1 or divisor[0][1] < 1 or factor % divisor[0][1]:
            return None
        rest = list(left)
        for part in divisor[0][0]:
            if part not in rest or not self._atom_nonnegative(part):
                return None
            rest.remove(part)
        return atom.args[0], rest, factor // divisor[0][1]

    def _atom(self, atom: Atom) -> DimLike | None:
        if atom not in self.limits:
            self.limits[atom] = self._symbol(atom.name) if isinstance(atom, Symbol) else self._call(atom)
        return self.limits[atom]

    def _call(self, call: Call) -> DimLike | None:
        a, b = call.args
        if call.fn == "floordiv" and all(map(self.nonnegative, call.args)):
            part = self._sum(a, positive=True)
            over_dims = dims.symbols(b) <= self.base
            return dims.floordiv(part, b) if part is not None and over_dims else part  # a quotient by 0 is 0
        if call.fn == "mod":
            return self._sum(b, positive=False)
        left = self._sum(a, positive=False)
        if left is None or call.fn == "floordiv":
            return left
        right = self._sum(b, positive=False)
        return None if right is None else left + right

    def _symbol(self, name: str) -> DimLike | None:
        known = self.ranges.get(name)
        if name in self.base:
            return dims.symbol(name) if known is None or self.nonnegative(known.lo) else None
        if known is None or known.hi is None or (isinstance(known.hi, int) and known.hi > INT_MAX):
            return None
        if known.lo == known.hi:
            return self._sum(known.hi, positive=False)
        return self._sum(known.hi, positive=True) if self.nonnegative(known.lo) else None
