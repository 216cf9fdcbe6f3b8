"""The default schedule of a CPU kernel: which loop gets the vector lanes, which the threads.

1. Loops that walk memory together become one. 2. The vector axis is the one whose accesses are cheapest: the
innermost of a map; for kernels with inner loops either those (a sum on lanes) or an outer axis around them.
3. What is left outside becomes one parallel loop where the work is worth it. Chunks depend on sizes only.
"""

from __future__ import annotations

from dataclasses import replace

from tcompile.codegen.draft import Draft
from tcompile.codegen.schedule import Names, collapse, flatten, map_loops, split, vectorise
from tcompile.codegen.schedule_access import Access, accesses, drop_unused, has_loops, only_loop
from tcompile.codegen.schedule_chains import chains_of
from tcompile.codegen.schedule_distribute import distribute
from tcompile.codegen.schedule_lanes import accumulation, lanes_of
from tcompile.codegen.schedule_transpose import blocks_of, find_turn
from tcompile.codegen.schedule_unswitch import unswitched
from tcompile.codegen.templates import Built
from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import BOOL, I64
from tcompile.ir.loops import Alloc, Block, Cast, Expr, For, If, Index, Kernel, Let, Load, LoopKind, Op, Select, Stmt, Store, Var
from tcompile.ir.loops_evaluate import postorder
from tcompile.ir.loops_interpret import expressions, walk
from tcompile.ir.target import Target

SERIAL_WORK = 16384  # element operations below which threads cannot pay for their start
CHUNK_BYTES = 32768  # of the widest operand: what one turn of a parallel loop over a vector loop handles
_ENOUGH_TURNS = 64  # turns of a parallel loop from which no further loop is flattened into it

# Cost of one vector's worth of an access, in units of a contiguous one.
_BROADCAST_LOAD, _STRIDED_LOAD, _STRIDED_STORE = 0.3, 1.5, 2.0
_JOIN = 8
_UNROLLED_COST = 24  # operations in a summand from which several accumulators no longer pay
_TRANSCENDENTAL = frozenset(
    {"exp", "log", "log1p", "expm1", "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh"}
    | {"asinh", "acosh", "atanh", "erf", "sigmoid", "silu", "pow", "fmod"}
)
_SMALL_WINDOW = 9  # turns of a constant inner loop that are written out


def scheduled(draft: Draft, target: Target) -> list[Built]:
    """The one kernel of a draft, made fast."""
    kernel, values = draft.finish()
    return [Built(schedule(kernel, draft.nest.independent, draft.nest.folds, target), values)]


def schedule(kernel: Kernel, independent: set[str], folds: set[str], target: Target) -> Kernel:
    """A naive kernel made fast.

    ``independent`` names the loops whose iterations may run in any order, or at once; ``folds`` those that do nothing
    in order but accumulate.
    """
    return _Scheduler(kernel, set(independent), set(folds), target).run()


class _Scheduler:
    def __init__(self, kernel: Kernel, independent: set[str], folds: set[str], target: Target) -> None:
        self.kernel, self.independent, self.folds, self.target = kernel, independent, folds, target
        self.names = Names()
        self.tags = dict(kernel.tags)

    def run(self) -> Kernel:
        body = map_loops(self.kernel.body, self._merge)
        threads = len(body) == 1
        body = map_loops(tuple(new for stmt in body for new in self._top(stmt, threads)), unswitched)
        return replace(self.kernel, body=drop_unused(body), tags=self.tags)

    def _merge(self, loop: For) -> Block | None:
        merged = collapse(loop, self.names)
        if merged is None:
            return None
        inner = only_loop(loop.body)
        assert inner is not None
        for names in (self.independent, self.folds):
            if {loop.var, inner.var} <= names:
                names.add(merged.var)
        return (merged,)

    def _top(self, stmt: Stmt, threads: bool) -> Block:
        if not isinstance(stmt, For):
            return (stmt,)
        outer, core = self._outer_loops(stmt)
        if not outer:
            return self._inner(stmt)
        if has_loops(core):
            return self._nest(outer, core, threads)
        return self._flat(outer, core, threads)

    def _outer_loops(self, loop: For) -> tuple[list[For], Block]:
        """The perfectly nested independent loops from the outermost in, and what they surround."""
        found: list[For] = []
        body: Block = (loop,)
        while (inner := only_loop(body)) is not None and inner.var in self.independent:
            if any(not dims.symbols(inner.extent).isdisjoint({other.var}) for other in found):
                break
            found.append(inner)
            body = inner.body
        return found, body

    # Maps ---------------------------------------------------------------------------------------------

    def _flat(self, outer: list[For], core: Block, threads: bool) -> Block:
        """No loops inside: one of the loops around becomes the vector loop."""
        if any(isinstance(stmt, If | Alloc) for stmt in walk(core)):
            return self._parallel(outer, core, threads)
        width = self._width(core)
        lanes = min(reversed(outer), key=lambda loop: self._cost(core, loop, width))
        rest = [loop for loop in outer if loop is not lanes]
        turned = self._turned(outer, core, lanes)
        if turned is not None:
            around, tiles = turned
            return self._parallel([*around, replace(tiles, body=())], tiles.body, threads and self._worth_threads(outer))
        width = _fitting(self._width(core, lanes.var), lanes.extent)
        vector = vectorise(replace(lanes, body=core), width) if width > 1 else replace(lanes, body=core)
        chunk = max(width, CHUNK_BYTES // self._largest(core))
        if threads and self._worth_threads(outer) and not _at_most(lanes.extent, 2 * chunk):
            chunks = split(vector, chunk, self.names, outer_kind=LoopKind.SERIAL, inner_kind=vector.kind, width=width)
            return self._parallel([*rest, replace(chunks, body=())], chunks.body, threads)
        return self._parallel(rest, (vector,), threads and self._worth_threads(outer))

    def _turned(self, outer: list[For], core: Block, lanes: For) -> tuple[list[For], For] | None:
        """The loops around tiles that turn a flat core's strided loads, and the loop over those; None where there are none."""
        turn = find_turn(outer, core, lanes, self.target.vector_bytes, again=not self.kernel.aliases)
        if turn is None:
            return None
        return [loop for loop in outer if loop is not lanes and loop is not turn.rows], blocks_of(turn, core, self.names)

    def _parallel(self, outer: list[For], body: Block, threads: bool) -> Block:
        """Loops around a finished body; the outermost of them in parallel."""
        if threads and outer and self._worth_threads(outer, body):
            count = _enough(outer)
            self.tags["parallel"] = "yes"
            return (flatten(outer[:count], _wrap(outer[count:], body), self.names, LoopKind.PARALLEL),)
        return _wrap(outer, body)

    def _worth_threads(self, outer: list[For], body: Block = ()) -> bool:
        """Whether the loops around a body may have enough to do for several threads."""
        high = dims.upper_bound(dims.product(loop.extent for loop in outer), {})
        return high is None or high * _turns(body) > SERIAL_WORK

    # Nests --------------------------------------------------------------------------------------------

    def _nest(self, outer: list[For], core: Block, threads: bool) -> Block:
        """Loops inside: lanes either in each of them, or across one of the loops around."""
        width = self._width(core)
        best = min(reversed(outer), key=lambda loop: self._cost(core, loop, width))
        if self._cost(core, best, width) < self._inner_cost(core, width):
            done = self._across(outer, best, core, width, threads)
            if done is not None:
                return done
        return self._parallel(outer, self._lanes_inside(core), threads)

    def _across(self, outer: list[For], lanes: For, core: Block, width: int, threads: bool) -> Block | None:
        rest = [loop for loop in outer if loop is not lanes]
        width = _fitting(width, lanes.extent)
        loop = replace(lanes, body=map_loops(core, self._between_lanes))
        chunk = 4 * width
        if threads and self._worth_threads(outer, core) and not _at_most(lanes.extent, chunk) and not _at_least(rest, _ENOUGH_TURNS):
            chunks = split(loop, chunk, self.names, outer_kind=LoopKind.SERIAL, inner_kind=LoopKind.SERIAL)
            inner = only_loop(chunks.body)
            assert inner is not None
            vectors = distribute(inner, width, self.names)
            return None if vectors is None else self._parallel([*rest, replace(chunks, body=())], vectors, threads)
        vectors = distribute(loop, width, self.names)
        return None if vectors is None else self._parallel(rest, vectors, threads)

    def _between_lanes(self, loop: For) -> Block | None:
        """A loop around vectors: small windows unrolled, sums in several chains."""
        small = _unroll_small(loop)
        if small is not None or loop.var not in self.folds or has_loops(loop.body):
            return small
        return chains_of(loop, self.names)

    def _lanes_inside(self, core: Block) -> Block:
        core = tuple(new for stmt in core for new in self._tiles_inside(stmt))
        return map_loops(core, lambda loop: None if has_loops(loop.body) else self._inner(loop))

    def _tiles_inside(self, stmt: Stmt) -> Block:
        """Nests of several loops whose strided loads go through tiles."""
        if isinstance(stmt, If):
            sides = (tuple(new for inner in side for new in self._tiles_inside(inner)) for side in (stmt.then, stmt.otherwise))
            return (If(stmt.cond, *sides),)
        if not isinstance(stmt, For):
            return (stmt,)
        outer, core = self._outer_loops(stmt)
        if len(outer) > 1 and not has_loops(core) and not any(isinstance(inner, If | Alloc) for inner in walk(core)):
            width = self._width(core)
            turned = self._turned(outer, core, min(reversed(outer), key=lambda loop: self._cost(core, loop, width)))
            if turned is not None:
                around, tiles = turned
                return _wrap(around, (tiles,))
        return (replace(stmt, body=tuple(new for inner in stmt.body for new in self._tiles_inside(inner))),)

    def _inner(self, loop: For) -> Block:
        """An innermost loop: on lanes where it is independent or a sum."""
        if has_loops(loop.body) or any(isinstance(stmt, If | Alloc) for stmt in walk(loop.body)):
            return (replace(loop, body=self._lanes_inside(loop.body)),)
        width = _fitting(self._width(loop.body), loop.extent)
        if width == 1:
            return (loop,)
        if loop.var in self.independent:
            return (vectorise(loop, width),)
        if loop.var not in self.folds:
            return (loop,)
        unroll = 1 if _operations(loop.body) > _UNROLLED_COST else 4
        return lanes_of(loop, width, unroll, self.names) or (loop,)

    # Costs --------------------------------------------------------------------------------------------

    def _inner_cost(self, core: Block, width: int) -> float:
        """What the innermost loops cost with lanes inside; a serial one costs a vector per element."""
        local = _locals(core)
        loops = [loop for loop in walk(core) if isinstance(loop, For) and not has_loops(loop.body)]
        return sum(self._loop_cost(loop, width, local) for loop in loops)

    def _loop_cost(self, loop: For, width: int, local: frozenset[str]) -> float:
        if loop.var in self.independent:
            return self._cost(loop.body, loop, width, local)
        if loop.var not in self.folds or accumulation(loop) is None:
            return len(accesses(loop.body, loop.var)) * width
        # joining the lanes costs some eight vectors' work
        joins = 1 + _JOIN * width / loop.extent if isinstance(loop.extent, int) and loop.extent else 1
        return self._cost(loop.body, loop, width, local) * joins

    def _cost(self, body: Block, loop: For, width: int, local: frozenset[str] | None = None) -> float:
        """What the accesses of a body cost with lanes along a loop, per vector; ``local`` buffers cost nothing."""
        local = _locals(body) if local is None else local
        found = [access for access in accesses(body, loop.var) if access.buffer not in local]
        return sum(_access_cost(access, width) for access in found) / _utilisation(loop.extent, width)

    def _width(self, body: Block, lanes: str | None = None) -> int:
        return max(1, self.target.vector_bytes // self._largest(body, lanes))

    def _largest(self, body: Block, lanes: str | None = None) -> int:
        """Bytes of the widest element that lanes work on (indices do not count that are made of loop variables, or are one for all
        lanes where these are known)."""
        largest = 1
        same = set() if lanes is None else _same_indices(body, lanes)
        for stmt in walk(body):
            if isinstance(stmt, Store):
                largest = max(largest, stmt.value.dtype.bytes)
            for expr in postorder(*expressions(stmt)):
                if expr in same:
                    continue
                if isinstance(expr, Load) or (isinstance(expr, Op | Cast | Select) and expr.dtype not in (BOOL, I64)):
                    largest = max(largest, expr.dtype.bytes)
        return largest


def _same_indices(body: Block, lanes: str) -> set[Load]:
    """The indices read from memory that do not depend on the variable of the lanes."""
    varying, same = {lanes}, set[Load]()
    for stmt in walk(body):
        found = list(postorder(*expressions(stmt)))
        loads = [expr for expr in found if isinstance(expr, Load)]
        fixed = {load for load in loads if load.dtype == I64 and dims.shape_symbols(load.indices).isdisjoint(varying)}
        same |= fixed
        if isinstance(stmt, Let) and _reads(found, varying):
            varying.add(stmt.name)
    return same


def _reads(found: list[Expr], names: set[str]) -> bool:
    """Whether some of the expressions depend on variables."""
    used: set[str] = set()
    for expr in found:
        match expr:
            case Var(name=name):
                used.add(name)
            case Index(expr=inner):
                used |= dims.symbols(inner)
            case Load(indices=indices):
                used |= dims.shape_symbols(indices)
    return not names.isdisjoint(used)


def _locals(block: Block) -> frozenset[str]:
    return frozenset(stmt.name for stmt in walk(block) if isinstance(stmt, Alloc))


def _access_cost(access: Access, width: int) -> float:
    if access.step == 1:
        return 1.0
    if access.step == 0:
        return width * _STRIDED_STORE if access.is_store else _BROADCAST_LOAD
    return width * (_STRIDED_STORE if access.is_store else _STRIDED_LOAD)


def _utilisation(extent: DimLike, width: int) -> float:
    """The share of lanes that do work."""
    if not isinstance(extent, int) or extent == 0:
        return 1.0
    return extent / (-(-extent // width) * width)


def _fitting(width: int, extent: DimLike) -> int:
    """No more lanes than a constant extent needs."""
    if not isinstance(extent, int):
        return width
    needed = 1 << max(extent - 1, 0).bit_length()
    return max(1, min(width, needed))


def _at_most(extent: DimLike, limit: int) -> bool:
    return isinstance(extent, int) and extent <= limit


def _at_least(loops: list[For], turns: int) -> bool:
    total = dims.product(loop.extent for loop in loops)
    return isinstance(total, int) and total >= turns


def _enough(outer: list[For]) -> int:
    """How many loops to flatten so that threads have turns to share."""
    turns = 1
    for count, loop in enumerate(outer, 1):
        turns *= loop.extent if isinstance(loop.extent, int) else 1
        if turns >= _ENOUGH_TURNS:
            return count
    return len(outer)


def _turns(block: Block) -> int:
    """Statements that a block runs, at least one; extents that are not constant count as many."""
    total = 0
    for stmt in block:
        match stmt:
            case For(extent=extent):
                total += (extent if isinstance(extent, int) else SERIAL_WORK) * _turns(stmt.body)
            case If():
                total += max(_turns(stmt.then), _turns(stmt.otherwise))
            case _:
                total += 1
    return max(total, 1)


def _wrap(loops: list[For], body: Block) -> Block:
    for loop in reversed(loops):
        body = (replace(loop, body=body),)
    return body


def _unroll_small(loop: For) -> Block | None:
    small = isinstance(loop.extent, int) and loop.extent <= _SMALL_WINDOW and not has_loops(loop.body)
    return (replace(loop, kind=LoopKind.UNROLLED),) if small and loop.kind is LoopKind.SERIAL else None


def _operations(body: Block) -> int:
    total = 0
    for stmt in walk(body):
        for expr in postorder(*expressions(stmt)):
            if isinstance(expr, Op):
                total += 20 if expr.fn in _TRANSCENDENTAL else 1
            elif isinstance(expr, Cast | Select | Index):
                total += 1
    return total
