"""Program -> native code: memory plan, kernels and entry to LLVM IR, objects, one linked image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tcompile.codegen.artifact import Build
from tcompile.codegen.cpu_cost import moved_bytes_and_cycles
from tcompile.codegen.cpu_entry import emit_entry
from tcompile.codegen.cpu_llvm import compile_kernels, emit_kernel, scratch_bytes
from tcompile.codegen.link import link
from tcompile.codegen.memory import plan
from tcompile.codegen.signature import Site, Work
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Ranges
from tcompile.ir.loops import Access, Kernel
from tcompile.ir.program import Buffer, Call, Program
from tcompile.ir.program_text import program_kernels, walk
from tcompile.ir.target import Target

_READABLE = 200  # characters of an expression


class Progress(Protocol):
    """Told how many modules there are to compile, and of each that is done."""

    def stage(self, name: str, total: int | None = None) -> None: ...

    def advance(self, steps: int = 1) -> None: ...


def build_image(
    program: Program,
    target: Target,
    workers: int | None = None,
    *,
    cache: bool = True,
    bounds: bool = False,
    progress: Progress | None = None,
) -> Build:
    """Compiles a program. Raises CodegenError or LinkError, which are bugs of ours.

    ``bounds`` makes a checked build, whose runs stop at an access outside of a buffer.
    """
    places = plan(program)
    kernels = program_kernels(program)
    entry = emit_entry(program, places, {kernel: scratch_bytes(kernel) for kernel in kernels}, target, bounds=bounds)
    modules = [("entry", entry.text), *((kernel.name, emit_kernel(kernel, target, bounds=bounds)) for kernel in kernels)]
    reporter = None if progress is None else _Reporter(progress)
    image = link(compile_kernels(modules, target, workers, reporter, cache=cache))
    return Build(
        image,
        places.weights,
        _bound(entry.arena_bytes, program.symbols),
        _bound(entry.scratch_bytes, program.symbols),
        _growing(program, [*places.growing, *entry.growing_scratch]),
        readable_arena(entry.arena_bytes),
        {kernel: Work(*moved_bytes_and_cycles(kernel, target)) for kernel in kernels},
    )


def readable_arena(arena: DimLike) -> dict[str, str]:
    """The arena's size where it depends on the inputs, as far as a person would read it."""
    text = str(arena)
    return {} if isinstance(arena, int) or len(text) > _READABLE else {"arena": text}


def _growing(program: Program, owners: Sequence[Buffer | Kernel]) -> tuple[Site, ...]:
    """What only a run knows the size of, with the nodes that make it so: buffers, and scratch of kernels."""
    names = dict(zip(program.outputs, program.output_names, strict=True))
    sources: dict[Buffer | Kernel, dict[str, None]] = {owner: {} for owner in owners}
    for call in walk(program.body):
        if isinstance(call, Call):
            written = [b for b, param in zip(call.buffers, call.kernel.params, strict=True) if param.access is not Access.IN]
            for owner in (*written, call.kernel):
                if owner in sources:
                    sources[owner].update(dict.fromkeys(call.source))
    return tuple(Site(names.get(owner, owner.name), tuple(nodes)) for owner, nodes in sources.items())


class _Reporter:
    """Passes progress on: ``compile_kernels`` tells how many modules are done, first those of the cache."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.done = progress, 0

    def __call__(self, done: int, total: int, name: str) -> None:
        if not name:
            self.progress.stage("compile", total)
        self.progress.advance(done - self.done)
        self.done = done


def _bound(size: DimLike, ranges: Ranges) -> int:
    """The largest value of a size; -1 where there is none."""
    high = dims.upper_bound(size, ranges)
    return -1 if high is None else high
