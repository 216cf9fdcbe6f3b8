"""When each buffer of a program holds something, and where a result may take the place of an operand.

Positions count instructions in program order, bodies included. The caller's memory is used from before the first
instruction (inputs) and until after the last (outputs). What lives across the edge of a loop lives through all of it, and so
does what lives across the edge of concurrent blocks; what lives inside one of these meets all that lives in another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tcompile.ir import dims
from tcompile.ir.program import Buffer, Call, Concurrent, Copy, Instruction, Loop, Program, Role
from tcompile.ir.program_text import blocks_of, buffers_of


@dataclass(frozen=True)
class ConcurrentBlock:
    """The positions of a block of a Concurrent, and those of the Concurrent."""

    span: tuple[int, int]
    group: tuple[int, int]

    def beside(self, other: ConcurrentBlock | None) -> bool:
        """Whether both may run at once."""
        return other is not None and self.group == other.group and self.span != other.span


@dataclass(frozen=True)
class Life:
    """Positions of the first and last use of a buffer; ``block``: the concurrent block that it lives in, with all of its group."""

    buffer: Buffer
    start: int
    end: int
    block: ConcurrentBlock | None = None


def lifetimes(program: Program) -> list[Life]:
    """The lives of all buffers, in the order in which they begin."""
    return sorted(_lives(_walked(program)).values(), key=lambda life: life.start)


def handovers(program: Program) -> Iterator[tuple[Buffer, Buffer]]:
    """(operand, result): the instruction that writes the result first is the last to read the operand, element for element."""
    walker = _walked(program)
    lives = _lives(walker)
    for position, instruction in walker.instructions:
        for operand, result in _in_place(instruction):
            if lives[operand].end == position and lives[result].start == position:
                yield operand, result


def shared(program: Program) -> Iterator[tuple[int, int]]:
    """(output, input) positions that may be one memory: the input is handed over to the output (these pairs come first), or
    is read for the last time before the output is written. Outputs of which only the run knows the shape are not among them.
    """
    lives = _lives(_walked(program))
    given = set(handovers(program))
    entry = set(program.entry_symbols)
    for k, output in enumerate(program.outputs):
        if output.role is not Role.OUTPUT or output not in lives or not dims.shape_symbols(output.shape) <= entry:
            continue
        for i, operand in sorted(enumerate(program.inputs), key=lambda item: (item[1], output) not in given):
            ends = lives[operand].end if operand in lives else -1
            if operand.dtype == output.dtype and (ends < lives[output].start or (operand, output) in given):
                yield k, i


def _in_place(instruction: Instruction) -> list[tuple[Buffer, Buffer]]:
    """The pairs of buffers that an instruction may find at one address; an operand that it reads elsewhere too is none."""
    match instruction:
        case Copy(target=target, source=source):
            return [(source, target)]
        case Call(kernel=kernel, buffers=buffers):
            found = []
            for i, o in kernel.aliases:
                places = [k for k, buffer in enumerate(buffers) if buffer is buffers[i]]
                if all((k, o) in kernel.aliases for k in places):
                    found.append((buffers[i], buffers[o]))
            return found
    return []


def _walked(program: Program) -> _Walker:
    walker = _Walker()
    walker.block(program.body)
    walker.position += 1
    for buffer in program.inputs:
        if buffer in walker.uses:
            walker.uses[buffer] = 0, walker.uses[buffer][1]
    for buffer in program.outputs:
        if buffer in walker.uses:
            walker.uses[buffer] = walker.uses[buffer][0], walker.position
    return walker


def _lives(walker: _Walker) -> dict[Buffer, Life]:
    found = {}
    for buffer, (start, end) in walker.uses.items():
        for first, last in walker.spans:  # inner ones come first
            if (start < first <= end or start <= last < end) and start <= last and end >= first:
                start, end = min(start, first), max(end, last)
        found[buffer] = Life(buffer, start, end, walker.block_of(start, end))
    return found


class _Walker:
    def __init__(self) -> None:
        self.position = 0
        self.uses: dict[Buffer, tuple[int, int]] = {}
        self.spans: list[tuple[int, int]] = []  # of loops, and of groups of concurrent blocks and each of the blocks
        self.concurrent: list[ConcurrentBlock] = []
        self.instructions: list[tuple[int, Instruction]] = []

    def block(self, body: Iterable[Instruction]) -> None:
        for instruction in body:
            self.position += 1
            self.instructions.append((self.position, instruction))
            for buffer in buffers_of(instruction):
                self.use(buffer)
            match instruction:
                case Concurrent():
                    self._concurrent(instruction)
                case Loop():
                    first = self.position
                    self.block(instruction.body)
                    self.position += 1
                    if instruction.cond is not None:
                        self.use(instruction.cond)
                    self.spans.append((first, self.position))
                case _:
                    for inner in blocks_of(instruction):
                        self.block(inner)

    def _concurrent(self, group: Concurrent) -> None:
        """What lives across the edge of a block lives through the group: nothing says which block comes first."""
        first, blocks = self.position, []
        for branch in group.branches:
            start = self.position + 1
            self.block(branch)
            blocks.append((start, self.position))
        self.spans.append((first, self.position))
        self.concurrent += [ConcurrentBlock(span, (first, self.position)) for span in blocks]

    def block_of(self, start: int, end: int) -> ConcurrentBlock | None:
        """The concurrent block that a whole life is in."""
        return next((block for block in self.concurrent if block.span[0] <= start and end <= block.span[1]), None)

    def use(self, buffer: Buffer) -> None:
        start, _ = self.uses.get(buffer, (self.position, 0))
        self.uses[buffer] = start, self.position
