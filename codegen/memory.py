"""Where each buffer of a program lies: offsets in the arena, slots of the host, places in the weights.

A TEMP buffer lives from its first to its last use; one that lives across the edge of a loop lives through all of it.
Buffers of constant size are packed best fit, largest first, at constant offsets; those whose size depends on entry
symbols share slots behind them, whose sizes the prepared shapes decide. What the run itself sizes gets a
growing slot of the host.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tcompile.codegen.signature import Weight, place_weights
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Ranges
from tcompile.ir.program import Buffer, If, Instruction, Loop, Program, Role
from tcompile.ir.program_text import buffers_of, program_buffers

ALIGN = 64


@dataclass
class Plan:
    """The memory of a program. ``slots`` are sizes in bytes of the arena's symbolic part, in order."""

    offsets: dict[Buffer, int] = field(default_factory=dict)  # constant places in the arena
    static_bytes: int = 0
    slot_of: dict[Buffer, int] = field(default_factory=dict)
    slots: list[DimLike] = field(default_factory=list)
    growing: dict[Buffer, int] = field(default_factory=dict)  # the host's slot numbers
    weights: tuple[Weight, ...] = ()
    weight_offsets: dict[Buffer, int] = field(default_factory=dict)

    def slot_start(self, slot: int) -> DimLike:
        """Where a slot begins in the arena."""
        return sum((_aligned(size) for size in self.slots[:slot]), self.static_bytes)

    @property
    def arena_bytes(self) -> DimLike:
        """The size of the arena, over entry symbols."""
        return self.slot_start(len(self.slots))


@dataclass(frozen=True)
class Life:
    """Positions of the first and last use of a buffer."""

    buffer: Buffer
    start: int
    end: int

    def meets(self, other: Life) -> bool:
        return self.start <= other.end and other.start <= self.end


def plan(program: Program) -> Plan:
    """The places of all buffers."""
    found = Plan()
    lives = [life for life in lifetimes(program) if life.buffer.role is Role.TEMP]
    _pack_static([life for life in lives if isinstance(_bytes(life.buffer), int)], found)
    _share_slots([life for life in lives if not isinstance(_bytes(life.buffer), int)], program.symbols, found)
    buffers = program_buffers(program)
    entry = set(program.entry_symbols)
    unknown = [b for b in buffers if b.role is Role.GROWING or (b.role is Role.OUTPUT and not dims.shape_symbols(b.shape) <= entry)]
    found.growing = {buffer: number for number, buffer in enumerate(unknown)}
    weights = [buffer for buffer in buffers if buffer.role is Role.WEIGHT]
    found.weights = place_weights(weights)
    found.weight_offsets = {buffer: weight.offset for buffer, weight in zip(weights, found.weights, strict=True)}
    return found


def lifetimes(program: Program) -> list[Life]:
    """The lives of all buffers, in the order in which they begin."""
    walker = _Walker()
    walker.block(program.body)
    lives = []
    for buffer, (start, end) in walker.uses.items():
        for first, last in walker.loops:  # inner loops come first
            if (start < first <= end or start <= last < end) and start <= last and end >= first:
                start, end = min(start, first), max(end, last)
        lives.append(Life(buffer, start, end))
    return sorted(lives, key=lambda life: life.start)


class _Walker:
    def __init__(self) -> None:
        self.position = 0
        self.uses: dict[Buffer, tuple[int, int]] = {}
        self.loops: list[tuple[int, int]] = []

    def block(self, body: Iterable[Instruction]) -> None:
        for instruction in body:
            self.position += 1
            for buffer in buffers_of(instruction):
                self.use(buffer)
            match instruction:
                case If():
                    self.block(instruction.then)
                    self.block(instruction.otherwise)
                case Loop():
                    first = self.position
                    self.block(instruction.body)
                    self.position += 1
                    if instruction.cond is not None:
                        self.use(instruction.cond)
                    self.loops.append((first, self.position))

    def use(self, buffer: Buffer) -> None:
        start, _ = self.uses.get(buffer, (self.position, 0))
        self.uses[buffer] = start, self.position


def _bytes(buffer: Buffer) -> DimLike:
    return dims.product(buffer.shape) * buffer.dtype.bytes


def _aligned(size: DimLike) -> DimLike:
    return dims.ceildiv(size, ALIGN) * ALIGN


def _pack_static(lives: list[Life], found: Plan) -> None:
    """Largest first, each into the tightest gap between those that live at the same time."""
    placed: list[tuple[Life, int, int]] = []
    for life in sorted(lives, key=lambda life: (-_bytes(life.buffer), life.start)):
        size = _aligned(_bytes(life.buffer))
        busy = sorted((offset, offset + length) for other, offset, length in placed if life.meets(other))
        offset = _best_gap(busy, size)
        placed.append((life, offset, size))
        found.offsets[life.buffer] = offset
        found.static_bytes = max(found.static_bytes, offset + size)


def _best_gap(busy: list[tuple[int, int]], size: int) -> int:
    """The start of the smallest gap that holds ``size`` bytes; behind all where none does."""
    best: tuple[int, int] | None = None
    end = 0
    for start, stop in busy:
        if start - end >= size and (best is None or start - end < best[0]):
            best = start - end, end
        end = max(end, stop)
    return end if best is None else best[1]


def _share_slots(lives: list[Life], ranges: Ranges, found: Plan) -> None:
    """A buffer takes a slot that is free and of its size, else one that is larger or smaller for sure, else a new one."""
    holders: list[list[Life]] = []
    for life in lives:
        size = _bytes(life.buffer)
        free = [k for k, lived in enumerate(holders) if not any(life.meets(other) for other in lived)]
        slot = next((k for k in free if found.slots[k] == size), None)
        if slot is None:
            slot = next((k for k in free if dims.nonnegative(found.slots[k] - size, ranges)), None)
        if slot is None:
            slot = next((k for k in free if dims.nonnegative(size - found.slots[k], ranges)), None)
            if slot is not None:
                found.slots[slot] = size
        if slot is None:
            slot = len(holders)
            holders.append([])
            found.slots.append(size)
        holders[slot].append(life)
        found.slot_of[life.buffer] = slot
