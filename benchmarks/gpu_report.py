"""What is known of a GPU model without a GPU: registers, spills, shared memory and occupancy of each kernel by the CUDA compiler, and
by the static model (``codegen/cuda_model.py``) the bytes it moves, beside those it must, and the least time of the target's data sheet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tcompile.codegen.cuda_artifact import CudaBuild
from tcompile.codegen.cuda_model import kernel_model, limit
from tcompile.ir.loops import Kernel
from tcompile.ir.loops_evaluate import compile_dim
from tcompile.ir.program import Call, Program
from tcompile.ir.program_text import program_kernels, walk
from tcompile.ir.target import GpuTarget

if TYPE_CHECKING:  # not on every machine that times kernels
    from rich.console import Console

Row = dict[str, Any]


def kernel_rows(program: Program, build: CudaBuild, target: GpuTarget, sizes: Mapping[str, int]) -> list[Row]:
    """One row for each kernel: ``launches``, and for all of them together ``bytes`` that it moves, the ``minimum`` it must, ``flops`` and
    ``least_us``; None where symbols beyond ``sizes`` decide. Besides what the CUDA compiler says.
    """
    facts = {kernel["name"]: kernel["facts"] for kernel in build.plan["kernels"]}
    rows = {kernel: _row(kernel, facts[kernel.name]) for kernel in program_kernels(program)}
    for call in walk(program.body):
        if isinstance(call, Call):
            _add(rows[call.kernel], call, target, sizes)
    return list(rows.values())


def _row(kernel: Kernel, facts: Mapping[str, Any]) -> Row:
    record = {str(key): str(value) for key, value in sorted(kernel.tags.items())}
    return {"kernel": kernel.name, "launches": 0, "bytes": 0.0, "minimum": 0.0, "flops": 0, "least_us": 0.0, **facts, "record": record}


def _add(row: Row, call: Call, target: GpuTarget, sizes: Mapping[str, int]) -> None:
    row["launches"] += 1
    try:
        values = {name: int(compile_dim(expr)(sizes)) for name, expr in zip(call.kernel.dims, call.dims, strict=True)}
    except KeyError:  # a size that only a run knows
        row.update(bytes=None, minimum=None, flops=None, least_us=None)
        return
    model = kernel_model(call.kernel, values, target, row.get("registers", 0))
    row["threads"] = f"{model.blocks}x{model.threads}"
    if row["bytes"] is not None:
        for name, amount in (("bytes", model.moved), ("minimum", model.minimum), ("flops", model.flops), ("least_us", 1e6 * model.seconds)):
            row[name] += amount


def wasteful(row: Row) -> bool:
    """Whether a kernel moves more than its kind may: twice the minimum for products and convolutions, 1.2 times for others."""
    return bool(row["minimum"]) and row["bytes"] > limit(row["kernel"]) * row["minimum"]


def totals(rows: Sequence[Row]) -> Row:
    """The sums of a model, and the kernels that spill or move too much."""
    known = [row for row in rows if row["bytes"] is not None]
    sums = {name: round(sum(row[name] for row in known), 2) for name in ("bytes", "minimum", "flops", "least_us")}
    return {
        "kernels": len(rows),
        "launches": sum(row["launches"] for row in rows),
        **sums,
        "registers": max((row.get("registers", 0) for row in rows), default=0),
        "spilling": [row["kernel"] for row in rows if row.get("spill")],
        "wasteful": [row["kernel"] for row in known if wasteful(row)],
    }


def show_rows(title: str, rows: Sequence[Row], console: Console) -> None:
    """A table of kernels, those that take longest by the model first."""
    from rich.table import Table

    heads = (
        "kernel",
        "launches",
        "MB",
        "x min",
        "MFLOP",
        "least us",
        "blocks x threads",
        "regs",
        "spill",
        "shared",
        "occupancy",
        "schedule",
    )
    table = Table(*heads, title=title)
    for column in table.columns[1:11]:
        column.justify = "right"
    for row in sorted(rows, key=lambda row: -(row["least_us"] or 0.0)):
        ratio = row["bytes"] / row["minimum"] if row["minimum"] else None
        sizes = [_number(row["bytes"], 1e-6), _number(ratio, 1.0), _number(row["flops"], 1e-6), _number(row["least_us"], 1.0)]
        facts = [str(row.get(name, "-")) for name in ("threads", "registers", "spill", "shared")]
        share = "-" if "occupancy" not in row else f"{row['occupancy']:.0%}"
        schedule = " ".join(f"{key}={value}" for key, value in row["record"].items())
        table.add_row(row["kernel"], str(row["launches"]), *sizes, *facts, share, schedule)
    console.print(table)


def _number(value: float | None, factor: float) -> str:
    return "?" if value is None else f"{value * factor:.2f}"
