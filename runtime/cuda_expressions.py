"""Expressions over symbols, as a plan holds them: numbers, names, ``["+", [factor, atom, ...], ...]``, ``[function, a, b]``.

The functions are those of the Graph IR: ``floordiv`` and ``mod`` round towards minus infinity and give 0 for a divisor of 0;
``bcast(a, b)`` is b where a is 1, else a.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from operator import itemgetter
from typing import Any

Values = Mapping[str, int]
_DEPTH = 200  # of nesting: deeper ones are no compiler's

_FUNCTIONS: dict[str, Callable[[int, int], int]] = {
    "floordiv": lambda a, b: a // b if b else 0,
    "mod": lambda a, b: a % b if b else 0,
    "min": min,
    "max": max,
    "bcast": lambda a, b: b if a == 1 else a,
}


@dataclass(frozen=True)
class Expression:
    """``value(values)`` evaluates it; ``symbols`` are the names that it needs."""

    value: Callable[[Values], int]
    symbols: frozenset[str]


def read_expression(content: Any, names: frozenset[str] | set[str], depth: int = 0) -> Expression:
    """An expression over some of ``names``. Raises ValueError for anything else."""
    if depth > _DEPTH:
        raise ValueError("an expression is nested too deeply")
    if isinstance(content, int) and not isinstance(content, bool):
        return Expression(lambda values: content, frozenset())
    if isinstance(content, str):
        if content not in names:
            raise ValueError(f"there is no symbol {content!r}")
        return Expression(itemgetter(content), frozenset((content,)))
    if not isinstance(content, list) or not content:
        raise ValueError(f"{content!r} is no expression")
    if content[0] == "+":
        return _sum([_product(term, names, depth) for term in content[1:]])
    if content[0] not in _FUNCTIONS or len(content) != 3:
        raise ValueError(f"{str(content[0])!r} is no function of two expressions")
    a, b = (read_expression(part, names, depth + 1) for part in content[1:])
    function, left, right = _FUNCTIONS[content[0]], a.value, b.value
    return Expression(lambda values: function(left(values), right(values)), a.symbols | b.symbols)


def _product(term: Any, names: frozenset[str] | set[str], depth: int) -> Expression:
    if not isinstance(term, list) or not term or not isinstance(term[0], int) or isinstance(term[0], bool):
        raise ValueError(f"{term!r} is no term of a sum")
    factor, atoms = term[0], [read_expression(atom, names, depth + 1) for atom in term[1:]]
    parts = [atom.value for atom in atoms]
    return Expression(lambda values: factor * prod(part(values) for part in parts), frozenset().union(*(atom.symbols for atom in atoms)))


def _sum(terms: list[Expression]) -> Expression:
    parts = [term.value for term in terms]
    return Expression(lambda values: sum(part(values) for part in parts), frozenset().union(*(term.symbols for term in terms)))
