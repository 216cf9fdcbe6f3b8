"""What is known of a GPU model without a GPU: registers, spills, shared memory and occupancy of each kernel by the CUDA compiler, and
for each launch bytes, operations and the least time that the target's data sheet allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tcompile.codegen.cuda_artifact import CudaBuild
from tcompile.ir.program import Call, Program
from tcompile.ir.program_text import walk
from tcompile.ir.target import GpuTarget
from tcompile.runtime.cuda_expressions import read_expression

Row = dict[str, Any]


def kernel_rows(program: Program, build: CudaBuild, target: GpuTarget, sizes: Mapping[str, int]) -> list[Row]:
    """One row for each kernel: how often it is launched, and for all launches together ``bytes`` (each tensor counted once a launch),
    ``flops`` and ``least_us``, the roofline; None where symbols beyond ``sizes`` decide. Besides what the plan's facts hold.
    """
    rows = {
        kernel["name"]: {"kernel": kernel["name"], "launches": 0, "bytes": 0, "flops": 0, "least_us": 0.0}
        for kernel in build.plan["kernels"]
    }
    facts = {kernel["name"]: kernel for kernel in build.plan["kernels"]}
    for call in walk(program.body):
        if isinstance(call, Call):
            _add(rows[call.kernel.name], facts[call.kernel.name], call, target, sizes)
    for name, row in rows.items():
        row |= {"block": facts[name]["block"], **facts[name]["facts"], "record": facts[name]["record"]}
    return list(rows.values())


def _add(row: Row, kernel: Mapping[str, Any], call: Call, target: GpuTarget, sizes: Mapping[str, int]) -> None:
    from tcompile.ir.loops_evaluate import compile_dim

    row["launches"] += 1
    try:
        values = {name: int(compile_dim(expr)(sizes)) for name, expr in zip(kernel["dims"], call.dims, strict=True)}
    except KeyError:  # a size that only a run knows
        row.update(bytes=None, flops=None, least_us=None)
        return
    moved, flops = (read_expression(kernel[what], set(values)).value(values) for what in ("bytes", "flops"))
    if row["bytes"] is not None:
        row["bytes"] += moved
        row["flops"] += flops
        row["least_us"] += 1e6 * max(moved / target.bandwidth, flops / target.f32_flops)


def totals(rows: Sequence[Row]) -> Row:
    """The sums of a model, and its worst kernel in registers and spills."""
    known = [row for row in rows if row["bytes"] is not None]
    return {
        "kernels": len(rows),
        "launches": sum(row["launches"] for row in rows),
        "bytes": sum(row["bytes"] for row in known),
        "flops": sum(row["flops"] for row in known),
        "least_us": round(sum(row["least_us"] for row in known), 2),
        "registers": max((row.get("registers", 0) for row in rows), default=0),
        "spilling": [row["kernel"] for row in rows if row.get("spill")],
        "low_occupancy": [row["kernel"] for row in rows if row.get("occupancy", 1.0) < 0.25],
    }


def show_rows(title: str, rows: Sequence[Row], console: Console) -> None:
    """A table of kernels, those that take longest by the model first."""
    table = Table("kernel", "launches", "MB", "MFLOP", "least us", "block", "regs", "spill", "shared", "occupancy", "schedule", title=title)
    for column in table.columns[1:10]:
        column.justify = "right"
    for row in sorted(rows, key=lambda row: -(row["least_us"] or 0.0)):
        sizes = [_number(row["bytes"], 1e-6), _number(row["flops"], 1e-6), _number(row["least_us"], 1.0)]
        facts = [str(row.get(name, "-")) for name in ("registers", "spill", "shared")]
        share = "-" if "occupancy" not in row else f"{row['occupancy']:.0%}"
        schedule = " ".join(f"{key}={value}" for key, value in row["record"].items())
        table.add_row(row["kernel"], str(row["launches"]), *sizes, "x".join(map(str, row["block"])), *facts, share, schedule)
    console.print(table)


def _number(value: float | None, factor: float) -> str:
    return "?" if value is None else f"{value * factor:.2f}"
