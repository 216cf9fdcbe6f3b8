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
from collections.abc import Mapping

from tcompile.ir.dim_bounds import NOTHING_KNOWN, Range, Ranges, lower_bound, nonnegative, upper_bound
from tcompile.ir.dim_functions import bcast, ceildiv, floordiv, maximum, minimum, mod
from tcompile.ir.dim_polynomial import (
    Atom,
    Call,
    Dim,
    DimError,
    DimLike,
    Monomial,
    Shape,
    Symbol,
    atom_symbols,
    only_atom,
    polynomial,
    product,
    shape_symbols,
    symbol,
    symbols,
    terms_of,
)

__all__ = [
    "NOTHING_KNOWN",
    "Atom",
    "Call",
    "Dim",
    "DimError",
    "DimLike",
    "Monomial",
    "Range",
    "Ranges",
    "Shape",
    "Symbol",
    "arguments",
    "bcast",
    "ceildiv",
    "evaluate",
    "floordiv",
    "linear",
    "lower_bound",
    "maximum",
    "minimum",
    "mod",
    "nonnegative",
    "parse",
    "product",
    "shape_symbols",
    "simplify",
    "substitute",
    "symbol",
    "symbols",
    "upper_bound",
]

# An expression's own operators // and %, which know no ranges.
Dim.__floordiv__, Dim.__rfloordiv__ = floordiv, lambda self, other: floordiv(other, self)
Dim.__mod__, Dim.__rmod__ = mod, lambda self, other: mod(other, self)

_FUNCTIONS = {"floordiv": floordiv, "mod": mod, "min": minimum, "max": maximum, "bcast": bcast}


def substitute(d: DimLike, values: Mapping[str, DimLike], ranges: Ranges | None = None) -> DimLike:
    """The expression with symbols replaced, simplified anew under ``ranges``."""
    if isinstance(d, int) or (not ranges and symbols(d).isdisjoint(values)):
        return d

    known: dict[Atom, DimLike] = {}

    def value(atom: Atom) -> DimLike:
        if atom not in known:
            known[atom] = _substituted(atom, values, ranges)
        return known[atom]

    found: list[tuple[Monomial, int]] = []
    for monomial, factor in d.terms:
        found += [(rest, scale * factor) for rest, scale in terms_of(product(map(value, monomial)))]
    return polynomial(found)


def _substituted(atom: Atom, values: Mapping[str, DimLike], ranges: Ranges | None) -> DimLike:
    if isinstance(atom, Symbol):
        return values[atom.name] if atom.name in values else symbol(atom.name)
    args = [substitute(arg, values, ranges) for arg in atom.args]
    return bcast(*args) if atom.fn == "bcast" else _FUNCTIONS[atom.fn](*args, ranges)


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


def arguments(d: DimLike, fn: str) -> tuple[DimLike, ...]:
    """The arguments of an expression that is nothing but a call of ``fn``; () for any other."""
    call = only_atom(d, fn) if isinstance(d, Dim) else None
    return () if call is None else call.args


def linear(d: DimLike, name: str) -> tuple[DimLike, DimLike] | None:
    """(factor, rest) with d == factor * name + rest and neither using ``name``; None where d is not linear."""
    if isinstance(d, int):
        return 0, d
    factor, rest = [], []
    for monomial, scale in d.terms:
        here = [atom for atom in monomial if name in atom_symbols(atom)]
        if not here:
            rest.append((monomial, scale))
        elif len(here) == 1 and here[0] == Symbol(name):
            factor.append((tuple(atom for atom in monomial if atom != here[0]), scale))
        else:
            return None
    return polynomial(factor), polynomial(rest)


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
