"""Times compiled models against peers: each engine in its own process, taking turns."""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tcompile.accuracy import random_inputs
from tcompile.benchmarks.engine import Engine
from tcompile.benchmarks.model_set import Model

TURNS = 7
TURN_SECONDS = 0.4  # each engine's share of a turn
MAX_RUNS = 200


def bench_model(model: Model, peers: list[str], threads: list[int], folder: Path) -> list[dict]:
    """One row per thread count with medians in ms and the ratio of the best peer's median to ours."""
    from tcompile.ir.onnx_import import import_model
    from tcompile.pipeline import compile_artifact

    start = time.perf_counter()
    artifact = compile_artifact(str(model.path))
    compile_s = time.perf_counter() - start
    paths = {"tcompile": folder / f"{model.name}.tcm"} | dict.fromkeys(peers, model.path)
    paths["tcompile"].write_bytes(artifact)
    inputs = random_inputs(import_model(str(model.path)).inputs, model.inputs.sizes, model.inputs.draws)
    np.savez(folder / "inputs.npz", **inputs)
    rows = []
    for count in threads:
        times, loads = measure(paths, folder / "inputs.npz", count)
        rows.append(row(model.name, count, times) | {"compile_s": compile_s, "artifact_bytes": len(artifact), **loads})
    paths["tcompile"].unlink()
    return rows


def measure(paths: dict[str, Path], inputs: Path, threads: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """All engines' times in ms, in alternating turns, and their load times; an engine that refuses is left out."""
    engines, loads = {}, {}
    for name, path in paths.items():
        try:
            engines[name] = Engine(name, path, inputs, threads)
            loads[f"{name}_load_ms"] = engines[name].ready["load_ms"]
        except RuntimeError as error:
            if name == "tcompile":
                raise
            loads[f"{name}_error"] = str(error)
    times: dict[str, list[float]] = {name: [] for name in engines}
    runs = {name: max(1, min(MAX_RUNS, int(TURN_SECONDS * 1e3 / max(engine.run(3)[-1], 1e-3)))) for name, engine in engines.items()}
    for _ in range(TURNS):
        for name, engine in engines.items():
            times[name] += engine.run(runs[name])
    for engine in engines.values():
        engine.close()
    return times, loads


def row(model: str, threads: int, times: dict[str, list[float]]) -> dict:
    """The stable keys of a result."""
    medians = {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    spread = {f"{name}_min_ms": min(values) for name, values in times.items()}
    peers = [medians[f"{name}_ms"] for name in times if name != "tcompile"]
    ratio = min(peers) / medians["tcompile_ms"] if peers else None
    return {"model": model, "threads": threads, **medians, **spread, "ratio_to_best_peer": ratio}


def print_speed_table(rows: list[dict], peers: list[str]) -> None:
    """A table and the geometric mean of the ratios."""
    names = ["tcompile", *peers]
    table = Table("model", "threads", *(f"{name} ms" for name in names), "best peer / ours")
    for r in rows:
        cells = [f"{r[f'{name}_ms']:.3f}" if f"{name}_ms" in r else "-" for name in names]
        ratio = r["ratio_to_best_peer"]
        table.add_row(r["model"], str(r["threads"]), *cells, f"{ratio:.2f}" if ratio else "-")
    Console().print(table)
    ratios = [r["ratio_to_best_peer"] for r in rows if r["ratio_to_best_peer"]]
    if ratios:
        print(f"geometric mean of best peer / ours: {math.exp(sum(map(math.log, ratios)) / len(ratios)):.3f} over {len(ratios)} rows")
