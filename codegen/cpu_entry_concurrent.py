"""Concurrent blocks in the entry: each is two functions over a frame of its own, one job of the pool runs them all.

A block's frame is a copy of the run's with its own dims (those symbols that the block uses), so that threads write no line of
another's, and with its own place for a failure. Which way a group runs depends on the threads alone, and shows nowhere in the bits:

    as many threads as blocks, or fewer    one job: each block whole, on one thread
    more, and turns of little work         what comes before the loops in turn, each kernel shared; then one job for the loops
    more, or one thread                    block after block, kernels shared as elsewhere
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.codegen.cpu_entry_calls import PARALLEL_WORK, Calls, work_of
from tcompile.codegen.cpu_entry_frame import FRAME, field, host_function
from tcompile.codegen.cpu_entry_text import Text, function
from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.program import Call, Concurrent, Instruction
from tcompile.ir.program_effects import effects
from tcompile.ir.program_text import walk

_LINE = 64  # bytes that no two threads write
_FRAME_BYTES = -(-8 * len(FRAME) // _LINE) * _LINE
_SHARED_WORK = 8 * PARALLEL_WORK  # a kernel of a loop that more threads than there are loops do sooner together


@dataclass(frozen=True)
class _Block:
    """The functions of a block, and where its frame and dims lie. ``head`` None: there is nothing before the loop."""

    head: str | None
    loop: str
    frame: str
    offset: int
    symbols: tuple[str, ...]
    changed: tuple[str, ...]


class ConcurrentCalls(Calls):
    """Adds groups to a run under construction; ``functions`` are those that they call."""

    functions: list[str]

    def block(self, body: tuple[Instruction, ...]) -> None:
        """The instructions, one after the other."""
        raise NotImplementedError

    def concurrent(self, group: Concurrent) -> None:
        """The blocks of a group."""
        if not self._can_split(group):
            for branch in group.branches:
                self.block(branch)
            return
        first = self.calls
        blocks = self._blocks(group)
        number = len(self.functions)
        self.functions.append(_job(f"tc_concurrent{number}", blocks))
        self._frames(blocks)
        self._run(group, blocks, f"tc_concurrent{number}", first)
        self._take_over(blocks)

    def _can_split(self, group: Concurrent) -> bool:
        """Whether all scratch is known when the run begins."""
        return all(self.entry_bound(self.scratch_of(i)) is not None for i in walk((group,)) if isinstance(i, Call))

    # Functions ----------------------------------------------------------------------------------------

    def _blocks(self, group: Concurrent) -> list[_Block]:
        found, offset = [], 0
        for branch in group.branches:
            touched = effects(branch)
            used = {thing for thing in touched.reads | touched.writes if isinstance(thing, str)} | set(self.program.entry_symbols)
            order = tuple(name for name in self.text.numbers if name in used)
            changed = tuple(name for name in order if name in touched.writes)
            head = self._function(branch[:-1], order) if branch[:-1] else None
            loop = self._function(branch[-1:], order)
            found.append(_Block(head, loop, "", offset, order, changed))
            offset += _FRAME_BYTES + -(-8 * max(len(order), 1) // _LINE) * _LINE
        area = self.text.name()
        self.allocas.append(f"{area} = alloca [{offset} x i8], align {_LINE}")
        frames = [self.text.once(f"getelementptr i8, ptr {area}, i64 {block.offset}") for block in found]
        return [_Block(b.head, b.loop, frame, b.offset, b.symbols, b.changed) for b, frame in zip(found, frames, strict=True)]

    def _function(self, body: tuple[Instruction, ...], symbols: tuple[str, ...]) -> str:
        """A function of a frame that runs instructions; its name."""
        outer, arguments = self.text, self.arguments
        name = f"tc_block{len(self.functions)}"
        self.functions.append("")
        place = len(self.functions) - 1
        self.text, self.arguments = Text(symbols, frozenset(self.program.entry_symbols), self.program.symbols), 1
        self.text.dims = field(self.text, "dims")
        self.block(body)
        self.end_profile()
        self.text.line("ret i32 0")
        self.text.prologue.insert(0, self.argument_place())
        self.functions[place] = function(name, self.text, "define internal")
        self.text, self.arguments = outer, arguments
        return name

    # The run ------------------------------------------------------------------------------------------

    def _frames(self, blocks: list[_Block]) -> None:
        text = self.text
        for block in blocks:
            text.line(f"call void @tc_copy(ptr {block.frame}, ptr %frame, i64 {8 * len(FRAME)})")
            own = text.once(f"getelementptr i8, ptr {block.frame}, i64 {_FRAME_BYTES}")
            text.line(f"store ptr {own}, ptr {_place(text, block.frame, 'dims')}, align 8")
            for k, name in enumerate(block.symbols):
                place = text.once(f"getelementptr i64, ptr {own}, i64 {k}")
                text.line(f"store i64 {text.dim(dims.symbol(name))}, ptr {place}, align 8")

    def _run(self, group: Concurrent, blocks: list[_Block], job: str, first: int) -> None:
        text = self.text
        self.end_profile()
        together, whole, apart = text.label("together"), text.label("whole"), text.label("apart")
        heads, turn, after = text.label("heads"), text.label("turn"), text.label("after")
        threads = field(text, "threads", "i64")
        several = text.once(f"icmp sgt i64 {threads}, 1")
        text.branch(several, together, turn)
        few = text.once(f"icmp sle i64 {threads}, {len(blocks)}")
        text.branch(few, whole, apart)
        self._share(blocks, job, first, heads=True)
        text.line(f"br label %{after}")
        text.begin(apart)
        text.branch(self._is_small(group), heads, turn)
        self._in_turn(blocks, [block.head for block in blocks])
        self._share(blocks, job, first, heads=False)
        text.line(f"br label %{after}")
        text.begin(turn)
        for block in blocks:
            self._in_turn([block], [block.head])
            self._in_turn([block], [block.loop])
        text.start(after)

    def _is_small(self, group: Concurrent) -> str:
        """Whether no kernel of the loops is worth many threads."""
        calls = [i for branch in group.branches for i in walk(branch[-1:]) if isinstance(i, Call)]
        works = dict.fromkeys(work_of(call.kernel, dict(zip(call.kernel.dims, call.dims, strict=True))) for call in calls)
        known = {name: dims.symbol(name) for name in self.program.entry_symbols}
        most: DimLike = 0
        for work in works:
            if not dims.symbols(work) <= known.keys():
                return "false"
            most = dims.maximum(most, work, self.program.symbols)
        return self.text.once(f"icmp slt i64 {self.text.dim(most)}, {_SHARED_WORK}")

    def _in_turn(self, blocks: list[_Block], names: list[str | None]) -> None:
        text = self.text
        for block, name in zip(blocks, names, strict=True):
            if name is not None:
                status = text.value(f"call i32 @{name}(ptr {block.frame})")
                with text.where_failed(status):
                    self._blame(block, status)

    def _share(self, blocks: list[_Block], job: str, first: int, *, heads: bool) -> None:
        text = self.text
        self.arguments = max(self.arguments, 2)
        for k, (kind, value) in enumerate((("ptr", blocks[0].frame), ("i64", str(int(heads))))):
            place = text.once(f"getelementptr i64, ptr %args, i64 {k}")
            text.line(f"store {kind} {value}, ptr {place}, align 8")
        parallel, session = host_function(text, "parallel_for"), field(text, "session")
        status = text.value(f"call i32 {parallel}(ptr {session}, ptr @{job}, ptr %args, i64 {len(blocks)}, i64 1)")
        with text.where_failed(status):
            self._blame_first(blocks, status, first)

    def _blame_first(self, blocks: list[_Block], status: str, first: int) -> None:
        """Leaves with the site of the first block that failed; the host itself may have stopped the job, too."""
        text = self.text
        for block in blocks:
            site = text.value(f"load i64, ptr {_place(text, block.frame, 'failed_call')}, align 8")
            before = text.value(f"load i64, ptr {_place(text, '%frame', 'failed_call')}, align 8")
            blamed, on = text.label("blamed"), text.label("on")
            text.branch(text.value(f"icmp ne i64 {site}, {before}"), blamed, on)
            self._blame(block, status)
            text.begin(on)
        self.fail(status, first)

    def _blame(self, block: _Block, status: str) -> None:
        """Leaves with the site where a block failed."""
        self.text.line(f"call void @tc_blame(ptr %frame, ptr {block.frame})")
        self.text.line(f"ret i32 {status}")

    def _take_over(self, blocks: list[_Block]) -> None:
        """The symbols that blocks set: the counters, which hold the number of turns."""
        text = self.text
        for block in blocks:
            own = text.once(f"getelementptr i8, ptr {block.frame}, i64 {_FRAME_BYTES}")
            for name in block.changed:
                place = text.once(f"getelementptr i64, ptr {own}, i64 {block.symbols.index(name)}")
                text.set_dim(name, text.value(f"load i64, ptr {place}, align 8"))


def _place(text: Text, frame: str, name: str) -> str:
    return text.once(f"getelementptr i64, ptr {frame}, i64 {FRAME.index(name)}")


def _job(name: str, blocks: list[_Block]) -> str:
    """The kernel of the pool's job: blocks [begin, end), each on one thread. Arguments: the first frame; whether heads run, too."""
    lines = [
        f"define internal i32 @{name}(ptr %args, i64 %begin, i64 %end, ptr %scratch) #0 {{",
        "entry:",
        "%base = load ptr, ptr %args, align 8",
        "%flag = getelementptr i64, ptr %args, i64 1",
        "%heads = load i64, ptr %flag, align 8",
        "%also = icmp ne i64 %heads, 0",
        "br label %block0",
    ]
    for k, block in enumerate(blocks):
        lines += [
            f"block{k}:",
            f"%from{k} = icmp sle i64 %begin, {k}",
            f"%to{k} = icmp sgt i64 %end, {k}",
            f"%mine{k} = and i1 %from{k}, %to{k}",
            f"br i1 %mine{k}, label %run{k}, label %block{k + 1}",
            f"run{k}:",
            f"%frame{k} = getelementptr i8, ptr %base, i64 {block.offset}",
            f"%scratch{k} = getelementptr i64, ptr %frame{k}, i64 {FRAME.index('scratch')}",
            f"store ptr %scratch, ptr %scratch{k}, align 8",
            f"%threads{k} = getelementptr i64, ptr %frame{k}, i64 {FRAME.index('threads')}",
            f"store i64 1, ptr %threads{k}, align 8",
        ]
        if block.head is not None:
            lines += [
                f"br i1 %also, label %head{k}, label %loop{k}",
                f"head{k}:",
                f"%before{k} = call i32 @{block.head}(ptr %frame{k})",
                f"%bad{k} = icmp ne i32 %before{k}, 0",
                f"br i1 %bad{k}, label %stop{k}, label %loop{k}",
                f"stop{k}:",
                f"ret i32 %before{k}",
            ]
        else:
            lines.append(f"br label %loop{k}")
        lines += [
            f"loop{k}:",
            f"%status{k} = call i32 @{block.loop}(ptr %frame{k})",
            f"%failed{k} = icmp ne i32 %status{k}, 0",
            f"br i1 %failed{k}, label %end{k}, label %block{k + 1}",
            f"end{k}:",
            f"ret i32 %status{k}",
        ]
    return "\n".join([*lines, f"block{len(blocks)}:", "ret i32 0", "}"])
