"""Which parameters of a kernel may be one buffer: results that overwrite an operand, element for element.

A pair (operand, result) is legal where no element of the operand is read after that element of the result is written:

1. Every element of the result is written at most once: one store inside independent loops, or the builder says so.
2. For every load of the operand there is a store to the result that reaches the same element in the same iteration of
   the loops around both, and comes after it: in the same statement, or in a later one of their innermost common block.

    for row: for k: t[0] += x[row*n + k]                  loads  (row, k) -> row*n + k
             for j: y[row*n + j] = x[row*n + j] / t[0]    stores (row, j) -> row*n + j     (x, y) is legal

By 1 the map from iterations to elements is injective, by 2 both accesses are that map: whoever else reads or writes the
element is the same iteration. This holds in whatever order the iterations run, so schedules keep it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tcompile.ir import dims
from tcompile.ir.dims import NOTHING_KNOWN, DimLike, Shape
from tcompile.ir.loops import Access, Block, Check, For, Kernel, Load, Param, Stmt, Store, While
from tcompile.ir.loops_evaluate import postorder
from tcompile.ir.loops_interpret import blocks, expressions, walk

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class _Step:
    """A statement on the way to an access: its place in its block, and which of its own blocks the way goes into."""

    position: int
    stmt: Stmt
    branch: int = 0

    def same(self, other: _Step) -> bool:
        return self.stmt is other.stmt and self.branch == other.branch


@dataclass(frozen=True, eq=False)
class _Site:
    """An access, and the statements around it, the outermost first; the last is its own."""

    access: Load | Store
    indices: Shape
    path: tuple[_Step, ...]

    @property
    def loops(self) -> list[For]:
        return [step.stmt for step in self.path if isinstance(step.stmt, For)]


def in_place_pairs(
    params: Sequence[Param],
    body: Block,
    independent: Iterable[str],
    once: Iterable[str] = (),
    equal: Mapping[str, DimLike] | None = None,
) -> tuple[Pair, ...]:
    """The legal pairs of parameter positions.

    ``independent``: loop variables whose iterations write different elements; ``once``: results of which the builder
    knows that no element is written twice. ``equal``: what symbols are wherever a pair is one buffer.
    """
    sites = list(_sites(body, (), equal or {}))
    if any(isinstance(step.stmt, While) for site in sites for step in site.path):
        return ()
    single, known = frozenset(independent), frozenset(once)
    found = []
    for o, result in enumerate(params):
        stores = [site for site in sites if isinstance(site.access, Store) and site.access.buffer == result.name]
        if result.access is not Access.OUT or not (result.name in known or _written_once(stores, single)):
            continue
        for i, operand in enumerate(params):
            if operand.access is Access.IN and operand.dtype == result.dtype and _dies_in(operand.name, stores, sites):
                found.append((i, o))
    return tuple(found)


def is_copy(kernel: Kernel, equal: Mapping[str, DimLike] | None = None) -> bool:
    """Whether a kernel only moves each element of its operand to the same place of its result: in place, it does nothing.

    ``equal``: what dims of the kernel are then.
    """
    if len(kernel.params) != 2 or kernel.aliases != ((0, 1),) or any(isinstance(stmt, Check) for stmt in walk(kernel.body)):
        return False
    stores = [stmt for stmt in walk(kernel.body) if isinstance(stmt, Store)]
    return all(_moves(store, kernel.params[0].name, equal or {}) for store in stores)


def _moves(store: Store, operand: str, equal: Mapping[str, DimLike]) -> bool:
    value = store.value
    if not isinstance(value, Load) or value.buffer != operand or value.mask is not None:
        return False
    return _under(value.indices, equal) == _under(store.indices, equal)


def _written_once(stores: list[_Site], independent: frozenset[str]) -> bool:
    return len(stores) == 1 and all(loop.var in independent for loop in stores[0].loops)


def _dies_in(operand: str, stores: list[_Site], sites: list[_Site]) -> bool:
    loads = [site for site in sites if isinstance(site.access, Load) and site.access.buffer == operand]
    return bool(loads) and all(any(_followed_by(load, store) for store in stores) for load in loads)


def _followed_by(load: _Site, store: _Site) -> bool:
    """Whether the store reaches the load's element in the same iteration, later or in the same statement."""
    if isinstance(store.access, Store) and store.access.mask is not None:
        return False
    common = sum(1 for _ in _common(load.path, store.path))
    before, after = load.path[common:], store.path[common:]
    if not before or not after:
        return not before and not after and load.indices == store.indices
    if before[0].position >= after[0].position or not all(isinstance(step.stmt, For) for step in after[:-1]):
        return False
    mine = [step.stmt for step in before if isinstance(step.stmt, For)]
    theirs = [step.stmt for step in after if isinstance(step.stmt, For)]
    return len(mine) == len(theirs) and _same_map(mine, load.indices, theirs, store.indices)


def _common(a: tuple[_Step, ...], b: tuple[_Step, ...]) -> Iterator[None]:
    for x, y in zip(a, b, strict=False):
        if not x.same(y):
            return
        yield None


def _same_map(mine: list[For], indices: Shape, theirs: list[For], others: Shape) -> bool:
    """Whether two nests go through the same elements in the same way, their variables being called differently."""
    names = {a.var: dims.symbol(b.var) for a, b in zip(mine, theirs, strict=True)}
    extents = all(dims.substitute(a.extent, names, NOTHING_KNOWN) == b.extent for a, b in zip(mine, theirs, strict=True))
    return extents and tuple(dims.substitute(index, names, NOTHING_KNOWN) for index in indices) == others


def _sites(block: Block, around: tuple[_Step, ...], equal: Mapping[str, DimLike]) -> Iterator[_Site]:
    for position, stmt in enumerate(block):
        path = (*around, _Step(position, stmt))
        for expr in postorder(*expressions(stmt)):
            if isinstance(expr, Load):
                yield _Site(expr, _under(expr.indices, equal), path)
        if isinstance(stmt, Store):
            yield _Site(stmt, _under(stmt.indices, equal), path)
        for branch, nested in enumerate(blocks(stmt)):
            yield from _sites(nested, (*around, _Step(position, stmt, branch)), equal)


def _under(indices: Shape, equal: Mapping[str, DimLike]) -> Shape:
    return tuple(dims.substitute(index, equal, NOTHING_KNOWN) for index in indices) if equal else indices
