"""``tcompile bench-op``: one operation against peers and the machine's limits."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from tcompile.cli_bench import PEERS, thread_counts
from tcompile.cli_options import json_option

if TYPE_CHECKING:
    from tcompile.benchmarks.machine import Limits

console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
NAMES = (
    *("attention", "conv1d", "conv2d", "conv_transpose2d", "depthwise", "elementwise", "gelu", "layernorm", "lstm", "matmul"),
    *("pool", "reduce", "resize", "softmax", "transpose"),
)


def extents(_: object, __: object, text: str | None) -> tuple[int, ...] | None:
    """``1,64,56,56`` -> (1, 64, 56, 56)."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no list of numbers") from error


@click.command(name="bench-op")
@click.argument("operation", type=click.Choice(NAMES))
@click.option("--shape", required=True, callback=extents, help="The input, as 1,64,56,56.")
@click.option("--channels", type=int, help="Output channels of a convolution, columns of a product, hidden size of an LSTM.")
@click.option("--kernel", default="3", callback=extents, show_default=True, help="The window: 3 or 3,5.")
@click.option("--stride", type=int, default=1, show_default=True, help="Of the window; the scale of resize.")
@click.option("--dilation", type=int, default=1, show_default=True)
@click.option("--groups", type=int, default=1, show_default=True)
@click.option("--pad", type=int, help="On each side; by default what keeps the size at stride 1.")
@click.option("--other", callback=extents, help="The second operand's shape (matmul, elementwise).")
@click.option("--activations", is_flag=True, help="The second operand of matmul is an input, no weight.")
@click.option("--function", help="The ONNX operator of elementwise, reduce or pool; the mode of resize.")
@click.option("--axes", default="-1", callback=extents, show_default=True, help="Of softmax and reduce.")
@click.option("--perm", callback=extents, help="Of transpose; reversed by default.")
@click.option("--device", type=click.Choice(["cpu"]), default="cpu", show_default=True)
@click.option("--peer", "peers", multiple=True, type=click.Choice(PEERS), help="Compare with it; may be repeated.")
@click.option("--threads", default="1", show_default=True, callback=thread_counts, help="Numbers of threads, as 1,2.")
@click.option("--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True, help="cpu: CPU time, on a busy machine.")
@click.option("--seconds", type=float, default=2.0, show_default=True, help="Time to measure with one number of threads.")
@json_option
def bench_op(operation, device, peers, threads, clock, seconds, activations, as_json, **asked) -> None:
    """Times one OPERATION on float32, alone in a model: GFLOP/s, GB/s, and the share of the machine's limit.

    \b
    tcompile bench-op conv2d --shape 1,64,56,56 --channels 128 --kernel 3 --peer onnxruntime
    tcompile bench-op matmul --shape 128,768 --channels 3072
    tcompile bench-op elementwise --shape 1,3136,64 --function Tanh
    """
    import onnx

    from tcompile.benchmarks.cases import Case
    from tcompile.benchmarks.machine import limits
    from tcompile.benchmarks.single_ops import Ask, build
    from tcompile.benchmarks.speed import Settings, bench_case

    given = {name: value for name, value in asked.items() if value is not None}
    model = build(operation, Ask(constant=not activations, **given))
    machines = {count: limits(count) for count in threads}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{operation}.onnx"
        onnx.save(model, path)
        settings = Settings(peers, threads, clock, seconds, folder=Path(folder) / "cases")
        rows = list(bench_case(Case(operation, path), threads, settings, machines))
    moved = moved_bytes(model)
    report = [one for row in rows for one in engine_rows(row, moved, machines[row["threads"]], ("tcompile", *peers))]
    if as_json:
        click.echo(json.dumps({"operation": operation, "device": device, "clock": clock, "bytes": moved, "rows": report}))
    else:
        _show(report, clock)


def moved_bytes(model: Any) -> int:
    """Bytes of the model's inputs, weights and output, each once."""
    graph = model.graph
    shapes = [[dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in (*graph.input, *graph.output)]
    return sum(4 * math.prod(shape) for shape in shapes) + sum(len(tensor.raw_data) for tensor in graph.initializer)


def engine_rows(row: dict[str, Any], moved: int, machine: Limits, engines: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row an engine. ``gflops`` of convolutions and products, ``gbs`` of all tensors once, ``limit``: the roofline over the time."""
    found = []
    for name in engines:
        if f"{name}_ms" not in row:
            found.append({"engine": name, "threads": row["threads"], "error": row.get(f"{name}_error")})
            continue
        seconds = row[f"{name}_ms"] / 1e3
        one = {"engine": name, "threads": row["threads"], "ms": row[f"{name}_ms"], "spread": row[f"{name}_spread"]}
        one |= {"gflops": row["flops"] / seconds / 1e9 if row["flops"] else None, "gbs": moved / seconds / 1e9}
        one["limit"] = machine.least_seconds(row["flops"], moved) / seconds
        if name == "tcompile":
            one |= {key: row[key] for key in ("ratio_to_best_peer", "ratio_lower_95")}
        found.append(one)
    return found


def _show(rows: list[dict[str, Any]], clock: str) -> None:
    title = "CPU time of all threads" if clock == "cpu" else "wall clock"
    table = Table("engine", "threads", "ms", "±", "GFLOP/s", "GB/s", "of limit", "best peer / ours", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for one in rows:
        if "error" in one:
            table.add_row(one["engine"], str(one["threads"]), "-", "", "", "", "", str(one["error"]))
            continue
        rate = "-" if one["gflops"] is None else f"{one['gflops']:.1f}"
        ratio = one.get("ratio_to_best_peer")
        text = "" if ratio is None else f"{ratio:.2f} (at least {one['ratio_lower_95']:.2f})"
        cells = (f"{one['ms']:.4f}", f"{one['spread']:.0%}", rate, f"{one['gbs']:.1f}", f"{one['limit']:.0%}", text)
        table.add_row(one["engine"], str(one["threads"]), *cells)
    console.print(table)
