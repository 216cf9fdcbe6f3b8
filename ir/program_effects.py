"""What instructions read and write: buffers, and symbols. Instructions that do not meet may run in any order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.loops import Access
from tcompile.ir.program import Allocate, BindDim, Buffer, Call, Copy, Instruction, Loop, Require, SetDim
from tcompile.ir.program_text import blocks_of, buffers_of

Thing = Buffer | str  # a buffer, or a symbol by its name


@dataclass(frozen=True)
class Effects:
    """The buffers and symbols that instructions read, and those that they write."""

    reads: frozenset[Thing]
    writes: frozenset[Thing]

    def meets(self, other: Effects) -> bool:
        """Whether one writes what the other reads or writes."""
        return not (self.writes.isdisjoint(other.reads | other.writes) and other.writes.isdisjoint(self.reads))

    def names_shared(self, other: Effects) -> list[str]:
        """What they meet in, for messages."""
        things = (self.writes & (other.reads | other.writes)) | (other.writes & self.reads)
        return sorted(thing.name if isinstance(thing, Buffer) else thing for thing in things)

    def __or__(self, other: Effects) -> Effects:
        return Effects(self.reads | other.reads, self.writes | other.writes)


NOTHING = Effects(frozenset(), frozenset())


def effects(body: Iterable[Instruction]) -> Effects:
    """The effects of instructions with all that is in them."""
    found = NOTHING
    for instruction in body:
        found |= effects_of(instruction)
    return found


def effects_of(instruction: Instruction) -> Effects:
    """The effects of one instruction with all that is in it."""
    reads: set[Thing] = set(_symbols_read(instruction))
    writes: set[Thing] = set()
    match instruction:
        case Call(kernel=kernel, buffers=buffers):
            for buffer, param in zip(buffers, kernel.params, strict=True):
                if param.access is not Access.OUT:
                    reads.add(buffer)
                if param.access is not Access.IN:
                    writes.add(buffer)
        case Copy(target=target, source=source):
            reads.add(source)
            writes.add(target)
        case Allocate(buffer=buffer):
            writes.add(buffer)
        case SetDim(symbol=symbol):
            writes.add(symbol)
        case BindDim(symbol=symbol, buffer=buffer):
            reads.add(buffer)
            writes.add(symbol)
        case Loop(counter=counter):
            reads.update(buffers_of(instruction))
            writes.add(counter)
        case _:
            reads.update(buffers_of(instruction))
    mine = Effects(frozenset(reads), frozenset(writes))
    for block in blocks_of(instruction):
        mine |= effects(block)
    return mine


def _symbols_read(instruction: Instruction) -> Iterator[str]:
    """Symbols of an instruction's own expressions, those of its buffers' extents included: memory is laid out by them."""
    expressions: list[DimLike] = [extent for buffer in buffers_of(instruction) for extent in buffer.shape]
    match instruction:
        case Call():
            expressions += instruction.dims
        case Copy():
            expressions.append(instruction.size)
        case SetDim() | Require():
            expressions.append(instruction.expr)
        case BindDim():
            expressions += [end for end in (instruction.range.lo, instruction.range.hi) if end is not None]
        case Loop() if instruction.trip is not None:
            expressions.append(instruction.trip)
    for expression in expressions:
        yield from dims.symbols(expression)
