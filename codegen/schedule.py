"""Scheduling primitives: small functions on immutable Loop IR that keep its meaning, each shown before --> after.

Which of them a kernel gets is the business of ``cpu_schedule.py`` and its like. The primitives that turn loops
into lanes are in ``schedule_lanes.py`` (the loop of a sum) and ``schedule_distribute.py`` (a loop around sums).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

from tcompile.codegen.loop_rewrite import substitute
from tcompile.codegen.schedule_access import KNOWN, indices_of, only_loop
from tcompile.ir import dims
from tcompile.ir.dims import Dim, DimLike
from tcompile.ir.loops import Block, For, If, Index, Let, LoopKind, Stmt, While


class Names:
    """Fresh names for variables and buffers that a schedule adds."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def __call__(self, hint: str) -> str:
        return f"%{hint}s{next(self._numbers)}"


def map_loops(block: Block, change: Callable[[For], Block | None]) -> Block:
    """Replaces loops, innermost first; ``None`` leaves a loop as it is."""
    result: list[Stmt] = []
    for stmt in block:
        match stmt:
            case For():
                stmt = replace(stmt, body=map_loops(stmt.body, change))
                new = change(stmt)
                result += (stmt,) if new is None else new
            case If():
                result.append(If(stmt.cond, map_loops(stmt.then, change), map_loops(stmt.otherwise, change)))
            case While():
                result.append(While(stmt.cond, map_loops(stmt.body, change)))
            case _:
                result.append(stmt)
    return tuple(result)


# Loops that become one --------------------------------------------------------------------------------------


def collapse(loop: For, names: Names) -> For | None:
    """Two perfectly nested loops as one, where every access is linear in the merged variable.

    for i in n: for j in m: b[i*m + j]  -->  for k in n*m: b[k]
    """
    inner = only_loop(loop.body)
    if inner is None or inner.kind is not loop.kind or not isinstance(inner.extent, int | Dim):
        return None
    if loop.var in dims.symbols(inner.extent) or not _mergeable(inner.body, loop.var, inner.var, inner.extent):
        return None
    merged = names("i")
    body = substitute(inner.body, {loop.var: 0, inner.var: dims.symbol(merged)}, KNOWN)
    return replace(loop, var=merged, extent=loop.extent * inner.extent, body=body)


def _mergeable(body: Block, outer: str, inner: str, extent: DimLike) -> bool:
    return all(_merges(expr, outer, inner, extent) for expr in indices_of(body) if isinstance(expr, Dim))


def _merges(expr: Dim, outer: str, inner: str, extent: DimLike) -> bool:
    used = dims.symbols(expr)
    if outer not in used and inner not in used:
        return True
    a, b = dims.linear(expr, outer), dims.linear(expr, inner)
    return a is not None and b is not None and a[0] == b[0] * extent


# Loops taken apart ------------------------------------------------------------------------------------------


def split(loop: For, factor: int, names: Names, *, outer_kind: LoopKind, inner_kind: LoopKind, width: int = 1) -> For:
    """for i in n: f(i)  -->  for o in ceil(n / factor): for i in min(factor, n - o*factor): f(o*factor + i)"""
    outer = names("i")
    start = dims.symbol(outer) * factor
    body = substitute(loop.body, {loop.var: start + dims.symbol(loop.var)}, KNOWN)
    rest = loop.extent - start
    ranges = {outer: dims.Range(0, dims.ceildiv(loop.extent, factor) - 1)}
    inner = For(loop.var, dims.minimum(rest, factor, ranges), body, inner_kind, width)
    return For(outer, dims.ceildiv(loop.extent, factor), (inner,), outer_kind)


def flatten(loops: Sequence[For], body: Block, names: Names, kind: LoopKind) -> For:
    """for i in n: for j in m: f(i, j)  -->  for k in n*m: let i = k // m; let j = k % m; f(i, j)"""
    if len(loops) == 1:
        return replace(loops[0], kind=kind, body=body)
    flat = names("i")
    total = dims.product(loop.extent for loop in loops)
    ranges = {flat: dims.Range(0, total - 1)}
    lets = []
    for k, loop in enumerate(loops):
        inner = dims.product(other.extent for other in loops[k + 1 :])
        index = dims.floordiv(dims.symbol(flat), inner, ranges)
        if k:
            index = dims.mod(index, loop.extent, ranges)
        lets.append(Let(loop.var, Index(index)))
    return For(flat, total, (*lets, *body), kind)


# Vectors ----------------------------------------------------------------------------------------------------


def vectorise(loop: For, width: int) -> For:
    """The same loop on ``width`` lanes at a time."""
    return replace(loop, kind=LoopKind.VECTOR, width=width)
