"""The pipeline, top to bottom: ONNX -> Graph IR -> passes -> Program + Loop IR -> objects -> image -> artifact."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from tcompile.compiled_cuda import CudaCompiled
from tcompile.errors import Error, UnsupportedError
from tcompile.ir.graph import Graph
from tcompile.ir.target import Target, named_target

if TYPE_CHECKING:
    from tcompile.codegen.artifact import Build
    from tcompile.ir.host import HostProgram
    from tcompile.ir.program import Program


class Pass(Protocol):
    """A Graph -> Graph transformation; a frozen dataclass with a name."""

    name: str

    def apply(self, graph: Graph) -> Graph: ...


class Progress(Protocol):
    """Told of each stage and of the steps done in it (kernels compiled, passes run)."""

    def stage(self, name: str, total: int | None = None) -> None: ...

    def advance(self, steps: int = 1) -> None: ...


class Silent:
    """No progress output."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Nothing to show."""

    def advance(self, steps: int = 1) -> None:
        """Nothing to show."""


@dataclass(frozen=True)
class Options:
    """How to compile.

    ``check`` interprets the graph after every pass on random inputs and names the pass that changed an answer;
    ``dump_ir`` is a directory that gets the IR of every stage; ``stop_after`` names the pass after which
    ``optimise`` ends; ``workers`` is the number of processes that LLVM runs in, by default what the kernels are worth;
    ``cache`` keeps compiled kernels; ``memory`` is how many bytes of computed weights are held, more go to temporary files;
    ``bounds`` checks every access of compiled code, which is slow and finds bugs of the compiler: a run that leaves a buffer stops;
    ``host_ops`` allows operators that Python runs (strings, images, sequences of run-time length); ``winograd`` allows convolutions
    of float32 by Winograd's and Strassen's algorithms on CPUs, which are faster, round more, and spread a NaN over a few outputs.
    On GPUs, ``precision`` says what the factors of float32 products may be rounded to ("f32", "tf32", "fp16", "bf16"), None as the
    target says; ``device_code`` False keeps the kernels' text alone, for emulation.
    """

    check: bool = False
    dump_ir: Path | None = None
    stop_after: str | None = None
    workers: int | None = None
    cache: bool = True
    memory: int = 1 << 26
    bounds: bool = False
    host_ops: bool = True
    winograd: bool = True
    precision: str | None = None
    device_code: bool = True


SILENT = Silent()
DEFAULTS = Options()


def passes(target: Target, *, winograd: bool = True) -> tuple[Pass, ...]:
    """All passes in order. Simplification runs again after layout, which leaves packs of constants to fold.

    ``winograd``: see ``Options``.
    """
    from tcompile.passes import gates, index_bounds, repeats
    from tcompile.passes.canonicalise import Canonicalise
    from tcompile.passes.fold import FoldConstants
    from tcompile.passes.fuse import Fuse
    from tcompile.passes.fuse_sums import SumRows
    from tcompile.passes.gathered_convs import GatheredConvs
    from tcompile.passes.layout import AssignLayouts
    from tcompile.passes.layout_taps import WeightsByTaps
    from tcompile.passes.narrow_weights import NarrowWeights
    from tcompile.passes.quantised import IntegerContractions
    from tcompile.passes.recognise import Recognise

    return (
        Canonicalise(),
        IntegerContractions(target),
        FoldConstants(),
        Recognise(),
        GatheredConvs(target),
        AssignLayouts(target, winograd),
        FoldConstants("fold-packed", extra=(*repeats.RULES, *gates.RULES, *index_bounds.RULES)),
        NarrowWeights(target),
        WeightsByTaps(target),
        Fuse(target),
        SumRows(),
    )


def optimise(graph: Graph, target: Target, options: Options = DEFAULTS, progress: Progress = SILENT) -> Graph:
    """Runs the passes, verifying after each."""
    from tcompile.ir.verify import verify

    todo = passes(target, winograd=options.winograd)
    if options.stop_after and options.stop_after not in {step.name for step in todo}:
        raise UnsupportedError(f"no pass is named {options.stop_after!r}", hint=f"passes: {', '.join(step.name for step in todo)}")
    checker = _Checker(graph) if options.check else None
    verify(graph)
    _dump(options, 0, "import", graph)
    progress.stage("optimise", len(todo))
    for number, step in enumerate(todo, 1):
        graph = step.apply(graph)
        with _named(step.name):
            verify(graph)
        _dump(options, number, step.name, graph)
        if checker:
            checker.compare(graph, step.name)
        progress.advance()
        if step.name == options.stop_after:
            break
    return graph


@dataclass(frozen=True, eq=False)
class Compiled:
    """A compiled model: its program, the image and weights, and the machine they are for."""

    program: Program
    build: Build
    target: Target

    def write(self, stream: BinaryIO) -> None:
        """Writes the artifact into an empty stream that can seek; the weights are read in pieces, never held twice."""
        from tcompile.codegen.artifact import write_into

        write_into(stream, self.program, self.build, self.target)

    def report(self, threads: int) -> dict[str, Any]:
        """What was made, as JSON can hold it; sizes in bytes, None where not bounded. ``threads``: those of a run."""
        from tcompile.codegen.machine import machine
        from tcompile.ir.program import Call
        from tcompile.ir.program_text import program_kernels, walk

        build, calls = self.build, [i for i in walk(self.program.body) if isinstance(i, Call)]
        arena, scratch = (None if count < 0 else count for count in (build.arena_bytes, build.scratch_bytes))
        code, weights = len(build.image.code), max((weight.offset + weight.bytes for weight in build.weights), default=0)
        bounded = arena is not None and scratch is not None
        return {
            "target": machine(self.target).target,
            "arch": build.image.arch,
            "kernels": len(program_kernels(self.program)),
            "calls": len(calls),
            "code_bytes": code,
            "weights_bytes": weights,
            "arena_bytes": arena,
            "scratch_bytes": scratch,
            "threads": threads,
            "peak_bytes": code + weights + arena + -(-scratch // 64) * 64 * threads if bounded else None,
            "growing": [{"name": site.name, "nodes": list(site.sources)} for site in build.growing],
            "notes": dict(build.notes),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the artifact into a file: whole, beside it, then renamed."""
        from tcompile.codegen.artifact import save_artifact

        save_artifact(path, self.program, self.build, self.target)


@dataclass(frozen=True, eq=False)
class HostCompiled:
    """A compiled model that Python runs in part: its steps, and its native segments."""

    program: HostProgram
    segments: Sequence[AnyCompiled]
    target: Target

    def write(self, stream: BinaryIO) -> None:
        """Writes the artifact into an empty stream that can seek."""
        from tcompile.codegen.bundle import write_bundle
        from tcompile.ir.host import encode

        write_bundle(stream, encode(self.program), [segment.write for segment in self.segments])

    def report(self, threads: int) -> dict[str, Any]:
        """What was made of the segments together, and what Python runs; as ``Compiled.report``."""
        from tcompile.runtime.reports import combined

        reports = [segment.report(threads) for segment in self.segments]
        counts = {name: sum(report[name] for report in reports) for name in ("kernels", "calls")}
        return {**combined(reports), **counts, "target": self.target.name, "threads": threads, "host_calls": self.program.host_calls()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the artifact into a file: whole, beside it, then renamed."""
        from tcompile.codegen.artifact import save_file

        save_file(path, self.write)


AnyCompiled = Compiled | CudaCompiled


def compile_model(
    model: Any,
    target: str | Target = "native",
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    options: Options = DEFAULTS,
    progress: Progress = SILENT,
) -> AnyCompiled | HostCompiled:
    """The whole way but the last step: a model (path, bytes or ModelProto) to a program, native code and weights."""
    from tcompile.ir.spill import spilling

    target = chosen_target(target, options)
    with spilling(options.memory):
        progress.stage("import")
        program = imported(model, target, shapes, options)
    if isinstance(program, Graph):
        return compile_graph(program, target, options, progress)
    segments = [compile_graph(segment, target, _of_segment(options, k), progress) for k, segment in enumerate(program.segments)]
    return HostCompiled(program, segments, target)


def chosen_target(target: str | Target, options: Options = DEFAULTS) -> Target:
    """The target of a name, with the precision that is asked for. Raises UnsupportedError for one that it does not have."""
    from tcompile.ir.target import PRECISIONS, GpuTarget

    found = named_target(target) if isinstance(target, str) else target
    if options.precision is None:
        return found
    if not isinstance(found, GpuTarget):
        raise UnsupportedError(f"the target {found.name} computes float32 in float32 only", hint="--precision is for cuda-* targets")
    precision = options.precision.replace("fp16", "f16")
    if precision not in PRECISIONS:
        raise UnsupportedError(f"there is no precision {options.precision!r}", hint="one of f32, tf32, fp16, bf16")
    return replace(found, precision=precision)


def _of_segment(options: Options, number: int) -> Options:
    """The options with a directory of the segment's own for its IR."""
    return options if options.dump_ir is None else replace(options, dump_ir=options.dump_ir / f"segment{number}")


def imported(
    model: Any, target: Target, shapes: Mapping[str, Sequence[int | str]] | None = None, options: Options = DEFAULTS
) -> Graph | HostProgram:
    """The model as a graph, or as graphs with host ops between them where these are allowed.

    Raises UnsupportedError naming the host ops of a model where they are not.
    """
    from tcompile.ir.onnx_host import check_program, import_program
    from tcompile.ir.onnx_import import import_model

    if options.host_ops and target.host_ops:
        return import_program(model, shapes)
    try:
        return import_model(model, shapes)
    except UnsupportedError as error:
        problems, calls = check_program(model, shapes)
        if problems or not calls:
            raise
        who = "host_ops=False forbids" if target.host_ops else f"the target {target.name} does not have"
        listed = "".join(f"\n  - {call}" for call in calls)
        raise UnsupportedError(f"the model needs Python at run time, which {who}:{listed}") from error


def compile_graph(graph: Graph, target: Target, options: Options = DEFAULTS, progress: Progress = SILENT) -> AnyCompiled:
    """An imported graph to native code."""
    from tcompile.codegen.concurrent import concurrent_loops
    from tcompile.codegen.lower import lower
    from tcompile.ir.program_text import print_program
    from tcompile.ir.program_verify import verify_program
    from tcompile.ir.spill import spilling

    with spilling(options.memory):
        graph = optimise(graph, target, options, progress)
    progress.stage("lower")
    program = lower(graph, target)
    if target.backend == "cpu":
        program = concurrent_loops(program)
    verify_program(program)
    if options.dump_ir:
        (options.dump_ir / "99-program.txt").write_text(print_program(program))
    return _BACKENDS[target.backend](program, target, options, progress)


def _for_cpu(program: Program, target: Target, options: Options, progress: Progress) -> Compiled:
    from tcompile.codegen.build import build_image

    build = build_image(program, target, options.workers, cache=options.cache, bounds=options.bounds, progress=progress)
    return Compiled(program, build, target)


def _for_cuda(program: Program, target: Target, options: Options, progress: Progress) -> CudaCompiled:
    from tcompile.codegen.cuda_build import build_cuda

    build = build_cuda(program, target, device_code=options.device_code, cache=options.cache, progress=progress)
    return CudaCompiled(program, build, target)


_BACKENDS = {"cpu": _for_cpu, "cuda": _for_cuda}


def compile_artifact(
    model: Any,
    target: str | Target = "native",
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    options: Options = DEFAULTS,
    progress: Progress = SILENT,
) -> bytes:
    """A model to artifact bytes, the same ones every time. ``compile_model`` writes large ones to a file instead."""
    compiled = compile_model(model, target, shapes, options, progress)
    progress.stage("write")
    stream = io.BytesIO()
    compiled.write(stream)
    return stream.getvalue()


def _dump(options: Options, number: int, name: str, graph: Graph) -> None:
    if options.dump_ir:
        options.dump_ir.mkdir(parents=True, exist_ok=True)
        (options.dump_ir / f"{number:02}-{name}.txt").write_text(str(graph))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Says which pass left an invalid graph."""
    try:
        yield
    except Error as error:
        raise Error(f"after the pass {name!r}: {error}") from error


class _Checker:
    """Interprets the imported graph once on random inputs, and each later stage against it."""

    def __init__(self, graph: Graph) -> None:
        from tcompile.accuracy import random_inputs
        from tcompile.ir.interpret import interpret

        self.inputs = random_inputs(graph.inputs, {})
        self.expected = interpret(graph, self.inputs)

    def compare(self, graph: Graph, name: str) -> None:
        from tcompile.accuracy import largest_error
        from tcompile.ir.interpret import interpret

        for key, got in interpret(graph, self.inputs).items():
            error, largest = largest_error(got, self.expected[key])
            if not error <= 1e-4 * max(largest, 1.0):  # rewrites may reorder sums: 1e-4 of the largest value
                raise Error(f"the pass {name!r} changed output {key!r} by {error:.3g} (largest value {largest:.3g})")
