"""``tcompile bench``: compiled models against peers, each engine in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from tcompile.cli_options import errors, parse_shapes, parse_sizes, shape_option, size_option

console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
PEERS = ("onnxruntime", "openvino")


def thread_counts(_: object, __: object, text: str) -> tuple[int, ...]:
    """``1,2`` -> (1, 2)."""
    numbers = text.split(",")
    if not all(number.strip().isdigit() and int(number) for number in numbers):
        raise click.BadParameter(f"{text!r} is no list of numbers of threads")
    return tuple(dict.fromkeys(map(int, numbers)))


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--peer", "peers", multiple=True, type=click.Choice(PEERS), help="Compare with it; may be repeated.")
@click.option("--threads", default="1", show_default=True, callback=thread_counts, help="Numbers of threads, as 1,2.")
@click.option(
    "--clock",
    type=click.Choice(["wall", "cpu"]),
    default="wall",
    show_default=True,
    help="cpu: CPU time, for one thread on a busy machine.",
)
@click.option("--seconds", type=float, default=4.0, show_default=True, help="Time to measure one model with one number of threads.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the results here, after each model.")
@click.option("--resume", is_flag=True, help="Keep the rows that the JSON file has of this compiler.")
@click.option("--cold", is_flag=True, help="Compile anew without caches, to time compiling.")
@click.option("--costs", is_flag=True, help="Also show compile times, sizes, load times and memory.")
@size_option
@shape_option
def bench(models, peers, threads, clock, seconds, json_path, resume, cold, costs, sizes, shapes) -> None:
    """Times MODELS (.onnx) on random inputs against peers.

    Engines take turns, each in a process of its own that is stopped between its turns. A model is at least as fast as the best
    peer where the lower 95% bound of the paired ratios is about 1 or more. limit ms: its convolution and matrix operations
    over the machine's measured peak.
    """
    from tcompile.benchmarks.cases import Case
    from tcompile.benchmarks.speed import Settings, show, show_costs
    from tcompile.benchmarks.speed import bench as measure

    cases = [Case(model.stem, model, parse_sizes(sizes), shapes=parse_shapes(shapes)) for model in models]
    settings = Settings(peers, threads, clock, seconds, json_path, resume, cold)
    found = measure(cases, settings, lambda text: errors.print(text, markup=False))
    show(found, peers, console)
    if costs:
        show_costs(found, peers, console)
    sys.exit(1 if found["failed"] else 0)
