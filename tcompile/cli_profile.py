"""``tcompile profile``: where the time of a run goes, against the machine's limits, the cost model and a peer."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from tcompile.cli_options import device_option, input_option, json_option, open_model, read_inputs, size_option, threads_option
from tcompile.errors import InputError
from tcompile.runtime import CallProfile, Executable, Profile

if TYPE_CHECKING:
    from tcompile.benchmarks.gaps import Group
    from tcompile.benchmarks.machine import Limits

_NODES = 60  # characters of node names in a row
console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)


@click.command()
@click.argument("artifact", type=click.Path(exists=True, dir_okay=False))
@input_option
@size_option
@click.option("--runs", type=click.IntRange(1), default=10, show_default=True, help="How many runs to measure.")
@click.option("--top", type=click.IntRange(1), default=30, show_default=True, help="How many rows to list.")
@click.option("--peer", type=click.Choice(["onnxruntime", "openvino"]), help="Show a peer's times of the same ONNX nodes.")
@click.option(
    "--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True, help="cpu: threads' own time, on a busy machine."
)
@click.option("--model", type=click.Path(exists=True, dir_okay=False), help="The ONNX file of ARTIFACT, for the peer.")
@threads_option
@device_option
@json_option
def profile(artifact, inputs, sizes, runs, top, peer, clock, model, threads, device, as_json) -> None:
    """Shows where the time of a run of an ARTIFACT (or an .onnx file) goes: kernels with the ONNX nodes they compute.

    Beside each time stand the share of the roofline (the least time that the machine's measured multiply-add rate and
    bandwidth allow; on a GPU those of its data sheet) and the time that the cost model expects. Other inputs than those given
    are random.
    """
    from tcompile.benchmarks.machine import gpu_limits, limits

    model = model or (artifact if artifact.endswith(".onnx") else None)
    if peer and model is None:
        raise InputError(f"{peer} needs the ONNX file", hint="--model model.onnx")
    executable = open_model(artifact, threads, device)
    arrays = read_inputs(executable, inputs, sizes, rest=True)
    machine = gpu_limits(executable.target) if executable.target.startswith("cuda-") else limits(executable.threads)
    measured = _measured(executable, arrays, runs, clock)
    groups = _groups(measured, peer, model, arrays, executable.threads, runs) if peer else []
    if as_json:
        report = {"seconds": measured.seconds, "fastest": measured.fastest, "threads": executable.threads, "machine": machine.report()}
        report["calls"] = [call_row(call, machine) for call in _longest(measured)]
        click.echo(json.dumps(report | ({"peer": peer, "groups": [group_row(group) for group in groups]} if peer else {})))
        return
    show_profile(measured, machine, top)
    if peer:
        show_gaps(groups, peer, top)


def _measured(executable: Any, arrays: dict, runs: int, clock: str) -> Profile:
    if clock == "wall":
        return executable.profile(arrays, runs=runs)
    if not isinstance(executable, Executable):
        raise InputError("only models that run on the CPU alone have a profile of CPU time", hint="leave --clock out")
    return executable.profile(arrays, runs=runs, clock=clock)


def _groups(measured: Profile, peer: str, model: str, arrays: dict, threads: int, runs: int) -> Sequence[Group]:
    from tcompile.benchmarks.gaps import join
    from tcompile.benchmarks.peer_times import peer_operations

    return join(measured.calls, peer_operations(peer, model, arrays, threads, runs))


def _longest(measured: Profile) -> list[CallProfile]:
    """The calls that ran, the longest first."""
    return sorted((call for call in measured.calls if call.turns), key=lambda call: -call.seconds)


def call_row(call: CallProfile, machine: Limits) -> dict[str, Any]:
    """One call as JSON holds it. Rates are of the fastest run.

    ``gflops``: 10^9 operations a second; ``gbs``: 10^9 bytes of tensors a second; ``roofline``: the least time that the
    machine allows over the time; ``predicted``: seconds that the cost model expects, None where only a run knows; ``speedup``: what
    the parts allow that threads shared, None where one thread did all.
    """
    time, least = call.fastest, _least(call, machine)
    return {
        "kernel": call.kernel,
        "nodes": list(call.nodes),
        "seconds": call.seconds,
        "fastest": time,
        "turns": call.turns,
        "gflops": call.flops / time / 1e9 if call.flops and time else None,
        "gbs": call.bytes / time / 1e9 if call.bytes and time else None,
        "roofline": least / time if least and time else None,
        "predicted": predicted(call, machine),
        "speedup": call.busy / call.span if call.span else None,
        "record": dict(call.record),
    }


def predicted(call: CallProfile, machine: Limits) -> float | None:
    """Seconds that the cost model expects: its cycles, by the threads where they shared the kernel, or the bytes' way."""
    if not call.cycles:
        return None
    share = machine.threads if call.span else 1
    moved = _per_turn(call.bytes, call) / machine.read_rate(_per_turn(call.bytes, call)) * call.turns if call.bytes else 0.0
    return max(call.cycles / machine.cycle_rate / share, moved)


def _least(call: CallProfile, machine: Limits) -> float:
    """Seconds of the roofline."""
    return machine.least_seconds(_per_turn(call.flops, call), _per_turn(call.bytes, call)) * call.turns


def _per_turn(amount: float | None, call: CallProfile) -> float:
    return (amount or 0.0) / call.turns


def show_profile(measured: Profile, machine: Limits, top: int) -> None:
    """The table of calls, and the sums."""
    rows = [call_row(call, machine) for call in _longest(measured)]
    inside = sum(row["seconds"] for row in rows)
    table = Table("ms", "%", "GFLOP/s", "GB/s", "of limit", "model ms", "split", "turns", "kernel", "schedule", "ONNX nodes")
    for column in table.columns[:8]:
        column.justify = "right"
    for row in rows[:top]:
        share = 100 * row["seconds"] / inside if inside else 0
        numbers = [f"{1e3 * row['seconds']:.3f}", f"{share:.1f}", _text(row["gflops"], ".1f"), _text(row["gbs"], ".1f")]
        numbers += [_text(row["roofline"], ".0%"), _text(row["predicted"], ".3f", 1e3), _text(row["speedup"], ".2f")]
        table.add_row(*numbers, f"{row['turns']:g}", row["kernel"], _schedule(row["record"]), _nodes(row["nodes"]))
    console.print(table)
    if len(rows) > top:
        console.print(f"and {len(rows) - top} more calls, {1e3 * sum(row['seconds'] for row in rows[top:]):.3f} ms")
    flops = sum(call.flops or 0 for call in measured.calls)
    rate = f", {flops / measured.seconds / 1e9:.1f} GFLOP/s" if flops else ""
    rate += "; loops that run at once count each" if inside > measured.seconds else ""
    console.print(
        f"a run takes {1e3 * measured.seconds:.3f} ms (fastest {1e3 * measured.fastest:.3f}), {1e3 * inside:.3f} ms of it in kernels{rate}"
    )
    console.print(f"limits with {machine.threads} threads: {machine.flops / 1e9:.0f} GFLOP/s, {machine.memory / 1e9:.0f} GB/s from memory")


def group_row(group: Group) -> dict[str, Any]:
    """A group of ``benchmarks/gaps.py`` as JSON holds it; seconds are the least over the runs."""
    return {
        "kernels": [call.kernel for call in group.calls],
        "peer": [op.kind for op in group.operations],
        "seconds": group.ours,
        "peer_seconds": group.theirs,
        "gap": group.gap,
        "nodes": group.nodes,
    }


def show_gaps(groups: Sequence[Group], peer: str, top: int) -> None:
    """Ours beside the peer's, the biggest gap first."""
    table = Table("ours ms", "theirs ms", "gap ms", "kernels", peer, "ONNX nodes", title=f"the same nodes here and in {peer}, fastest runs")
    for column in table.columns[:3]:
        column.justify = "right"
    for group in groups[:top]:
        times = (f"{1e3 * seconds:.3f}" for seconds in (group.ours, group.theirs, group.gap))
        kernels = _several([call.kernel for call in group.calls])
        table.add_row(*times, kernels, _several([op.kind for op in group.operations]), _nodes(group.nodes))
    console.print(table)
    ours, theirs = sum(group.ours for group in groups), sum(group.theirs for group in groups)
    console.print(f"in kernels: {1e3 * ours:.3f} ms here, {1e3 * theirs:.3f} ms in {peer}")
    if groups and groups[0].gap > 0:
        worst = groups[0]
        console.print(f"the biggest gap: {worst.name}, {1e3 * worst.gap:.3f} ms behind {peer}, of {_nodes(worst.nodes)}")


def _text(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else format(value * factor, form)


def _schedule(record: dict[str, str]) -> str:
    return " ".join(value if key == "template" else f"{key}={value}" for key, value in sorted(record.items(), reverse=True))


def _nodes(names: Sequence[str]) -> str:
    text = ", ".join(names)
    return text if len(text) <= _NODES else f"{text[:_NODES]}... ({len(names)})"


def _several(names: Sequence[str]) -> str:
    """Names with how often they come: ``conv_a, 3x add_b``."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    listed = [name if count == 1 else f"{count}x {name}" for name, count in counts.items()]
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
