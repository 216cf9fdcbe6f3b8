"""The command line: ``tcompile compile | run | check | verify | inspect | profile | bench | bench-op | package | demo``.

Exit status: 0 done; 1 an error; 2 wrong usage; 3 ``check`` found something unsupported; 4 ``verify`` found a wrong answer.
Results go to standard output (``--json`` for machines), progress and errors to standard error.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

import tcompile
from tcompile.cli_bench import bench
from tcompile.cli_bench_op import bench_op
from tcompile.cli_options import (
    device_option,
    errors,
    input_option,
    json_option,
    open_model,
    parse_pairs,
    parse_shapes,
    parse_sizes,
    precision_option,
    progress_bars,
    read_array,
    read_inputs,
    shape_option,
    size_option,
    threads_option,
    winograd_option,
)
from tcompile.cli_profile import profile
from tcompile.cli_text import show_artifact, show_calls, show_compiled, show_kernels
from tcompile.errors import Error, InputError, UnsupportedError

UNSUPPORTED, WRONG_ANSWER = 3, 4
console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)


class Reporter(click.Group):
    """Turns every ``tcompile.Error`` into one message and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except (Error, OSError, MemoryError) as error:
            errors.print(f"error: {error or type(error).__name__}", style="red", markup=False, soft_wrap=True)
            ctx.exit(UNSUPPORTED if isinstance(error, UnsupportedError) else 1)


@click.group(cls=Reporter, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(tcompile.__version__, prog_name="tcompile")
def main() -> None:
    """Compiles trained ONNX models into native artifacts, and runs them."""


main.add_command(bench)
main.add_command(bench_op)
main.add_command(profile)


@main.command(name="compile")
@click.argument("model", type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="The artifact; MODEL with .tcm by default.")
@click.option(
    "--target",
    default="native",
    show_default=True,
    help="native, x86-64-v3, x86-64-v4, aarch64-linux, cuda-sm80, -sm86, -sm89, -sm90, -sm100.",
)
@shape_option
@click.option("--check", "check_passes", is_flag=True, help="Interpret after every pass and name the one that changes an answer.")
@click.option("--dump-ir", type=click.Path(file_okay=False, path_type=Path), help="Write the IR of every stage here.")
@click.option("--stop-after", metavar="PASS", help="Stop after a pass and print the graph.")
@click.option("--workers", type=click.IntRange(1), help="Processes that LLVM runs in.")
@click.option("--no-cache", is_flag=True, help="Neither read nor write the kernel cache.")
@click.option("--no-host-ops", is_flag=True, help="Refuse operators that Python would run: strings, images, sequences of run-time length.")
@winograd_option
@precision_option
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@json_option
def compile_command(
    model, output, target, shapes, check_passes, dump_ir, stop_after, workers, no_cache, no_host_ops, no_winograd, precision, quiet, as_json
) -> None:
    """Compiles MODEL (.onnx) into an artifact (.tcm)."""
    from tcompile import pipeline

    extra = {"workers": workers} if workers else {}
    options = pipeline.Options(
        check=check_passes,
        dump_ir=dump_ir,
        stop_after=stop_after,
        cache=not no_cache,
        host_ops=not no_host_ops,
        winograd=not no_winograd,
        precision=precision,
        **extra,
    )
    with progress_bars(quiet or as_json) as progress:
        if stop_after:
            from tcompile.ir.onnx_import import import_model

            graph = import_model(model, parse_shapes(shapes))
            text = str(pipeline.optimise(graph, pipeline.chosen_target(target, options), options, progress))
            click.echo(text)
            return
        path, start = Path(output) if output else Path(model).with_suffix(".tcm"), time.perf_counter()
        compiled = pipeline.compile_model(model, target, parse_shapes(shapes), options, progress)
        progress.stage("write")
        compiled.save(path)
    seconds = time.perf_counter() - start
    report = {"artifact": str(path), "bytes": path.stat().st_size, **compiled.report(default_threads()), "seconds": round(seconds, 3)}
    if as_json:
        click.echo(json.dumps(report))
    else:
        show_compiled(report, console)


def default_threads() -> int:
    """The threads that a run takes on this machine."""
    from tcompile.runtime import Pool

    return Pool().threads


@main.command()
@click.argument("artifact", type=click.Path(exists=True, dir_okay=False))
@input_option
@click.option("--output", "outputs", multiple=True, metavar="NAME=FILE", help="Write an output to a .npy file.")
@size_option
@threads_option
@device_option
@json_option
def run(artifact, inputs, outputs, sizes, threads, device, as_json) -> None:
    """Runs an ARTIFACT (or compiles and runs an .onnx file) on arrays."""
    executable = open_model(artifact, threads, device)
    results = executable.run(read_inputs(executable, inputs, sizes))
    for name, path in parse_pairs(outputs, "--output").items():
        if name not in results:
            raise InputError(f"there is no output {name!r}", hint=f"outputs: {', '.join(results)}")
        save_array(path, name, results[name])
    if as_json:
        click.echo(json.dumps({name: as_plain(value) for name, value in results.items()}))
        return
    for name, value in results.items():
        show_value(name, value)


def save_array(path: str, name: str, value: Any) -> None:
    """Writes an output to a .npy file; strings as NumPy's fixed-width ones, so that they load without pickles."""
    if not isinstance(value, np.ndarray):
        raise InputError(f"the output {name!r} is a {type(value).__name__}, which no .npy file holds", hint="use --json")
    np.save(path, value.astype(str) if value.dtype == object else value)


def as_plain(value: Any) -> Any:
    """An output as JSON holds it: tensors with their element type and shape, sequences as lists."""
    if isinstance(value, np.ndarray):
        return {"dtype": "string" if value.dtype == object else str(value.dtype), "shape": list(value.shape), "values": value.tolist()}
    return [as_plain(item) for item in value] if isinstance(value, list) else value


def show_value(name: str, value: Any) -> None:
    """Prints an output."""
    if isinstance(value, np.ndarray):
        console.print(f"[bold]{name}[/bold] {'string' if value.dtype == object else value.dtype}{list(value.shape)}")
        console.print(np.array2string(value, threshold=40, precision=5), markup=False)
    elif isinstance(value, list) and not (value and isinstance(value[0], dict)):
        for k, item in enumerate(value):
            show_value(f"{name}\\[{k}]", item)
    else:
        console.print(f"[bold]{name}[/bold]")
        console.print(value, markup=False)


@main.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False))
@shape_option
@click.option("--target", default="native", show_default=True, help="Tells what compiles for it; for a GPU, which CUDA compiler is found.")
@json_option
def check(model, shapes, target, as_json) -> None:
    """Lists what is unsupported in MODEL, and what Python would run of it, without compiling it."""
    from tcompile.ir.onnx_host import check_program

    problems, host_calls = check_program(model, parse_shapes(shapes))
    compiler = {} if target == "native" else {"compiler": tcompile.check_target(target)}
    if as_json:
        rows = [vars(problem) for problem in problems]
        click.echo(json.dumps({"supported": not problems, "problems": rows, "host_calls": host_calls, **compiler}, default=str))
    elif not problems:
        click.echo("\n".join((f"{model}: everything is supported", *(f"runs in Python: {call}" for call in host_calls))))
        for name in compiler.values():
            click.echo(f"{target}: compiled by {name}")
    else:
        table = Table("node", "op", "opset", "dtype", "reason", "hint", title=f"{len(problems)} problems in {model}")
        for p in problems:
            table.add_row(p.node, f"{p.domain}.{p.op}" if p.domain else p.op, str(p.opset), str(p.dtype), p.reason, p.hint)
        console.print(table)
    sys.exit(UNSUPPORTED if problems else 0)


@main.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False))
@shape_option
@size_option
@click.option("--input", "inputs", multiple=True, metavar="NAME=FILE", help="An input; random where not given.")
@threads_option
@click.option("--target", default="native", show_default=True, help="What to compile for.")
@device_option
@winograd_option
@precision_option
@json_option
def verify(model, shapes, sizes, inputs, threads, target, device, no_winograd, precision, as_json) -> None:
    """Compares compiled outputs of MODEL (.onnx) with the float64 interpreter, and ONNX Runtime where it is installed."""
    from tcompile.verify import verify_model

    given = {name: read_array(path) for name, path in parse_pairs(inputs, "--input").items()}
    symbols = parse_sizes(sizes)
    with progress_bars(quiet=as_json) as progress:
        options = {"target": target, "threads": threads, "device": device, "winograd": not no_winograd, "precision": precision}
        rows = verify_model(model, parse_shapes(shapes), symbols, given, progress=progress, **options)
    if as_json:
        click.echo(json.dumps({"agrees": all(row.agrees for row in rows), "outputs": [vars(row) | {"agrees": row.agrees} for row in rows]}))
    else:
        table = Table("output", "largest value", "error", "ONNX Runtime's error", "agrees")
        for row in rows:
            peer = "-" if row.peer_error is None else f"{row.peer_error:.3g}"
            table.add_row(row.output, f"{row.largest:.3g}", f"{row.error:.3g}", peer, "yes" if row.agrees else "NO")
        console.print(table)
    sys.exit(0 if all(row.agrees for row in rows) else WRONG_ANSWER)


@main.command()
@click.argument("artifact", type=click.Path(exists=True, dir_okay=False))
@click.option("--kernels", is_flag=True, help="List every kernel call; for a GPU, every kernel with its launch and resources too.")
@click.option("--source", is_flag=True, help="Print the CUDA C of an artifact for a GPU, and nothing else.")
@json_option
def inspect(artifact, kernels, source, as_json) -> None:
    """Shows an ARTIFACT's signature, target, kernels, peak memory, and what a run may need beyond it. Needs no GPU."""
    from tcompile.runtime.inspect import cuda_source, describe

    if source:
        click.echo(cuda_source(artifact))
        return
    report = open_model(artifact).report() if artifact.endswith(".onnx") else describe(artifact)
    if as_json:
        click.echo(json.dumps(report))
        return
    show_artifact(report, console)
    if kernels:
        show_calls(report["calls"], console)
        show_kernels(report.get("kernels", ()), console)


@main.command(name="package")
@click.argument("artifact", type=click.Path(exists=True, dir_okay=False))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The new folder; ARTIFACT without .tcm by default.")
@click.option("--name", help="The C identifier of library and functions; made of the model's name by default.")
@click.option("--target", default="native", show_default=True, help="What to compile an .onnx file for.")
@shape_option
def package_command(artifact, output, name, target, shapes) -> None:
    """Makes a C project of an ARTIFACT (or an .onnx file): model, runtime source, header, example and CMake file."""
    folder = output or Path(artifact).with_suffix("")
    if artifact.endswith(".onnx"):
        from tcompile.pipeline import compile_artifact

        with progress_bars(quiet=False) as progress:
            artifact = compile_artifact(artifact, target, parse_shapes(shapes), progress=progress)
    click.echo(f"{tcompile.package(artifact, folder, name)}: cmake -B build && cmake --build build")


@main.command()
@threads_option
def demo(threads) -> None:
    """Compiles and runs the digits classifier that ships with the package; prints predictions and accuracy."""
    folder = Path(__file__).with_name("demo")
    with progress_bars(quiet=False) as progress:
        executable = tcompile.compile(folder / "digits.onnx", threads=threads, progress=progress)
    with np.load(folder / "digits.npz") as data:
        images, labels = data["images"], data["labels"]
    (probabilities,) = executable.run({"images": images}).values()
    predicted = probabilities.argmax(1)
    for k in range(4):
        show_digit(images[k])
        console.print(f"predicted {predicted[k]} with probability {probabilities[k].max():.3f}; it is {labels[k]}\n")
    console.print(f"accuracy {np.mean(predicted == labels):.1%} on {len(labels)} held-out images")


def show_digit(image: np.ndarray) -> None:
    """An 8x8 image of values 0..16 as characters."""
    for row in image:
        console.print("  " + "".join(" .:+*#@@"[min(value // 2, 7)] * 2 for value in row), markup=False)
