"""The verifier of GPU kernels: the shape of the nest, and what threads do together. The invariants, beyond those of all kernels:

1. The body is one nest: up to three GRID loops, then at most one CLUSTER loop of 2 to 8 turns, then up to three BLOCK loops with
   constant extents of product 1 to 1024; only Lets and SHARED Allocs stand beside them; none of these loops stands anywhere else.
2. A SHARED Alloc has a constant shape and stands outside of the BLOCK loops; other Allocs stand inside.
3. A block Barrier is uniform: no condition or extent around it may differ between threads; around a cluster Barrier none may differ
   between its blocks either, and there is a CLUSTER loop. A warp Barrier, a Shuffle and a
   TileOp are uniform in each warp, and the threads are a multiple of 32 (a Barrier: any number). A TileOp of four warps is
   uniform, its threads are a multiple of 128, and the lanes of a warp give the same address.
4. Where there is a CopyAsync, there are a CommitAsync and a WaitAsync; 4, 8 or 16 bytes go from GLOBAL to SHARED memory.
5. An Atomic combines what gives the same bits in any order. A TileOp's operands are as ``ir/tileops.py`` declares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tcompile.ir import dims
from tcompile.ir.dims import Call, DimLike
from tcompile.ir.loops import (
    Alloc,
    Barrier,
    Block,
    CommitAsync,
    CopyAsync,
    Expr,
    For,
    If,
    Index,
    Kernel,
    Let,
    Load,
    LoopKind,
    Scope,
    Shuffle,
    Space,
    Stmt,
    TileOp,
    Var,
    WaitAsync,
    While,
)
from tcompile.ir.loops_evaluate import postorder
from tcompile.ir.loops_interpret import expressions, walk
from tcompile.ir.tileops import LANES, tile_spec

MAX_THREADS = 1024
MAX_CLUSTER = 8  # blocks that every device with clusters can run together
_NEST = (LoopKind.GRID, LoopKind.CLUSTER, LoopKind.BLOCK)
Need = Callable[[bool, str], None]


def is_gpu_kernel(kernel: Kernel) -> bool:
    """Whether a kernel has loops over blocks or threads."""
    return any(isinstance(stmt, For) and stmt.kind in _NEST for stmt in walk(kernel.body))


def launch_loops(kernel: Kernel) -> tuple[tuple[For, ...], tuple[For, ...]]:
    """The GRID and the BLOCK loops of a GPU kernel, outermost first."""
    nest = tuple(_nest(kernel.body))
    return tuple(loop for loop in nest if loop.kind is LoopKind.GRID), tuple(loop for loop in nest if loop.kind is LoopKind.BLOCK)


def cluster_loop(kernel: Kernel) -> For | None:
    """The CLUSTER loop of a GPU kernel."""
    return next((loop for loop in _nest(kernel.body) if loop.kind is LoopKind.CLUSTER), None)


def threads_of(kernel: Kernel) -> int:
    """Threads of a block."""
    return math.prod(loop.extent for loop in launch_loops(kernel)[1])


def verify_gpu(kernel: Kernel, need: Need) -> None:
    """Calls ``need(holds, problem)`` for the invariants of the nest and of what its threads do together."""
    together = [stmt for stmt in walk(kernel.body) if isinstance(stmt, Barrier | CopyAsync | TileOp)]
    if not is_gpu_kernel(kernel):
        need(not together, "threads work together, but there is no block loop")
        return
    _shape(kernel, need)
    _copies(kernel, need)
    block = launch_loops(kernel)[1]
    if block:
        _Uniform(need, tuple(block), cluster_loop(kernel)).block(block[-1].body)


def _nest(block: Block) -> Iterator[For]:
    for stmt in block:
        if isinstance(stmt, For) and stmt.kind in _NEST:
            yield stmt
            yield from _nest(stmt.body)


def _shape(kernel: Kernel, need: Need) -> None:
    grid, block = launch_loops(kernel)
    need(len(grid) <= 3 and len(block) <= 3, f"{len(grid)} grid and {len(block)} block loops; there are three at most of each")
    extents = [loop.extent for loop in block]
    need(all(isinstance(extent, int) and extent >= 1 for extent in extents), f"the extents {extents} of the block loops are not constants")
    need(math.prod(extents) <= MAX_THREADS, f"{math.prod(extents)} threads in a block; there are {MAX_THREADS} at most")
    clusters = [loop for loop in _nest(kernel.body) if loop.kind is LoopKind.CLUSTER]
    need(len(clusters) <= 1, f"{len(clusters)} cluster loops; there is one at most")
    for loop in clusters:
        fits = isinstance(loop.extent, int) and 2 <= loop.extent <= MAX_CLUSTER
        need(fits, f"a cluster of {loop.extent} blocks; it has 2 to {MAX_CLUSTER}")
    _level(kernel.body, tuple(_nest(kernel.body)), 0, need)


def _level(body: Block, nest: tuple[For, ...], depth: int, need: Need) -> None:
    """A level of the nest holds the next loop and what may stand beside it; below the last is the code of a thread."""
    if depth == len(nest):
        inner = [stmt for stmt in walk(body) if isinstance(stmt, For) and stmt.kind in (*_NEST, LoopKind.PARALLEL)]
        need(not inner, f"a {inner[0].kind if inner else ''} loop stands in the code of a thread")
        shared = [stmt.name for stmt in walk(body) if isinstance(stmt, Alloc) and stmt.space is Space.SHARED]
        need(not shared, f"{', '.join(shared)}: shared memory belongs to the block, outside of its loops")
        return
    loop = nest[depth]
    need(any(stmt is loop for stmt in body), "grid and block loops are not one nest")
    if depth:
        outer, inner = nest[depth - 1].kind, loop.kind
        need(_NEST.index(outer) <= _NEST.index(inner), f"a {inner} loop stands in a {outer} loop")
    for stmt in body:
        if isinstance(stmt, Alloc):
            fits = stmt.space is Space.SHARED and all(isinstance(extent, int) for extent in stmt.shape)
            need(fits, f"{stmt.name}: only shared memory of constant shape stands outside of the block loops")
            need(depth == 0 or nest[depth - 1].kind is not LoopKind.BLOCK, f"{stmt.name}: shared memory stands in a block loop")
        else:
            need(stmt is loop or isinstance(stmt, Let), f"{type(stmt).__name__} stands beside the loop {loop.var} of the launch")
    _level(loop.body, nest, depth + 1, need)


def _copies(kernel: Kernel, need: Need) -> None:
    kinds = {type(stmt) for stmt in walk(kernel.body)}
    if CopyAsync in kinds:
        need(CommitAsync in kinds, "asynchronous copies that nothing commits")
        need(WaitAsync in kinds, "asynchronous copies that nothing awaits")


# Uniformity -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Varies:
    """Whether something may differ between the threads of a block, the lanes of a warp, and the blocks of a cluster."""

    block: bool = False
    warp: bool = False
    cluster: bool = False

    def __or__(self, other: _Varies) -> _Varies:
        return _Varies(self.block or other.block, self.warp or other.warp, self.cluster or other.cluster)


_EVERYWHERE = _Varies(True, True, True)


class _Uniform:
    """Walks the code of a thread with what the conditions around a statement depend on."""

    def __init__(self, need: Need, block: tuple[For, ...], cluster: For | None) -> None:
        self.need, self.cluster = need, cluster
        self.threads = math.prod(loop.extent for loop in block)
        inner = block[-1]
        # in blocks of rows of 32 or more, what tells the rows apart is the same for a warp
        rows = inner.extent % LANES == 0
        self.names = {loop.var: _Varies(True, not rows) for loop in block[:-1]} | {inner.var: _EVERYWHERE}
        self.inner = inner.var if rows or len(block) == 1 else ""
        self.private: set[str] = set()
        self.around = _Varies()
        if cluster is not None:
            self.names[cluster.var] = _Varies(cluster=True)
            for stmt in cluster.body:
                if isinstance(stmt, Let):
                    self.statement(stmt)

    def block(self, block: Block) -> None:
        for stmt in block:
            self.statement(stmt)

    def statement(self, stmt: Stmt) -> None:
        if any(isinstance(expr, Shuffle) for expr in postorder(*expressions(stmt))):
            self.warp("a shuffle")
        match stmt:
            case Barrier(scope=Scope.BLOCK):
                self.need(not self.around.block, "a barrier stands under a condition that may differ between threads")
            case Barrier(scope=Scope.CLUSTER):
                self.need(self.cluster is not None, "a cluster barrier, but there is no cluster loop")
                same = not (self.around.block or self.around.cluster)
                self.need(same, "a cluster barrier stands under a condition that may differ between threads")
            case Barrier():
                self.need(not self.around.warp, "a warp barrier stands under a condition that may differ between lanes")
            case TileOp():
                self.tile_op(stmt)
            case Let():
                self.names[stmt.name] = self.expr(stmt.value)
            case Alloc():
                self.private.add(stmt.name)
            case If():
                self.under(self.expr(stmt.cond), (stmt.then, stmt.otherwise))
            case While():
                self.under(self.expr(stmt.cond), (stmt.body,))
            case For():
                self.names[stmt.var] = _Varies()
                self.under(self.dim(stmt.extent), (stmt.body,))

    def warp(self, what: str) -> None:
        self.need(self.threads % LANES == 0, f"{what} in a block of {self.threads} threads, no multiple of {LANES}")
        self.need(not self.around.warp, f"{what} stands under a condition that may differ between lanes")

    def tile_op(self, op: TileOp) -> None:
        lanes = tile_spec(op.name).lanes
        if lanes == LANES:
            self.warp(op.name)
            return
        self.need(self.threads % lanes == 0, f"{op.name} in a block of {self.threads} threads, no multiple of {lanes}")
        self.need(not self.around.block, f"{op.name} stands under a condition that may differ between threads")
        for tile in op.operands[1:]:
            for index in tile.indices:
                self.need(not self.dim(index).warp, f"{op.name}: lanes give different addresses in {tile.buffer}")

    def under(self, condition: _Varies, blocks: tuple[Block, ...]) -> None:
        outer, self.around = self.around, self.around | condition
        for block in blocks:
            self.block(block)
        self.around = outer

    def expr(self, root: Expr) -> _Varies:
        found = _Varies()
        for expr in postorder(root):
            match expr:
                case Var(name=name):
                    found |= self.names.get(name, _Varies())
                case Index(expr=index):
                    found |= self.dim(index)
                case Load(buffer=buffer, indices=indices):
                    found |= _EVERYWHERE if buffer in self.private else _Varies()
                    for index in indices:
                        found |= self.dim(index)
                case Shuffle():
                    found = _EVERYWHERE
        return found

    def dim(self, expr: DimLike) -> _Varies:
        if isinstance(expr, int):
            return _Varies()
        found = _Varies()
        for monomial, _ in expr.terms:
            for atom in monomial:
                if not isinstance(atom, Call):
                    found |= self.names.get(atom.name, _Varies())
                    continue
                inside = _Varies()
                for arg in atom.args:
                    inside |= self.dim(arg)
                found |= replace(inside, warp=False) if self.numbers_warps(atom) else inside
        return found

    def numbers_warps(self, call: Call) -> bool:
        """Whether a call is thread // (a multiple of 32), the same for all lanes of a warp."""
        if call.fn != "floordiv" or not isinstance(call.args[1], int) or call.args[1] % LANES or not self.inner:
            return False
        parts = dims.linear(call.args[0], self.inner)
        return parts is not None and parts[0] == 1 and isinstance(parts[1], int) and parts[1] % LANES == 0
