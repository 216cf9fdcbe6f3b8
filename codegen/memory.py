"""Where each buffer of a program lies: offsets in the arena, slots of the host, places in the weights.

A TEMP buffer lives from its first to its last use; one that lives across the edge of a loop lives through all of it.
Where a kernel may write a result over an operand that it is the last to read, both buffers are one (``aliases``).
Buffers of constant size are packed best fit, largest first, at constant offsets; those whose size depends on entry
symbols share slots behind them, whose sizes the prepared shapes decide. What the run itself sizes gets a
growing slot of the host. Buffers of blocks that run at once share nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tcompile.codegen.lifetimes import ConcurrentBlock, handovers, lifetimes
from tcompile.codegen.signature import Weight, place_weights
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Ranges
from tcompile.ir.program import Buffer, Program, Role
from tcompile.ir.program_text import program_buffers

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

    def same_place(self, a: Buffer, b: Buffer) -> bool:
        """Whether two buffers begin at one address of the arena."""
        return a.role is b.role is Role.TEMP and (self.offsets.get(a), self.slot_of.get(a)) == (self.offsets.get(b), self.slot_of.get(b))

    def slot_start(self, slot: int) -> DimLike:
        """Where a slot begins in the arena."""
        return sum((_aligned(size) for size in self.slots[:slot]), self.static_bytes)

    @property
    def arena_bytes(self) -> DimLike:
        """The size of the arena, over entry symbols."""
        return self.slot_start(len(self.slots))


@dataclass
class _Tenant:
    """Buffers that share one place, each in the time of its own; ``start`` to ``end`` is the time of all."""

    buffers: list[Buffer]
    start: int
    end: int
    block: ConcurrentBlock | None

    @property
    def size(self) -> DimLike:
        return _bytes(self.buffers[0])

    def meets(self, other: _Tenant) -> bool:
        beside = self.block is not None and self.block.beside(other.block)
        return beside or (self.start <= other.end and other.start <= self.end)


def plan(program: Program) -> Plan:
    """The places of all buffers."""
    found = Plan()
    tenants = _tenants(program)
    _pack_static([tenant for tenant in tenants if isinstance(tenant.size, int)], found)
    _share_slots([tenant for tenant in tenants if not isinstance(tenant.size, int)], program.symbols, found)
    buffers = program_buffers(program)
    entry = set(program.entry_symbols)
    unknown = [b for b in buffers if b.role is Role.GROWING or (b.role is Role.OUTPUT and not dims.shape_symbols(b.shape) <= entry)]
    found.growing = {buffer: number for number, buffer in enumerate(unknown)}
    weights = [buffer for buffer in buffers if buffer.role is Role.WEIGHT]
    found.weights = place_weights(weights)
    found.weight_offsets = {buffer: weight.offset for buffer, weight in zip(weights, found.weights, strict=True)}
    return found


def _tenants(program: Program) -> list[_Tenant]:
    """The buffers of the arena in the order in which they begin; a result in place of its operand joins it."""
    lives = {life.buffer: life for life in lifetimes(program) if life.buffer.role is Role.TEMP}
    operands = {result: operand for operand, result in handovers(program) if operand in lives and result in lives}
    place: dict[Buffer, _Tenant] = {}
    for buffer, life in lives.items():
        before = place.get(operands.get(buffer))
        if before is not None and before.buffers[-1] is operands[buffer] and before.size == _bytes(buffer):
            before.buffers.append(buffer)
            before.end = life.end
            place[buffer] = before
        else:
            place[buffer] = _Tenant([buffer], life.start, life.end, life.block)
    return list({id(tenant): tenant for tenant in place.values()}.values())


def _bytes(buffer: Buffer) -> DimLike:
    return dims.product(buffer.shape) * buffer.dtype.bytes


def _aligned(size: DimLike) -> DimLike:
    return dims.ceildiv(size, ALIGN) * ALIGN


def _pack_static(tenants: list[_Tenant], found: Plan) -> None:
    """Largest first, each into the tightest gap between those that live at the same time."""
    placed: list[tuple[_Tenant, int, int]] = []
    for tenant in sorted(tenants, key=lambda tenant: (-tenant.size, tenant.start)):
        size = _aligned(tenant.size)
        busy = sorted((offset, offset + length) for other, offset, length in placed if tenant.meets(other))
        offset = _best_gap(busy, size)
        placed.append((tenant, offset, size))
        found.offsets.update(dict.fromkeys(tenant.buffers, offset))
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


def _share_slots(tenants: list[_Tenant], ranges: Ranges, found: Plan) -> None:
    """A tenant takes a slot that is free and of its size, else one that is larger or smaller for sure, else a new one."""
    holders: list[list[_Tenant]] = []
    for tenant in tenants:
        size = tenant.size
        free = [k for k, held in enumerate(holders) if not any(tenant.meets(other) for other in held)]
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
        holders[slot].append(tenant)
        found.slot_of.update(dict.fromkeys(tenant.buffers, slot))
