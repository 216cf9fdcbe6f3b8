"""What the command line shows to people: sizes, tables, reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

Report = Mapping[str, Any]
_LISTED = 6
ARENA = "arena"  # the note that tells the arena's size as an expression


def size(count: float | None) -> str:
    """Bytes as a person reads them: 999 B, 1.5 kB, 207.7 MB; powers of 1000."""
    if count is None:
        return "depends on the inputs"
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def memory_line(report: Report) -> str:
    """The peak of memory and what it is made of; an arena without a bound as an expression of the inputs' sizes."""
    formula = report["notes"].get(ARENA)
    arena = f"({formula}) B" if report["arena_bytes"] is None and formula else size(report["arena_bytes"])
    total = "" if report["peak_bytes"] is None else f"{size(report['peak_bytes'])}: "
    fixed = f"code {size(report['code_bytes'])}, weights {size(report['weights_bytes'])}"
    if report["arch"].startswith("sm_"):
        return f"{total}{fixed}, arena {arena}, on the device"
    return f"{total}{fixed}, arena {arena}, scratch {size(report['scratch_bytes'])} for each of {report['threads']} threads"


def show_compiled(report: Report, console: Console) -> None:
    """What ``compile`` did."""
    console.print(f"{report['artifact']}  {size(report['bytes'])}", markup=False, soft_wrap=True)
    _rows(
        console,
        ("target", f"{report['target']} ({report['arch']})"),
        ("kernels", f"{report['kernels']}, called {report['calls']} times"),
        ("peak memory", memory_line(report)),
        *_growth(report),
        *_host_calls(report),
        ("time", f"{report['seconds']:.1f} s"),
    )


def show_artifact(report: Report, console: Console) -> None:
    """What ``inspect`` finds."""
    kernels = {call["kernel"] for call in report["calls"]}
    console.print(f"[bold]{report['name']}[/bold]", highlight=False)
    table = Table("", "name", "type", "shape")
    for role in ("inputs", "outputs"):
        for spec in report[role]:
            table.add_row(role[:-1], spec["name"], spec["dtype"], _shape(spec["shape"]))
    console.print(table)
    _rows(
        console,
        *(("symbol", f"{name} in {low}..{'' if high is None else high}") for name, (low, high) in report["symbols"].items()),
        ("target", f"{report['target']} ({report['arch']})"),
        ("features", " ".join(report["features"]) or "none beyond the architecture's"),
        ("kernels", f"{len(kernels)}, called {len(report['calls'])} times"),
        ("peak memory", memory_line(report)),
        *_growth(report),
        *_host_calls(report),
        *_sharing(report),
        *((key, value) for key, value in report["notes"].items() if key != ARENA),
    )


def show_calls(calls: Sequence[Report], console: Console) -> None:
    """Every kernel call of an artifact."""
    table = Table("call", "kernel", "ONNX nodes")
    for number, call in enumerate(calls):
        table.add_row(str(number), call["kernel"], ", ".join(call["nodes"]))
    console.print(table)


def show_kernels(kernels: Sequence[Report], console: Console) -> None:
    """The kernels of an artifact for a GPU: threads of a block, and what the CUDA compiler and the static model tell of each."""
    if not kernels:
        return
    facts = list(dict.fromkeys(key for kernel in kernels for key in kernel if key not in ("name", "block", "record")))
    table = Table("kernel", "block", *(key.replace("_", " ") for key in facts), "schedule")
    for kernel in kernels:
        values = ("" if kernel.get(key) is None else str(kernel[key]) for key in facts)
        schedule = " ".join(f"{key}={value}" for key, value in kernel["record"].items())
        table.add_row(kernel["name"], "x".join(map(str, kernel["block"])), *values, schedule)
    console.print(table)


def _growth(report: Report) -> list[tuple[str, str]]:
    """What a run may need beyond the peak."""
    if not report["growing"]:
        return [("may grow", "nothing")]
    return [("may grow", f"{site['name']} ({', '.join(site['nodes'])})" if site["nodes"] else site["name"]) for site in report["growing"]]


def _host_calls(report: Report) -> list[tuple[str, str]]:
    """What compiled code leaves to Python, and what goes between a GPU and the host for it."""
    rows = [("runs in Python", call) for call in report.get("host_calls", ())]
    rows += [("copied each run", text) for text in report.get("copies", ())]
    return rows + [("read by the host", text) for text in report.get("reads_back", ())]


def _sharing(report: Report) -> list[tuple[str, str]]:
    """The outputs that may take a donated input's place."""
    rows = [("in place", f"{output} over {_some(inputs)}, where donated") for output, inputs in report["shares"].items()]
    return rows[:_LISTED] + ([("in place", f"and {len(rows) - _LISTED} more outputs")] if len(rows) > _LISTED else [])


def _some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _shape(extents: Sequence[Any]) -> str:
    return f"\\[{', '.join(map(str, extents))}]"


def _rows(console: Console, *rows: tuple[str, str]) -> None:
    """Labels and values; a label that repeats is shown once."""
    last = ""
    for label, value in rows:
        console.print(f"  {'' if label == last else label:<16}  {value}", markup=False, highlight=False, soft_wrap=True)
        last = label
