"""A square of vectors read by columns: rounds of shuffles over 128 bits, then of such as interleave inside of 128 bits.

a b      a c        lane l of row r        lane r of row l
c d  ->  b d        with blocks of half of the lanes, then of a quarter, ... down to 128 bits

a0 a1 a2 a3  ->  a0 b0 a1 b1 and a2 b2 a3 b3    of neighbouring rows, then of neighbouring results with units twice as large
"""

from __future__ import annotations

from collections.abc import Sequence

from tcompile.codegen.cpu_emit_function import Function
from tcompile.codegen.cpu_emit_values import Value, vector

_BITS = 128  # which instructions interleave


def columns(fn: Function, rows: Sequence[Value], scalar: str, bits: int) -> list[Value]:
    """The transpose of as many vectors as each has lanes, a power of two, of ``bits`` bits. LLVM drops shuffles that are not used."""
    found, some = list(rows), min(_BITS // bits, len(rows))
    step = len(rows) // 2
    while step >= some:
        for k in range(len(rows)):
            if not k & step:
                found[k], found[k + step] = _exchange(fn, found[k], found[k + step], step, scalar)
        step //= 2
    return [value for k in range(0, len(found), some) for value in _interleaved(fn, found[k : k + some], 1, scalar)]


def _interleaved(fn: Function, rows: list[Value], unit: int, scalar: str) -> list[Value]:
    """The columns of as many rows as 128 bits have units of ``unit`` lanes."""
    if len(rows) == 1:
        return rows
    lanes, part = rows[0].lanes, len(rows) * unit
    halves = []
    for start in (0, part // 2):
        units = range(start, start + part // 2, unit)
        order = [base + at + k + b * lanes for base in range(0, lanes, part) for at in units for b in (0, 1) for k in range(unit)]
        found = [_shuffle(fn, a, b, order, scalar) for a, b in zip(rows[::2], rows[1::2], strict=True)]
        halves += _interleaved(fn, found, 2 * unit, scalar)
    return halves


def _exchange(fn: Function, a: Value, b: Value, step: int, scalar: str) -> tuple[Value, Value]:
    """Blocks of ``step`` lanes: the odd ones of a for the even ones of b."""
    lanes = a.lanes
    first = [lane if not lane & step else lanes + lane - step for lane in range(lanes)]
    second = [lane + step if not lane & step else lanes + lane for lane in range(lanes)]
    return _shuffle(fn, a, b, first, scalar), _shuffle(fn, a, b, second, scalar)


def _shuffle(fn: Function, a: Value, b: Value, lanes: Sequence[int], scalar: str) -> Value:
    depth = max(a.depth, b.depth)
    chosen = ", ".join(f"i32 {lane}" for lane in lanes)
    kind = vector(scalar, a.lanes)
    return Value(fn.pure(f"shufflevector {kind} {a.name}, {kind} {b.name}, <{len(lanes)} x i32> <{chosen}>", depth), depth, a.lanes)
