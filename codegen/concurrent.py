"""Loops that do not depend on each other run at once: the directions of a bidirectional recurrence.

    call projection(x, a)                              concurrent
    loop turn0 < n                                       call projection(x, a)
      call step(a, ...)                                  loop turn0 < n
    call projection(x, b)                      -->         call step(a, ...)
    loop turn1 < n                                     and
      call step(b, ...)                                  call projection(x, b)
                                                         loop turn1 < n
                                                           call step(b, ...)

The turns of a loop wait for each other, and one turn is too little work to share: threads would spend their time meeting. A thread
for each loop meets the others once. The loops do the same amount of work, or threads would wait for the longest one.

What is between two loops moves ahead of the first, or stays behind both. Then calls and copies of which one loop alone reads the
results move next to it, where its thread finds them in its cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import UnionType

from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.program import Allocate, Buffer, Call, Concurrent, Copy, If, Instruction, Loop, Program, Role
from tcompile.ir.program_effects import NOTHING, Effects, effects_of
from tcompile.ir.program_text import buffers_of, walk

_LOOK = 64  # instructions between two loops, and before them
_Branch = list[Instruction]


def concurrent_loops(program: Program) -> Program:
    """The program with its independent loops side by side."""
    return replace(program, body=_Grouping(program).block(program.body))


@dataclass(frozen=True)
class _Found:
    """Loops to run at once; what moves ahead of them and what stays behind; and how many instructions these are, all together."""

    loops: list[Loop]
    ahead: list[Instruction]
    behind: list[Instruction]
    length: int


class _Grouping:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.touches = _touches(program.body)
        self._effects: dict[Instruction, Effects] = {}

    def effects(self, instruction: Instruction) -> Effects:
        if instruction not in self._effects:
            self._effects[instruction] = effects_of(instruction)
        return self._effects[instruction]

    def block(self, body: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
        """A block with groups in it, and in the blocks inside."""
        todo, done = list(body), []
        while todo:
            first = todo[0]
            found = self._group(todo) if isinstance(first, Loop) and self._fits(first) else None
            if found is None:
                done.append(self._inside(first))
                todo = todo[1:]
            else:
                done = self._placed(found, [*done, *found.ahead])
                todo = [*found.behind, *todo[found.length :]]
        return tuple(done)

    def _inside(self, instruction: Instruction) -> Instruction:
        match instruction:
            case If():
                return replace(instruction, then=self.block(instruction.then), otherwise=self.block(instruction.otherwise))
            case Loop():
                return replace(instruction, body=self.block(instruction.body))
        return instruction

    def _fits(self, loop: Loop) -> bool:
        """Whether a thread of its own can run a loop: nothing in it asks the host for memory, and the number of turns is known."""
        entry = set(self.program.entry_symbols)
        inner = list(walk(loop.body))
        held = all(b.role is not Role.GROWING and dims.shape_symbols(b.shape) <= entry for i in inner for b in buffers_of(i))
        return held and loop.cond is None and loop.trip is not None and not any(isinstance(i, Allocate) for i in inner)

    def _group(self, todo: list[Instruction]) -> _Found | None:
        """The loops that can run beside the first of ``todo``; None where there are none."""
        first = todo[0]
        assert isinstance(first, Loop)
        found = _Found([first], [], [], 0)
        taken, kept = self.effects(first), NOTHING
        ahead: list[Instruction] = []
        behind: list[Instruction] = []
        for position, instruction in enumerate(todo[1 : _LOOK + 1], 1):
            mine = self.effects(instruction)
            free = not mine.meets(taken) and not mine.meets(kept)
            if isinstance(instruction, Loop) and free and self._fits(instruction) and _alike(first, instruction):
                taken |= mine
                found = _Found([*found.loops, instruction], list(ahead), list(behind), position + 1)
            elif not isinstance(instruction, Call | Copy):
                break
            elif free:
                ahead.append(instruction)
            else:
                behind.append(instruction)
                kept |= mine
        return found if len(found.loops) > 1 else None

    def _placed(self, found: _Found, before: list[Instruction]) -> list[Instruction]:
        """The instructions up to the group, and the group with what belongs to each of its loops alone, if it is as much for each."""
        for moving in (Call | Copy, Copy):
            outside, branches = self._gathered(found, before, moving)
            if len({_work(branch) for branch in branches}) == 1:
                break
        return [*outside, Concurrent(tuple(map(tuple, branches)))]

    def _gathered(self, found: _Found, before: list[Instruction], moving: UnionType | type) -> tuple[list[Instruction], list[_Branch]]:
        """What stays before the group, and the branches with those instructions, of a kind, that belong to one of them alone."""
        branches: list[_Branch] = [[loop] for loop in found.loops]
        near, staying = before[-_LOOK:], []
        between = NOTHING
        for instruction in reversed(near):
            mine = self.effects(instruction)
            branch = self._branch_of(instruction, branches) if isinstance(instruction, moving) else None
            others = (self.effects(i) for other in branches if other is not branch for i in other)
            if branch is None or mine.meets(between) or any(mine.meets(other) for other in others):
                staying.append(instruction)
                between |= mine
            else:
                branch.insert(0, instruction)
        return [*before[:-_LOOK], *reversed(staying)], branches

    def _branch_of(self, instruction: Instruction, branches: list[_Branch]) -> _Branch | None:
        """The branch that alone uses what a call or copy writes."""
        written = [thing for thing in self.effects(instruction).writes if isinstance(thing, Buffer)]
        if any(buffer.role is not Role.TEMP for buffer in written):
            return None
        for branch in branches:
            here = _touches(branch)
            if all(0 < here[buffer] == self.touches[buffer] - 1 for buffer in written):
                return branch
        return None


def _touches(body: Iterable[Instruction]) -> Counter[Buffer]:
    """How many instructions use each buffer."""
    return Counter(buffer for instruction in walk(body) for buffer in dict.fromkeys(buffers_of(instruction)))


def _alike(a: Loop, b: Loop) -> bool:
    """Whether two loops do the same amount of work."""
    return a.trip == b.trip and _work(a.body) == _work(b.body)


def _work(body: Iterable[Instruction]) -> tuple[DimLike, int]:
    """The floating-point operations and the calls of a block, of loops one turn."""
    calls = [i for i in walk(body) if isinstance(i, Call)]
    return sum((dims.substitute(i.kernel.flops, dict(zip(i.kernel.dims, i.dims, strict=True))) for i in calls), 0), len(calls)
