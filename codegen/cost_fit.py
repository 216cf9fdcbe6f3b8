"""Short expressions in the place of long ones: polynomials of degree 2 at most in each symbol, through a few of its values.

    154760 * max(1, floordiv(floordiv(n, 4) - 1, max(1, ...)) + 1) * ...  -->  floordiv(9876543 * n + 210736, 4096)

For estimates only. What loops over symbolic extents cost grows like that, but for the steps of tiles and chunks; arithmetic is
of whole numbers and fractions, so that every machine finds the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

from tcompile.ir import dims
from tcompile.ir.dims import DimError, DimLike, symbol

_VALUES = (1, 32, 256)  # of each symbol, between which and above which a fit is to hold
_MOST_SYMBOLS = 3
_STRAIGHT = Fraction(1, 4)  # of a value: what lies as near to a line counts as one
_SCALE = 4096

Powers = tuple[int, ...]
Fit = dict[Powers, Fraction]  # coefficients by the powers of the symbols


def fitted(extent: DimLike) -> DimLike | None:
    """A short expression near an extent that is not negative; None where too many symbols decide it, or some that must be equal."""
    names = sorted(dims.symbols(extent))
    if len(names) > _MOST_SYMBOLS:
        return None
    try:
        found = _fit(extent, names, {})
    except DimError:  # extents that broadcast are no numbers of their own
        return None
    total: DimLike = 0
    for powers, factor in sorted(found.items()):
        monomial = dims.product(symbol(name) for name, power in zip(names, powers, strict=True) for _ in range(power))
        total = total + round(factor * _SCALE) * monomial
    return dims.maximum(dims.floordiv(total, _SCALE), 1)


def _fit(extent: DimLike, names: list[str], values: Mapping[str, int]) -> Fit:
    """The fit over the symbols of ``names``, where others have values: the coefficients over all but the first are fitted in turn."""
    if not names:
        return {(): Fraction(dims.evaluate(extent, values))}
    first, *others = names
    parts = [_fit(extent, others, {**values, first: value}) for value in _VALUES]
    found: Fit = {}
    for powers in _all_powers(parts):
        for power, factor in enumerate(_through([part.get(powers, Fraction(0)) for part in parts])):
            if factor:
                found[(power, *powers)] = factor
    return found


def _all_powers(parts: Iterable[Fit]) -> list[Powers]:
    return sorted({powers for part in parts for powers in part})


def _through(ends: list[Fraction]) -> tuple[Fraction, Fraction, Fraction]:
    """The coefficients of 1, n, n * n through a number at each of the values: a line where that is near enough."""
    (low, middle, high), (a, b, c) = _VALUES, ends
    slope = (c - a) / (high - low)
    bend = ((c - b) / (high - middle) - (b - a) / (middle - low)) / (high - low)
    if abs(a + slope * (middle - low) - b) <= _STRAIGHT * abs(b):
        bend = Fraction(0)
    else:
        slope = (b - a) / (middle - low)
    # a + slope * (n - low) + bend * (n - low) * (n - middle)
    return a - slope * low + bend * low * middle, slope - bend * (low + middle), bend
