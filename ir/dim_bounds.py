"""What ranges of symbols prove of expressions: bounds from both sides, and signs.

Bounds are safe and not always tight: None, or False, says that nothing was proved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tcompile.ir.dim_polynomial import Atom, Dim, DimLike, Monomial, Symbol, merge, polynomial, product, symbol, symbols, terms_of


@dataclass(frozen=True)
class Range:
    """The values a symbol may take, both ends included; ``hi`` None is unbounded. Ends may be symbolic."""

    lo: DimLike = 0
    hi: DimLike | None = None


Ranges = Mapping[str, Range]


class _NothingKnown(dict):
    """Every symbol may be anything, where one without a range would be at least 0."""

    def get(self, name: str, default: object = None) -> Range:
        """The range of a symbol."""
        return Range(-(2**62), None)

    def __bool__(self) -> bool:
        return True


NOTHING_KNOWN: Ranges = _NothingKnown()


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


def within(rest: DimLike, b: DimLike, ranges: Ranges | None) -> bool:
    """Whether 0 <= rest < b is proved."""
    return nonnegative(rest, ranges) and nonnegative(b - 1 - rest, ranges)


class _Known:
    """Ranges during one question, with the bounds found so far: nested divisions, and products that were multiplied out, meet the
    same parts again and again."""

    __slots__ = ("atoms", "bounds", "get")

    def __init__(self, ranges: Ranges) -> None:
        self.get = ranges.get
        self.bounds: dict[tuple[Dim, bool], int | None] = {}
        self.atoms: dict[tuple[Atom, bool], int | None] = {}


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
    kept = (term for term in d.terms if term[0] != monomial)
    replaced = polynomial((*kept, *((merge(tuple(rest), other), factor * scale) for other, scale in end.terms)))
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


def _symbolic_end(atom: Atom, ranges: _Known, upper: bool) -> DimLike | None:
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


def _others_nonnegative(monomial: Monomial, atom: Atom, ranges: _Known) -> bool:
    others = list(monomial)
    others.remove(atom)
    lows = [_atom_bound(other, ranges, upper=False) for other in others]
    return all(low is not None and low >= 0 for low in lows)


def _nonnegative_above(d: Dim, ranges: Ranges | _Known) -> bool:
    """Whether no term is below 0 once each atom of a product stands as its lower bound and the rest above it.

    (n - 2) * (m - 2) with n, m >= 3   ->   (n' + 1) * (m' + 1) with n', m' >= 0
    """
    if max(len(monomial) for monomial, _ in d.terms) < 2:
        return False  # a sum of single atoms: its bounds have told
    known = ranges if isinstance(ranges, _Known) else _Known(ranges)
    lows = {atom: _atom_bound(atom, known, upper=False) for monomial, _ in d.terms for atom in monomial}
    if None in lows.values() or not any(lows.values()):
        return False
    above = {atom: symbol(f"{atom}'") + low for atom, low in lows.items()}
    products = ((product(above[atom] for atom in monomial), factor) for monomial, factor in d.terms)
    total = polynomial((monomial, factor * scale) for one, factor in products for monomial, scale in terms_of(one))
    return all(factor >= 0 for _, factor in terms_of(total))


def _monomial_bound(monomial: Monomial, ranges: _Known, upper: bool) -> int | None:
    if len(monomial) == 1:
        return _atom_bound(monomial[0], ranges, upper=upper)
    lows = [_atom_bound(atom, ranges, upper=False) for atom in monomial]
    if any(low is None or low < 0 for low in lows):
        return None
    if not upper:
        return math.prod(lows)
    highs = [_atom_bound(atom, ranges, upper=True) for atom in monomial]
    return None if any(high is None for high in highs) else math.prod(highs)


def _atom_bound(atom: Atom, ranges: _Known, *, upper: bool) -> int | None:
    if (atom, upper) not in ranges.atoms:
        ranges.atoms[atom, upper] = _end_of_atom(atom, ranges, upper)
    return ranges.atoms[atom, upper]


def _end_of_atom(atom: Atom, ranges: _Known, upper: bool) -> int | None:
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


def _floordiv_bound(a: DimLike, b: DimLike, ranges: _Known, *, upper: bool) -> int | None:
    low, high = lower_bound(b, ranges), upper_bound(b, ranges)
    if low is None or low < 1:
        return None
    end = _bound(a, ranges, upper=upper)
    if end is None:
        return None
    # a larger divisor brings the quotient nearer to 0
    far = low if (end >= 0) == upper else high
    return end // far if far is not None else (0 if end >= 0 else -1)


def _mod_bound(a: DimLike, b: DimLike, ranges: _Known, *, upper: bool) -> int | None:
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
