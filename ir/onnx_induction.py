"""Counters that loops carry: integers that every turn moves by a constant, and conditions that compare them.

TensorFlow and PyTorch export a counted loop as a condition on a carried ``i``, and index with it. Known as an
expression of the turn, ``i`` makes slices out of gathers, and ``i < n`` a number of turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tcompile.ir import dims, onnx_content
from tcompile.ir.dims import Dim, DimLike
from tcompile.ir.graph import Node, Value
from tcompile.ir.onnx_builder import ImportBuilder
from tcompile.ir.onnx_content import Ratio

_FAR = 2**40

# what a comparison says about rhs - lhs: it is at least this
_AT_LEAST = {"lt": (1, 1), "le": (1, 0), "gt": (-1, 1), "ge": (-1, 0)}


@dataclass(frozen=True)
class Induction:
    """A carried value that is ``start + step * turn`` at the start of a turn."""

    start: DimLike
    step: int

    def after(self, turns: DimLike) -> DimLike:
        """The value before turn number ``turns``, and so after that many."""
        return self.start + turns * self.step


def initial_count(b: ImportBuilder, value: Value) -> DimLike | None:
    """The content of an integer scalar (or vector of one) that is known where the loop starts."""
    content = b.contents.get(value)
    if not value.dtype.is_integer or content is None or content.size != 1 or not onnx_content.is_known(content):
        return None
    return content.reshape(-1).tolist()[0]


def probe(b: ImportBuilder) -> Dim:
    """A symbol of which nothing is known, to see what a turn does to a value."""
    return b.fresh_symbol("probe", -_FAR, _FAR)


def known_scalar(expr: DimLike, shape: tuple[int, ...]) -> np.ndarray:
    """The content of a tensor of one element."""
    array = np.empty(shape, object)
    array[...] = expr
    return array


def step_of(b: ImportBuilder, handed: Value, start: Dim) -> int | None:
    """By how much a turn moves a value that was the symbol ``start``; None where that is no constant."""
    now = initial_count(b, handed)
    moved = None if now is None else now - start
    return moved if isinstance(moved, int) and moved else None


@dataclass(frozen=True)
class Turns:
    """How often a loop runs: at most ``count`` times, and just so often where ``exact``."""

    count: DimLike
    exact: bool


def count_turns(b: ImportBuilder, first: Value, body: ImportBuilder, again: Value, counter: Dim) -> Turns | None:
    """How many turns the conditions allow: ``first`` before the loop, ``again`` after each turn.

    A condition is a conjunction; those parts count that compare a counter with a limit. Both conditions must ask the
    same, or the first one be constant. None where nothing is known.
    """
    found = [_margin(body, node, counter) for node in _conjuncts(body, again)]
    margins = [margin for margin in found if margin is not None]
    if not margins:
        return None
    exact = len(margins) == len(found)
    constant = b.constant_of(first)
    if constant is not None and not constant.reshape(-1)[0]:
        return Turns(0, True)
    if constant is None:
        # the first condition is the other one before turn 0, if its margin is that of turn -1
        before = [_difference(b, node) for node in _conjuncts(b, first)]
        if exact and before == [margin - slope for slope, margin in margins]:
            return Turns(_least(b, [(slope, margin - slope) for slope, margin in margins], 0), True)
        exact = False
    return Turns(_least(b, margins, 1), exact)


def _least(b: ImportBuilder, margins: Sequence[tuple[int, DimLike]], extra: int) -> DimLike:
    """For how many turns 0, 1, ... all margins stay positive, and some more."""
    counts = [dims.maximum(0, dims.ceildiv(margin, -slope, b.symbols), b.symbols) for slope, margin in margins]
    total = counts[0]
    for count in counts[1:]:
        total = dims.minimum(total, count, b.symbols)
    return total + extra


def _conjuncts(b: ImportBuilder, value: Value) -> Iterator[Node | None]:
    """The comparisons whose conjunction a bool is; constants that are true are left out, None stands for anything else."""
    constant = b.constant_of(value)
    if constant is not None and constant.size == 1 and constant.reshape(-1)[0]:
        return
    node = next((node for node in b.nodes if value in node.outputs), None)
    if node is not None and node.op == "reshape":
        yield from _conjuncts(b, node.inputs[0])
    elif node is not None and node.op == "map" and node.attrs["fn"] == "and":
        for part in node.inputs:
            yield from _conjuncts(b, part)
    else:
        yield node if node is not None and node.op == "map" and node.attrs["fn"] in _AT_LEAST else None


def _difference(b: ImportBuilder, node: Node | None) -> DimLike | None:
    """An expression that is > 0 where a comparison of exact numbers holds (tf2onnx compares counters as floats)."""
    if node is None:
        return None
    left, right = (_exact_scalar(b, value) for value in node.inputs)
    if left is None or right is None:
        return None
    sign, least = _AT_LEAST[node.attrs["fn"]]
    return (right.num * left.den - left.num * right.den) * sign + 1 - least


def _exact_scalar(b: ImportBuilder, value: Value) -> Ratio | None:
    content = b.contents.get(value)
    if content is None or content.size != 1 or not onnx_content.is_known(content) or value.dtype.kind == "b":
        return None
    item = content.reshape(-1).tolist()[0]
    return onnx_content.ratio(item) if value.dtype.is_float else Ratio(item, 1)


def _margin(b: ImportBuilder, node: Node | None, counter: Dim) -> tuple[int, DimLike] | None:
    """(slope, margin) of a comparison that holds while margin + slope * turn > 0, for a negative slope."""
    difference = _difference(b, node)
    parts = None if difference is None else dims.linear(difference, str(counter))
    if parts is None or not isinstance(parts[0], int) or parts[0] >= 0:
        return None
    return parts
