"""A static model of GPU kernels: bytes through device memory, operations, threads that run at once, and the time these allow.

The minimum of a kernel is each element of an operand that it reads, once, and each element that it writes, once. What it moves
counts the reads of an operand that is larger than half of the L2 cache once for all blocks that run at once, and again for the next
ones; smaller operands come from device memory once.
Memory between the kernels of one node (parts of split sums, scratch) is in no minimum; it is moved unless half of the L2 cache holds
it. Loads at run-time positions count as many elements as there are loads, or all where these are more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tcompile.codegen.cuda_c import function_name, launch
from tcompile.ir import dims
from tcompile.ir.dims import DimError, DimLike
from tcompile.ir.loops import Access, Atomic, Block, CopyAsync, Expr, For, Index, Kernel, Let, Load, LoopKind, Store
from tcompile.ir.loops_evaluate import compile_dim, postorder
from tcompile.ir.loops_interpret import blocks, expressions
from tcompile.ir.program import Call, Program
from tcompile.ir.program_text import walk
from tcompile.ir.target import GpuTarget


@dataclass(frozen=True)
class Traffic:
    """Bytes of one parameter: what is needed, what is moved."""

    name: str
    minimum: float
    moved: float


@dataclass(frozen=True)
class KernelModel:
    """One kernel at given dims. ``seconds`` is the roofline: the larger of memory and arithmetic time at the target's peaks.

    ``occupancy`` is the share of a multiprocessor's threads that its registers and shared memory let run at once.
    """

    name: str
    blocks: int
    threads: int
    flops: int
    traffic: tuple[Traffic, ...]
    registers: int
    shared_bytes: int
    occupancy: float
    seconds: float

    @property
    def minimum(self) -> float:
        """Bytes that cannot be saved."""
        return sum(one.minimum for one in self.traffic)

    @property
    def moved(self) -> float:
        """Bytes that go through device memory."""
        return sum(one.moved for one in self.traffic)

    @property
    def ratio(self) -> float:
        """Bytes moved for each that must be."""
        return self.moved / self.minimum if self.minimum else 1.0


def kernel_model(kernel: Kernel, values: Mapping[str, int], target: GpuTarget, registers: int = 0) -> KernelModel:
    """The model of a kernel. ``values`` are those of its dims, ``registers`` what the compiler says a thread has (0: not known)."""
    shape = launch(kernel)
    grid = [_value(extent, values) for extent in shape.grid]
    count, threads = grid[0] * grid[1] * grid[2], shape.block[0] * shape.block[1] * shape.block[2]
    shared = shape.shared_bytes + shape.static_bytes
    share = occupancy(target, threads, registers, shared)
    at_once = max(round(share * target.threads_per_sm / threads), 1) * target.sms
    traffic = _Reader(kernel, values, count, at_once, target).traffic()
    flops = _value(kernel.flops, values)
    peak = target.tensor_flops if "tensor" in kernel.tags else target.f32_flops
    moved = sum(one.moved for one in traffic)
    seconds = max(moved / target.bandwidth, flops / peak)
    return KernelModel(kernel.name, count, threads, flops, traffic, registers, shared, share, seconds)


def occupancy(target: GpuTarget, threads: int, registers: int, shared: int) -> float:
    """The share of a multiprocessor's threads that blocks of this kind can be. Registers are given out by warps, in 256s."""
    limits = [target.blocks_per_sm, target.threads_per_sm // threads]
    if registers:
        warp = -(-registers * target.warp // 256) * 256
        limits.append(target.registers_per_sm // (warp * -(-threads // target.warp)))
    if shared:
        limits.append(target.shared_per_sm // (shared + 1024))  # 1 KiB of each block belongs to the system
    return min(limits) * threads / target.threads_per_sm


def _value(expr: DimLike, values: Mapping[str, int]) -> int:
    return int(compile_dim(expr)(dict(values)))


class _Reader:
    """Walks a kernel with the extents of the loops and scalars that indices are made of."""

    def __init__(self, kernel: Kernel, values: Mapping[str, int], count: int, at_once: int, target: GpuTarget) -> None:
        self.kernel, self.values, self.blocks, self.at_once, self.target = kernel, dict(values), count, at_once, target
        self.params = {param.name: param for param in kernel.params}
        self.extents: dict[str, int] = {}  # of a loop variable or scalar: how many values it takes
        self.of_block: dict[str, np.ndarray] = {}  # names that are the same for a whole block: their value in each
        self.loops: list[str] = []  # variables around
        self.reads: dict[str, list[tuple[float, float]]] = {}  # (elements in all, elements counted again for blocks not at once)
        self.writes: dict[str, float] = {}

    def traffic(self) -> tuple[Traffic, ...]:
        """All parameters, operands first."""
        self.block(self.kernel.body)
        scratch = {int(k) for k in self.kernel.tags.get("scratch", "").split(",") if k}
        found = []
        for k, param in enumerate(self.kernel.params):
            size = float(_value(dims.product(param.shape), self.values))
            minimum = moved = 0.0
            if param.name in self.reads and param.access is not Access.OUT:
                total = min(sum(whole for whole, _ in self.reads[param.name]), size)
                again = sum(count for _, count in self.reads[param.name])
                fits = size * param.dtype.bytes <= self.target.l2_bytes / 2
                minimum, moved = minimum + total, moved + (total if fits else max(total, again))
            if param.name in self.writes:
                written = min(self.writes[param.name], size)
                minimum, moved = minimum + written, moved + written
            if k in scratch:
                minimum, moved = 0.0, 0.0 if size * param.dtype.bytes <= self.target.l2_bytes / 2 else moved
            found.append(Traffic(param.name, minimum * param.dtype.bytes, moved * param.dtype.bytes))
        return tuple(found)

    def block(self, block: Block) -> None:
        for stmt in block:
            for root in expressions(stmt):
                self.expr(root)
            match stmt:
                case For():
                    self.loop(stmt)
                    continue
                case Let(name=name, value=value):
                    self.scalar(name, value)
                case Store(buffer=buffer, indices=indices) | Atomic(buffer=buffer, indices=indices):
                    if buffer in self.params:
                        self.writes[buffer] = self.writes.get(buffer, 0.0) + self.distinct(indices)[0]
                case CopyAsync():
                    whole, mine = self.distinct(stmt.source_indices)
                    self.reads.setdefault(stmt.source, []).append((whole * stmt.elements, mine * stmt.elements))
            for inner in blocks(stmt):
                self.block(inner)

    def loop(self, loop: For) -> None:
        self.extents[loop.var] = max(self.high(loop.extent), 0)
        if loop.kind in (LoopKind.GRID, LoopKind.CLUSTER):
            self.of_block[loop.var] = self._grid(self.extents[loop.var])
        self.loops.append(loop.var)
        self.block(loop.body)
        self.loops.pop()

    def _grid(self, extent: int) -> np.ndarray:
        """The variable of the next grid loop in each block, in the order in which they start; the innermost changes fastest."""
        inner = self.blocks
        for name in self.of_block:
            inner //= max(self.extents[name], 1)
        return np.arange(self.blocks) // max(inner // max(extent, 1), 1) % max(extent, 1)

    def high(self, expr: DimLike) -> int:
        """The largest value of an expression, its loop variables anywhere."""
        known = {name: dims.Range(0, max(extent - 1, 0)) for name, extent in self.extents.items()}
        known |= {name: dims.Range(value, value) for name, value in self.values.items()}
        try:
            bound = dims.upper_bound(dims.substitute(expr, dict(self.values)), known)
        except DimError:  # a quotient by an extent of 0: code that never runs
            return 0
        return bound if isinstance(bound, int) else self.turns(dims.symbols(expr))

    def scalar(self, name: str, value: Expr) -> None:
        names = _names(value)
        if isinstance(value, Index):
            self.extents[name] = min(self.high(value.expr) + 1, self.turns(names))
        else:
            self.extents[name] = self.turns(names)
        if isinstance(value, Index) and names <= self.of_block.keys() | self.values.keys():
            self.of_block[name] = np.broadcast_to(compile_dim(value.expr)({**self.values, **self.of_block}), (self.blocks,))

    def turns(self, names: frozenset[str]) -> int:
        """How many values some names take together."""
        total = 1
        for name in names:
            total *= max(self.extents.get(name, 1), 1)
        return total

    def distinct(self, indices: tuple[DimLike, ...]) -> tuple[float, float]:
        """Elements that an access reaches: in all, and those that blocks which do not run at once count each for themselves."""
        names = dims.shape_symbols(indices) - self.values.keys()
        whole = min(self.turns(names), self.all_turns())
        mine = self.turns(frozenset(name for name in names if name not in self.of_block))
        executed = self.turns(frozenset(name for name in self.loops if name not in self.of_block))
        return float(whole), float(min(mine, executed, whole)) * self._different(names)

    def _different(self, names: frozenset[str]) -> int:
        """How many different places blocks read from, summed over the groups that run at once."""
        keys = [self.of_block[name] for name in sorted(names) if name in self.of_block]
        if not keys or not self.blocks:
            return -(-self.blocks // self.at_once)
        groups = (np.stack([key[first : first + self.at_once] for key in keys]) for first in range(0, self.blocks, self.at_once))
        return sum(np.unique(group, axis=1).shape[1] for group in groups)

    def all_turns(self) -> int:
        return self.turns(frozenset(self.loops))

    def expr(self, root: Expr) -> None:
        for part in postorder(root):
            if isinstance(part, Load) and part.buffer in self.params:
                self.reads.setdefault(part.buffer, []).append(self.distinct(part.indices))


def _names(root: Expr) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    for part in postorder(root):
        match part:
            case Index(expr=expr):
                found |= dims.symbols(expr)
            case Load(indices=indices):
                found |= dims.shape_symbols(indices)
            case _ if hasattr(part, "name"):
                found |= {part.name}
    return found


def program_models(
    program: Program, target: GpuTarget, sizes: Mapping[str, int], registers: Mapping[str, int] | None = None
) -> list[tuple[KernelModel, int]]:
    """Every kernel of a program with how often it is called, where its calls' dims are known; branches and loop bodies count once.

    ``sizes`` are the symbols' values (a symbol that is not in it counts as 1), ``registers`` those of a thread by kernel name.
    """
    env = {name: sizes.get(name, 1) for name in program.symbols}
    found: dict[tuple[str, tuple[int, ...]], tuple[KernelModel, int]] = {}
    for call in walk(program.body):
        if not isinstance(call, Call):
            continue
        values = {name: _value(expr, env) for name, expr in zip(call.kernel.dims, call.dims, strict=True)}
        key = call.kernel.name, tuple(values.values())
        if key in found:
            found[key] = found[key][0], found[key][1] + 1
            continue
        found[key] = kernel_model(call.kernel, values, target, (registers or {}).get(function_name(call.kernel), 0)), 1
    return list(found.values())


def limit(kernel_name: str) -> float:
    """How many bytes a kernel may move for each that it must: products and convolutions read operands once for each row of tiles."""
    return 2.0 if kernel_name.startswith(("gemm", "conv", "dot", "attention")) else 1.2
