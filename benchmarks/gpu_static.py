"""Compiles for a GPU without one: graphs for the benchmark, and the report of every model's kernels."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from tcompile.benchmarks.gpu_cases import fixed_shapes
from tcompile.benchmarks.gpu_report import kernel_rows, show_rows, totals
from tcompile.benchmarks.model_set import Model
from tcompile.ir import dims
from tcompile.ir.graph import Graph
from tcompile.ir.program import Program
from tcompile.pipeline import Options, chosen_target, compile_model, optimise

if TYPE_CHECKING:  # not on every machine that times kernels
    from rich.console import Console


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
    for buffer in program.inputs:
        draw = model.inputs.draws.get(buffer.name)
        shape = draw.shape if draw is not None and draw.shape is not None else ()
        for extent, value in zip(buffer.shape, shape, strict=False):
            if not isinstance(extent, int) and len(dims.symbols(extent)) == 1 and extent == dims.symbol(*dims.symbols(extent)):
                found[str(extent)] = value
    for name in program.entry_symbols:
        found.setdefault(name, model.inputs.sizes.get(name, 2))
    return found


def static_report(models: list[Model], target: str, console: Console) -> dict[str, Any]:
    """Compiles every model and prints its kernels: what the CUDA compiler says, and the static model by the data sheet."""
    found: dict[str, Any] = {"target": target, "models": {}, "refused": {}, "spilling": [], "wasteful": []}
    for model in models:
        try:
            compiled = compile_model(model.path, target, fixed_shapes(model), Options(host_ops=False))
        except Exception as error:  # a model that does not compile is a line of the report
            found["refused"][model.name] = f"{type(error).__name__}: {error}"
            console.print(f"{model.name}: {type(error).__name__}: {str(error)[:300]}", markup=False)
            continue
        rows = kernel_rows(compiled.program, compiled.build, compiled.target, symbol_values(compiled.program, model))
        summary = totals(rows)
        found["models"][model.name] = {"totals": summary, "kernels": rows}
        for what in ("spilling", "wasteful"):
            found[what] += [f"{model.name}: {name}" for name in summary[what]]
        show_rows(f"{model.name} for {target}", rows, console)
        console.print(
            f"{summary['kernels']} kernels, {summary['launches']} launches, {summary['flops'] / 1e9:.2f} GFLOP, "
            f"{summary['bytes'] / 1e6:.1f} MB; at least {summary['least_us']:.1f} us by the data sheet; "
            f"spilling: {', '.join(summary['spilling']) or 'none'}; wasteful: {', '.join(summary['wasteful']) or 'none'}\n",
            markup=False,
        )
    console.print(
        f"{len(found['models'])} models compile for {target}, {len(found['refused'])} do not; spilling kernels: {len(found['spilling'])}, "
        f"kernels that move too much: {len(found['wasteful'])}"
    )
    console.print("to measure on a machine with a GPU: python -m tcompile.benchmarks.gpu MODELS --json gpu.json")
    return found
