"""Times compiled models against peers, and writes what it finds: a table, and JSON that grows with each model."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tcompile.benchmarks.cases import Case, Ready, compiler_digest, default_folder, prepare
from tcompile.benchmarks.engine import Engine
from tcompile.benchmarks.machine import Limits, limits
from tcompile.benchmarks.rounds import OURS, Times, best_ratio, geometric_mean, take_turns
from tcompile.errors import Error, InputError

SECONDS = 4.0  # of measuring one model with one number of threads
SLOWER = 0.97  # a lower bound below this is a model that may be slower than the best peer
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How to measure. ``clock``: ``wall``, or ``cpu``: CPU time of all of an engine's threads, for one thread on a busy machine.

    ``seconds``: for all turns of one model and one number of threads. ``resume``: rows of an earlier JSON file of the same
    compiler and clock are kept. ``cold``: compiles anew without the kernel cache, to time it.
    """

    peers: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1,)
    clock: str = "wall"
    seconds: float = SECONDS
    json: Path | None = None
    resume: bool = False
    cold: bool = False
    folder: Path = field(default_factory=default_folder)

    def __post_init__(self) -> None:
        if self.clock == "cpu" and self.threads != (1,):
            raise InputError("CPU time compares engines with one thread only: idle threads spin", hint="--threads 1")


def bench(cases: Iterable[Case], settings: Settings, report: Callable[[str], None] = lambda text: None) -> Row:
    """Times all cases. The result is what the JSON file holds; it is written after each model.

    ``models``: a row for each model and number of threads (``bench_case``); ``failed``: models that do not compile, with the
    reason; ``machine``: measured limits by number of threads; ``geometric_mean`` by number of threads.
    """
    found = _earlier(settings) or {"clock": settings.clock, "compiler": compiler_digest(), "machine": {}, "models": [], "failed": {}}
    machines = {threads: limits(threads) for threads in settings.threads}
    found["machine"] = {str(threads): machine.report() for threads, machine in machines.items()}
    done = {(row["model"], row["threads"]) for row in found["models"]}
    for case in cases:
        wanted = [threads for threads in settings.threads if (case.name, threads) not in done]
        try:
            for row in bench_case(case, wanted, settings, machines):
                found["models"].append(row)
                report(_line(row))
            found["failed"].pop(case.name, None)
        except Error as error:
            found["failed"][case.name] = str(error)
            report(f"{case.name}: {error}")
        found |= summary(found["models"])
        if settings.json:
            _write(settings.json, found)
    return found


def _earlier(settings: Settings) -> Row | None:
    """The rows of an interrupted benchmark."""
    if not (settings.resume and settings.json and settings.json.exists()):
        return None
    found = json.loads(settings.json.read_text())
    return found if (found["clock"], found["compiler"]) == (settings.clock, compiler_digest()) else None


def _write(path: Path, found: Row) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(found, indent=1))
    os.replace(temporary, path)


def bench_case(case: Case, threads: Sequence[int], settings: Settings, machines: dict[int, Limits]) -> Iterable[Row]:
    """One row for each number of threads."""
    if not threads:
        return
    ready = prepare(case, settings.folder, cold=settings.cold)
    for count in threads:
        times, facts = measure(case, ready, count, settings)
        yield row(case.name, count, times, ready, machines[count]) | facts


def measure(case: Case, ready: Ready, threads: int, settings: Settings) -> tuple[Times, Row]:
    """All engines' times, and what they say of loading and memory; a peer that refuses the model is left out, its reason told."""
    engines = {name: Engine(name, threads) for name in (OURS, *settings.peers)}
    facts: Row = {}
    try:
        for name, engine in list(engines.items()):
            try:
                loaded = engine.load(ready.artifact if name == OURS else case.path, ready.inputs)
                facts |= {f"{name}_{key}": round(value, 3) for key, value in loaded.items()}
            except Error as error:
                if name == OURS:
                    raise
                facts[f"{name}_error"] = str(error)
                engines.pop(name).close()
        times = take_turns(engines, settings.seconds, settings.clock)
        for name, engine in engines.items():
            facts |= {f"{name}_{key}": value for key, value in engine.memory().items()}
        return times, facts
    finally:
        for engine in engines.values():
            engine.close()


def row(model: str, threads: int, times: Times, ready: Ready, machine: Limits) -> Row:
    """The stable keys of a result.

    ``*_ms``: medians; ``*_min_ms``: the least; ``*_spread``: the quartiles' distance over the median. ``limit_ms``: the
    model's convolution and matrix operations as written, over the measured peak; ``memory_ms``: its weights over the
    bandwidth. ``ratio_to_best_peer`` with ``ratio_lower_95``: paired by rounds.
    """
    found: Row = {"model": model, "threads": threads, "rounds": times.rounds}
    for name, samples in times.samples.items():
        found |= {f"{name}_ms": statistics.median(samples), f"{name}_min_ms": min(samples), f"{name}_spread": _spread(samples)}
    ratio = best_ratio(times)
    found |= {"ratio_to_best_peer": ratio and ratio[0], "ratio_lower_95": ratio and ratio[1]}
    found |= {"limit_ms": 1e3 * ready.flops / machine.flops, "memory_ms": 1e3 * ready.weights_bytes / machine.memory}
    facts = {key: value for key, value in asdict(ready).items() if key not in ("artifact", "inputs")}
    return found | facts


def _spread(samples: Sequence[float]) -> float:
    if len(samples) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4)
    return (high - low) / middle


def summary(rows: Sequence[Row]) -> Row:
    """``geometric_mean`` of the ratios by number of threads, and ``slower``: models whose lower bound is below 0.97."""
    by_threads: dict[str, list[float]] = {}
    for one in rows:
        if one["ratio_to_best_peer"]:
            by_threads.setdefault(str(one["threads"]), []).append(one["ratio_to_best_peer"])
    slower = [[one["model"], one["threads"]] for one in rows if one["ratio_lower_95"] and one["ratio_lower_95"] < SLOWER]
    return {"geometric_mean": {threads: geometric_mean(ratios) for threads, ratios in by_threads.items()}, "slower": slower}


def _line(one: Row) -> str:
    ratio = "" if one["ratio_to_best_peer"] is None else f", best peer / ours {one['ratio_to_best_peer']:.2f} ({one['ratio_lower_95']:.2f})"
    return f"{one['model']}, {one['threads']} threads: {one['tcompile_ms']:.3f} ms{ratio}"


def show(found: Row, peers: Sequence[str], console: Console) -> None:
    """The table, and the geometric mean."""
    clock = "CPU time of all threads" if found["clock"] == "cpu" else "wall clock"
    names = [OURS, *peers]
    table = Table("model", "threads", *(f"{name} ms" for name in names), "limit ms", "best peer / ours", "at least (95%)", "±", title=clock)
    for column in table.columns[1:]:
        column.justify = "right"
    for one in sorted(found["models"], key=lambda one: (one["threads"], one["model"])):
        times = [_number(one.get(f"{name}_ms")) for name in names]
        ratio = [_number(one["ratio_to_best_peer"], 2), _number(one["ratio_lower_95"], 2)]
        table.add_row(one["model"], str(one["threads"]), *times, _number(one["limit_ms"]), *ratio, f"{one['tcompile_spread']:.0%}")
    console.print(table)
    for threads, machine in found["machine"].items():
        memory = list(machine["read_gbs_by_bytes"].values())[-1]
        mean = found.get("geometric_mean", {}).get(threads)
        text = "" if mean is None else f"; geometric mean of best peer / ours: {mean:.3f}"
        console.print(f"{threads} threads: peak {machine['peak_gflops']} GFLOP/s, {memory} GB/s from memory{text}")
    for model, threads in found.get("slower", ()):
        console.print(f"may be slower than the best peer: {model} with {threads} threads")
    for model, reason in found["failed"].items():
        console.print(f"{model} failed: {reason}", markup=False)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def show_costs(found: Row, peers: Sequence[str], console: Console) -> None:
    """What a model costs besides its runs: compiling, artifact, loading, memory."""
    names = [OURS, *peers]
    heads = [f"{name} load ms" for name in names] + [f"{name} peak MB" for name in names]
    table = Table("model", "threads", "compile s", "CPU s", "artifact MB", *heads)
    for column in table.columns[1:]:
        column.justify = "right"
    for one in sorted(found["models"], key=lambda one: (one["threads"], one["model"])):
        cells = [_number(one.get(f"{name}_load_ms"), 1) for name in names] + [_number(one.get(f"{name}_peak_rss_mb"), 0) for name in names]
        sizes = [_number(one["compile_s"], 1), _number(one["compile_cpu_s"], 1), _number(one["artifact_bytes"] / 1e6, 1)]
        table.add_row(one["model"], str(one["threads"]), *sizes, *cells)
    console.print(table)
