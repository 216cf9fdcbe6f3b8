"""What must hold for 32-bit indices where shapes have no bounds: limits that the host checks before a launch.

    128*g + t with g < floordiv(n + 127, 128), t < 128   ->   n + 254 <= 2**31 - 1

A limit is a sum of products of a kernel's dims with factors above 0 that no value of the expression, and no part of the
sum, exceeds in size.
"""

from __future__ import annotations

from collections import Counter
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


def leading(expr: DimLike) -> tuple[Monomial, int]:
    """The term of the most atoms, of those the last by their text; the constant 0 is one without atoms."""
    return max(terms_of(expr) or (((), 0),), key=lambda term: _order(term[0]))


def divided(expr: DimLike, divisor: DimLike) -> tuple[DimLike, DimLike]:
    """(k, r) with expr = k * divisor + r, where no factor of k is below 0, and r has no multiple of the divisor's leading term."""
    lead, by = leading(divisor)
    times: DimLike = 0
    kept: DimLike = 0  # terms that the leading one does not divide
    while by > 0 and expr != 0:
        monomial, factor = leading(expr)
        missing = Counter(lead) - Counter(monomial)
        if missing or factor % by or factor < 0:
            part, taken = 0, factor * _of_atoms(monomial)
            kept = kept + taken
        else:
            part = factor // by * _of_atoms(sorted((Counter(monomial) - Counter(lead)).elements(), key=str))
            taken = part * divisor
        times, expr = times + part, expr - taken
    return times, kept + expr


def _order(monomial: Monomial) -> tuple[int, tuple[str, ...]]:
    return len(monomial), tuple(sorted(map(str, monomial), reverse=True))


def _of_atoms(monomial: Iterable[Atom]) -> DimLike:
    return dims.product(dims.Dim((((atom,), 1),)) for atom in monomial)


def _without(monomial: Monomial, atom: Atom) -> list[Atom]:
    left = list(monomial)
    left.remove(atom)
    return left


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
        terms = {
            monomial: abs(factor)
            for monomial, factor in terms_of(expr)
            if not (positive and factor < 0 and all(map(self._atom_nonnegative, monomial)))
        }
        total: DimLike = 0
        for atom in self._quotients(terms):
            part = self._multiples(atom, terms)
            if part is None:
                return None
            total = total + part
        for monomial, factor in terms.items():
            product = self._product(monomial, factor)
            if product is None:
                return None
            total = total + product
        return total

    def _quotients(self, terms: Iterable[Monomial]) -> list[Call]:
        """The quotients among the factors of terms that are never below 0, those with the longest divisors first."""
        found = {atom for monomial in terms for atom in monomial if isinstance(atom, Call) and atom.fn == "floordiv"}
        proved = [atom for atom in found if all(map(self.nonnegative, atom.args))]
        return sorted(proved, key=lambda atom: (-_order(leading(atom.args[1])[0])[0], str(atom)))

    def _multiples(self, quotient: Call, terms: dict[Monomial, int]) -> DimLike | None:
        """Takes the multiples of a quotient out of ``terms`` where its divisor d is among their factors, and limits them. What may
        be below 0 stays: parts of such a sum are no smaller than all of it.

        (k*d + r) * (x // d) <= k*x + r * (x // d), for k and r not below 0
        """
        dividend, divisor = quotient.args
        own = [monomial for monomial in terms if quotient in monomial and all(map(self._atom_nonnegative, monomial))]
        factors: DimLike = 0
        for monomial in own:
            factors = factors + terms[monomial] * _of_atoms(_without(monomial, quotient))
        times, rest = divided(factors, divisor)
        if times == 0:
            return 0
        for monomial in own:
            del terms[monomial]
        parts = [self._sum(times, positive=True), self._sum(dividend, positive=True)]
        if rest != 0:
            parts += [self._sum(rest, positive=True), self._atom(quotient)]
        if any(part is None for part in parts):
            return None
        return parts[0] * parts[1] + (parts[2] * parts[3] if rest != 0 else 0)

    def _product(self, monomial: Monomial, factor: int) -> DimLike | None:
        total: DimLike = factor
        for atom in monomial:
            part = self._atom(atom)
            if part is None:
                return None
            total = total * part
        return total

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
        if (end := self._clamped(call)) is not None:
            return end
        left = self._sum(a, positive=False)
        if left is None or call.fn == "floordiv":
            return left
        right = self._sum(b, positive=False)
        return None if right is None else left + right

    def _clamped(self, call: Call) -> DimLike | None:
        """A limit of what has an end: max(-1, min(0, x)) <= 1, and max(0, min(x, n)) <= n for n not below 0."""
        alone = dims.Dim((((call,), 1),))
        low, high = dims.lower_bound(alone, self.ranges), dims.upper_bound(alone, self.ranges)
        if low is not None and high is not None and max(abs(low), abs(high)) <= INT_MAX:
            return max(abs(low), abs(high))
        if call.fn == "min" and self._atom_nonnegative(call):
            return self._least(call.args)
        for least, other in (call.args, call.args[::-1]):
            if call.fn == "max" and least == 0:
                return self._least(dims.arguments(other, "min"))
        return None

    def _least(self, ends: Iterable[DimLike]) -> DimLike | None:
        """The first limit of expressions of which the least counts, where it is above 0."""
        found = (self._sum(end, positive=True) for end in ends if self.nonnegative(end))
        return next((end for end in found if end is not None), None)

    def _symbol(self, name: str) -> DimLike | None:
        known = self.ranges.get(name)
        if name in self.base:
            return dims.symbol(name) if known is None or self.nonnegative(known.lo) else None
        if known is None or known.hi is None or (isinstance(known.hi, int) and known.hi > INT_MAX):
            return None
        if known.lo == known.hi:
            return self._sum(known.hi, positive=False)
        return self._sum(known.hi, positive=True) if self.nonnegative(known.lo) else None
