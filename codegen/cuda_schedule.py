"""The default schedule of a GPU kernel: which loops become threads, and what a thread does in order.

1. Statements side by side that share nothing become kernels of their own, or share one's threads where they are small. 2. A map
gives each thread 16 bytes of its result (``cuda_maps.py``); a nest with sums inside gives each thread one turn of the loops around
them (the templates of ``cuda_rows.py`` give it a warp or a block). 3. Work that is ordered from outside runs its inner independent
loops on threads, each thread in order.
"""

from __future__ import annotations

from dataclasses import replace

from tcompile.codegen.cuda_maps import map_on_threads
from tcompile.codegen.cuda_threads import on_threads, one_thread, spilled, split_item
from tcompile.codegen.draft import Draft
from tcompile.codegen.scalar import compare
from tcompile.codegen.schedule import Names, collapse, map_loops
from tcompile.codegen.schedule_access import drop_unused, has_loops, only_loop
from tcompile.codegen.templates import Built
from tcompile.ir import dims
from tcompile.ir.graph import Value
from tcompile.ir.loops import Alloc, Atomic, Block, Check, For, If, Index, Kernel, Let, Load, Param, Store
from tcompile.ir.loops_evaluate import postorder
from tcompile.ir.loops_interpret import expressions, walk
from tcompile.ir.target import GpuTarget, Target

JOINED_ITEMS = 1 << 18  # up to which a launch costs more than wide accesses save


def scheduled(draft: Draft, target: Target) -> list[Built]:
    """The kernels of a draft, in the order they run."""
    assert isinstance(target, GpuTarget), target
    kernel, values = draft.finish()
    parts = _separate(kernel.body, draft.nest.independent)
    if len(parts) > 1:
        kernel = replace(kernel, aliases=())  # a pair is legal for all parts together
        joined = _Scheduler(kernel, values, set(draft.nest.independent), set(draft.nest.folds), target).joined(parts)
        if joined is not None:
            return [joined]
    return [_Scheduler(kernel, values, set(draft.nest.independent), set(draft.nest.folds), target).built(part) for part in parts]


def _separate(body: Block, independent: set[str]) -> list[Block]:
    """Blocks that may be kernels of their own: loops side by side, at the top or inside of independent loops alone.

    for i: (for j: f; for k: g)  -->  for i: for j: f | for i: for k: g
    """
    if len(body) == 1 and isinstance(body[0], For) and body[0].var in independent:
        loop = body[0]
        return [(replace(loop, body=part),) for part in _separate(loop.body, independent)]
    if len(body) > 1 and all(isinstance(stmt, For) and stmt.var in independent for stmt in body):
        return [part for stmt in body for part in _separate((stmt,), independent)]
    return [body]


class _Scheduler:
    def __init__(self, kernel: Kernel, values: tuple[Value, ...], independent: set[str], folds: set[str], target: GpuTarget) -> None:
        self.kernel, self.values, self.target = kernel, values, target
        self.independent, self.folds = independent, folds
        self.names = Names()
        self.scratch: list[tuple[Param, Value]] = []

    def built(self, body: Block) -> Built:
        """The kernel of one block, with the parameters it uses."""
        return self._built(self._threads(map_loops(body, self._merge)))

    def _built(self, body: Block) -> Built:
        body = drop_unused(body)
        used = _buffers(body)
        pairs = [(param, value) for param, value in zip(self.kernel.params, self.values, strict=True) if param.name in used]
        positions = {param.name: k for k, (param, _) in enumerate(pairs)}
        aliases = tuple(
            (positions[self.kernel.params[a].name], positions[self.kernel.params[b].name])
            for a, b in self.kernel.aliases
            if {self.kernel.params[a].name, self.kernel.params[b].name} <= positions.keys()
        )
        pairs += self.scratch
        kernel = replace(self.kernel, params=tuple(param for param, _ in pairs), body=body, aliases=aliases)
        return Built(kernel, tuple(value for _, value in pairs), tuple(value for _, value in self.scratch))

    def joined(self, parts: list[Block]) -> Built | None:
        """One kernel whose threads take the items of one part after the other; None where a part is no map, or a launch is nothing.

        for i in n: f(i) | for j in m: g(j)  -->  thread: if item < n: f(item) else: let j = item - n; g(j)
        """
        item = self.names("f")
        nests = [self._outer(map_loops(part, self._merge)) for part in parts]
        if not all(loops and _is_map(core) for loops, core in nests):
            return None
        counts = [dims.product(loop.extent for loop in loops) for loops, _ in nests]
        total = sum(counts, 0)
        if isinstance(total, int) and total > JOINED_ITEMS:
            return None
        body: Block = ()
        for k in reversed(range(len(nests))):
            loops, core = nests[k]
            number, start = self.names("f"), sum(counts[:k], 0)
            lets, _ = split_item(number, loops)
            mine = (Let(number, Index(dims.symbol(item) - start)), *lets, *core)
            body = (If(compare("lt", dims.symbol(item), start + counts[k]), mine, body),) if body else mine
        return self._built(on_threads(total, body, item, self.names))

    def _merge(self, loop: For) -> Block | None:
        merged = collapse(loop, self.names)
        inner = only_loop(loop.body)
        if merged is None or inner is None:
            return None
        for kind in (self.independent, self.folds):
            if {loop.var, inner.var} <= kind:
                kind.add(merged.var)
        return (merged,)

    def _threads(self, body: Block) -> Block:
        loops, core = self._outer(body)
        if loops:
            return self._items(loops, core)
        inner = self._inside(body)
        if inner is not None:
            return inner
        (inner_body, scratch), count = spilled(body, 0, 1, self.names), 1
        assert count == 1
        self.scratch += scratch
        return one_thread(inner_body, self.names)

    def _outer(self, body: Block) -> tuple[list[For], Block]:
        """The perfectly nested independent loops from the outermost in, and what they surround."""
        found: list[For] = []
        while (inner := only_loop(body)) is not None and inner.var in self.independent:
            if any(other.var in dims.symbols(inner.extent) for other in found):
                break
            found.append(inner)
            body = inner.body
        return found, body

    def _items(self, loops: list[For], core: Block) -> Block:
        """A thread for each turn of the loops, or for a few of a map's."""
        if _is_map(core):
            return map_on_threads(loops, core, self.names)
        item = self.names("f")
        lets, count = split_item(item, loops)
        core, scratch = spilled(core, dims.symbol(item), count, self.names)
        self.scratch += scratch
        return on_threads(count, (*lets, *core), item, self.names)

    def _inside(self, body: Block) -> Block | None:
        """Ordered turns of something independent inside: each thread takes its part of every turn, in order.

        for i (ordered): for j (independent): f(i, j)  -->  thread j: for i: f(i, j)
        """
        loop = only_loop(body)
        if loop is None or has_loops(loop.body[:-1]) or not isinstance(loop.body[-1], For):
            return None
        if not all(isinstance(stmt, Let | Check) for stmt in loop.body[:-1]):
            return None
        inner, core = self._outer(loop.body[-1:])
        variant = {loop.var} | {stmt.name for stmt in loop.body[:-1] if isinstance(stmt, Let)}
        if not inner or any(not dims.symbols(one.extent).isdisjoint(variant) for one in inner):
            return None
        return self._items(inner, (replace(loop, body=(*loop.body[:-1], *core)),))


def _is_map(core: Block) -> bool:
    return not has_loops(core) and not any(isinstance(stmt, Alloc | If) for stmt in walk(core))


def _buffers(body: Block) -> set[str]:
    found: set[str] = set()
    for stmt in walk(body):
        if isinstance(stmt, Store | Atomic):
            found.add(stmt.buffer)
        for part in postorder(*expressions(stmt)):
            if isinstance(part, Load):
                found.add(part.buffer)
    return found
