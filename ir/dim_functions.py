"""The functions of expressions that are no polynomials, simplified where ranges prove it.

What stays a call: floordiv and mod by what does not divide, min and max of what may be either, bcast of two symbols.
"""

from __future__ import annotations

import math

from tcompile.ir.dim_bounds import Ranges, nonnegative, within
from tcompile.ir.dim_polynomial import Dim, DimError, DimLike, applied, common_factor, constant_term, divide, exact, only_atom, polynomial


def floordiv(a: DimLike, b: DimLike, ranges: Ranges | None = None) -> DimLike:
    """a // b; what b divides exactly leaves the call, and a remainder proved in [0, b) is dropped."""
    _refuse_zero(b)
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if b == 1:
        return a
    quotient, rest = divide(a, b)
    if rest == 0 or within(rest, b, ranges):  # q*b // b == q: a b of 0 has no quotient to get wrong
        return quotient
    if isinstance(rest, int) and isinstance(b, int):
        return quotient + rest // b
    if isinstance(b, int) and isinstance(rest, Dim):
        # (g*x + r) // (g*c) == (x + r//g) // c
        g = common_factor(rest, b)
        if g > 1:
            return quotient + floordiv(exact(rest, g), b // g, ranges)
        # (g*x + r) // (g*c) == x // c for 0 <= r < g
        split = _split_small(rest, b, ranges)
        if split is not None:
            return quotient + floordiv(split[1], b // split[0], ranges)
        nested = only_atom(rest, "floordiv")
        if nested is not None and isinstance(nested.args[1], int):
            return quotient + floordiv(nested.args[0], nested.args[1] * b, ranges)
    return quotient + applied("floordiv", rest, b)


def mod(a: DimLike, b: DimLike, ranges: Ranges | None = None) -> DimLike:
    """a % b, which for b > 0 is in [0, b)."""
    _refuse_zero(b)
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if b == 1:
        return 0
    rest = divide(a, b)[1]
    if rest == 0 or within(rest, b, ranges):
        return rest
    if isinstance(rest, int) and isinstance(b, int):
        return rest % b
    if isinstance(b, int) and isinstance(rest, Dim):
        # (g*x + r) % (g*c) == g*((x + r//g) % c) + r%g
        g = common_factor(rest, b)
        if g > 1:
            return mod(exact(rest, g), b // g, ranges) * g + constant_term(rest) % g
        # (g*x + r) % (g*c) == g*(x % c) + r for 0 <= r < g
        split = _split_small(rest, b, ranges)
        if split is not None:
            return mod(split[1], b // split[0], ranges) * split[0] + split[2]
    return applied("mod", rest, b)


def ceildiv(a: DimLike, b: DimLike, ranges: Ranges | None = None) -> DimLike:
    """The smallest integer not below a / b, for b > 0."""
    return floordiv(a + b - 1, b, ranges)


def minimum(a: DimLike, b: DimLike, ranges: Ranges | None = None) -> DimLike:
    """The smaller of two expressions."""
    if nonnegative(b - a, ranges):
        return a
    if nonnegative(a - b, ranges):
        return b
    return applied("min", *sorted((a, b), key=str))


def maximum(a: DimLike, b: DimLike, ranges: Ranges | None = None) -> DimLike:
    """The larger of two expressions."""
    if nonnegative(a - b, ranges):
        return a
    if nonnegative(b - a, ranges):
        return b
    return applied("max", *sorted((a, b), key=str))


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
    call = only_atom(d, "bcast")
    return (d,) if call is None else tuple(part for arg in call.args for part in _bcast_parts(arg))


def _bcast_all(parts: tuple[DimLike, ...]) -> DimLike:
    kept = sorted(dict.fromkeys(parts), key=str)
    kept = [part for part in kept if not any(_bcast_absorbs(other, part) for other in kept)]
    result = kept[0]
    for part in kept[1:]:
        result = applied("bcast", result, part)
    return result


def _bcast_absorbs(a: DimLike, b: DimLike) -> bool:
    """bcast(a, min(a, c)) == a for c >= 1: the two agree, or min gives 1, or the pair is refused when it runs."""
    call = only_atom(b, "min") if isinstance(b, Dim) else None
    return call is not None and a in call.args and all(arg == a or (isinstance(arg, int) and arg >= 1) for arg in call.args)


def _split_small(d: Dim, b: int, ranges: Ranges | None) -> tuple[int, DimLike, DimLike] | None:
    """(g, x, r) with d == g*x + r, g > 1 a divisor of b, x no constant, and 0 <= r < g proved; the largest such g."""
    if ranges is None or b <= 0:
        return None
    candidates = sorted({math.gcd(factor, b) for monomial, factor in d.terms if monomial} - {1}, reverse=True)
    for g in candidates:
        # a constant goes to both: its multiple of g, and what is left
        large = polynomial((monomial, factor // g) for monomial, factor in d.terms if not monomial or factor % g == 0)
        small = polynomial((monomial, factor if monomial else factor % g) for monomial, factor in d.terms if not monomial or factor % g)
        if isinstance(large, Dim) and isinstance(small, Dim) and within(small, g, ranges):
            return g, large, small
    return None


def _refuse_zero(b: DimLike) -> None:
    if isinstance(b, int) and b == 0:
        raise DimError("division of a dimension by zero")
