"""Compiles for a GPU without one: graphs for the benchmark, and the report of every model's kernels."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from tcompile.benchmarks.gpu_cases import fixed_shapes
from tcompile.benchmarks.gpu_report import kernel_rows, totals
from tcompile.benchmarks.model_set import Model
from tcompile.codegen.cuda_artifact import PTX
from tcompile.compiled_cuda import CudaCompiled
from tcompile.ir import dims
from tcompile.ir.graph import Graph
from tcompile.ir.program import Program
from tcompile.pipeline import DEFAULTS, Options, chosen_target, compile_model, optimise


def compiled_graph(graph: Graph, device: Any, *, optimised: bool = True, precision: str = "f32") -> bytes:
    """The artifact of a graph for an open device, or for one that is named; ``optimised`` False leaves the passes out."""
    from tcompile.api import device_target
    from tcompile.codegen.cuda_artifact import write_cuda
    from tcompile.codegen.cuda_build import build_cuda
    from tcompile.codegen.lower import lower

    target = chosen_target(device_target(device), Options(precision=precision))
    program = lower(optimise(graph, target) if optimised else graph, target)
    stream = io.BytesIO()
    write_cuda(stream, build_cuda(program, target), target)
    return stream.getvalue()


def symbol_values(program: Program, model: Model) -> dict[str, int]:
    """The symbols of a program's inputs at the shapes that the model set feeds them."""
    found: dict[str, int] = {}
    shapes = recorded_shapes(model) | {name: draw.shape for name, draw in model.inputs.draws.items() if draw.shape is not None}
    for buffer in program.inputs:
        for extent, value in zip(buffer.shape, shapes.get(buffer.name, ()), strict=False):
            if not isinstance(extent, int) and len(dims.symbols(extent)) == 1 and extent == dims.symbol(*dims.symbols(extent)):
                found[str(extent)] = value
    for name in program.entry_symbols:
        found.setdefault(name, model.inputs.sizes.get(name, 2))
    return found


def recorded_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """The shapes of the inputs that a framework left beside its model."""
    beside = model.path.with_suffix(".npz")
    if model.group != "frameworks" or not beside.exists():
        return {}
    found = {}
    with zipfile.ZipFile(beside) as archive:
        for name in archive.namelist():
            if name.startswith("in."):
                with archive.open(name) as stream:  # the head alone: some arrays hold Python's objects
                    found[name.removeprefix("in.").removesuffix(".npy")] = _shape(stream)
    return found


def _shape(stream: IO[bytes]) -> tuple[int, ...]:
    """The shape of an ``.npy`` file."""
    head = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    return head[np.lib.format.read_magic(stream)](stream)[0]


def static_row(model: Model, target: str, options: Options = DEFAULTS, *, symbolic: bool = False) -> dict[str, Any]:
    """The kernels of one model: what the CUDA compiler says of them, and the static model by the data sheet.

    Models of numbers alone are compiled at the sizes of the model set, unless ``symbolic`` asks for the model as it is, or a framework
    wrote it. What Python runs is counted as ``host_calls``. Raises what compiling raises.
    """
    shapes = None if symbolic or model.group == "frameworks" else fixed_shapes(model)
    compiled = compile_model(model.path, target, shapes, options)
    parts = [compiled] if isinstance(compiled, CudaCompiled) else compiled.segments
    rows = [row for part in parts for row in kernel_rows(part.program, part.build, part.target, symbol_values(part.program, model))]
    found = {"totals": totals(rows), "kernels": rows, "ptx": all(PTX in part.build.code for part in parts)}
    return found if parts == [compiled] else {**found, "host_calls": compiled.report(1)["host_calls"]}


class StaticReport:
    """The rows of all models for one target, kept with the digest of what made them: those of another text are made anew."""

    def __init__(self, content: dict[str, Any], made_by: str) -> None:
        known = content.get("models", {}) if content.get("made_by") == made_by else {}
        self.content = {"made_by": made_by, "models": {name: row for name, row in known.items() if "totals" in row}, "refused": {}}

    def missing(self, models: list[Model]) -> list[Model]:
        """The models that have no row."""
        return [model for model in models if model.name not in self.content["models"]]

    def add(self, model: Model, make: Callable[[], dict[str, Any]]) -> str:
        """Makes a model's row; a line about it. A model that does not compile is a line of the report."""
        try:
            row = self.content["models"][model.name] = make()
        except Exception as error:  # a bug of ours is a line of the report too
            self.content["refused"][model.name] = f"{type(error).__name__}: {error}"
            return f"{model.name}: {type(error).__name__}: {str(error)[:300]}"
        summary = row["totals"]
        return (
            f"{model.name}: {summary['kernels']} kernels, {summary['launches']} launches, {summary['flops'] / 1e9:.2f} GFLOP, "
            f"{summary['bytes'] / 1e6:.1f} MB; at least {summary['least_us']:.1f} us by the data sheet; "
            f"spilling: {', '.join(summary['spilling']) or 'none'}; wasteful: {', '.join(summary['wasteful']) or 'none'}"
        )

    def finish(self, target: str) -> str:
        """The lists over all models, and a line of their counts."""
        models = self.content["models"]
        for what in ("spilling", "wasteful"):
            self.content[what] = [f"{name}: {kernel}" for name, row in models.items() for kernel in row["totals"][what]]
        kernels = sum(row["totals"]["kernels"] for row in models.values())
        return (
            f"{len(models)} models compile for {target}, {len(self.content['refused'])} do not; of {kernels} kernels "
            f"{len(self.content['spilling'])} spill, {len(self.content['wasteful'])} move too much"
        )
