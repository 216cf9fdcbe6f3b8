"""A square of vectors read by columns: log2 W rounds of shuffles, each exchanging the off-diagonal blocks of half the size.

a b      a c        lane l of row r        lane r of row l
c d  ->  b d        with blocks of W/2, then of W/4, ... 1
"""

from __future__ import annotations

from collections.abc import Sequence

from tcompile.codegen.cpu_emit_function import Function
from tcompile.codegen.cpu_emit_values import Value, vector


def columns(fn: Function, rows: Sequence[Value], scalar: str) -> list[Value]:
    """The transpose of as many vectors as each has lanes, a power of two. Shuffles that are not used are dropped by LLVM."""
    found = list(rows)
    step = len(rows) // 2
    while step:
        for k in range(len(rows)):
            if not k & step:
                found[k], found[k + step] = _exchange(fn, found[k], found[k + step], step, scalar)
        step //= 2
    return found


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
