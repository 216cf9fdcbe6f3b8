"""A model and the inputs that it is timed with, made ready in a process of its own: artifact, inputs, operations.

    python -m tcompile.benchmarks.cases < request.json

Results are kept by content of the model's path, the package's own sources and the request, so that a second benchmark
of an unchanged compiler compiles nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from tcompile.accuracy import Draw
from tcompile.errors import Error

PREPARE_SECONDS = 900
_ROOMS = ("ir", "passes", "codegen", "runtime", "tcompile")


@dataclass(frozen=True)
class Case:
    """A model to time. ``sizes`` of symbolic dimensions and ``draws`` shape random inputs; ``recorded`` is an .npz with others.

    Names in ``recorded`` may begin with ``in.``; arrays that are no inputs are ignored. ``shapes``: as of ``tcompile.compile``.
    """

    name: str
    path: Path
    sizes: Mapping[str, int] = field(default_factory=dict)
    draws: Mapping[str, Draw] = field(default_factory=dict)
    recorded: Path | None = None
    shapes: Mapping[str, Sequence[int | str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Ready:
    """A case made ready. ``flops``: see ``model_flops``; compile times in seconds, of all processes; sizes in bytes."""

    artifact: str
    inputs: str
    flops: int
    weights_bytes: int
    artifact_bytes: int
    compile_s: float
    compile_cpu_s: float
    compile_peak_rss_mb: float
    kernels_cached: bool


def default_folder() -> Path:
    """Where prepared cases are kept."""
    return Path(os.environ.get("TCOMPILE_BENCH_DIR", Path.home() / ".cache" / "tcompile-bench"))


def prepare(case: Case, folder: Path, *, cold: bool = False) -> Ready:
    """Compiles a case, unless this compiler has. ``cold``: compiles anew, without the kernel cache.

    Raises Error where the model is refused, or compiling takes longer than a quarter of an hour.
    """
    folder.mkdir(parents=True, exist_ok=True)
    request = {
        "path": str(Path(case.path).resolve()),
        "sizes": dict(case.sizes),
        "draws": {name: [draw.lo, draw.hi, draw.shape] for name, draw in case.draws.items()},
        "recorded": None if case.recorded is None else str(case.recorded),
        "shapes": {name: list(shape) for name, shape in case.shapes.items()},
    }
    stem = folder / f"{case.name}-{_key(request)}"
    known = stem.with_suffix(".json")
    if known.exists() and not cold:
        return Ready(**json.loads(known.read_text()))
    text = json.dumps(request | {"stem": str(stem), "cold": cold})
    try:
        done = subprocess.run([sys.executable, "-m", __name__], input=text, capture_output=True, text=True, timeout=PREPARE_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise Error(f"{case.name} does not compile within {PREPARE_SECONDS} s") from error
    if done.returncode:
        raise Error(f"{case.name}: {(done.stderr.strip().splitlines() or [f'status {done.returncode}'])[-1]}")
    ready = Ready(**json.loads(done.stdout.splitlines()[-1]))
    known.write_text(json.dumps(asdict(ready)))
    return ready


def _key(request: Mapping[str, Any]) -> str:
    """A hash of the request, the model file as it stands, and the compiler."""
    stat = os.stat(request["path"])
    text = json.dumps([request, stat.st_size, stat.st_mtime_ns, compiler_digest()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def compiler_digest() -> str:
    """A hash of the package's Python sources: equal digests compile alike."""
    import tcompile

    digest = hashlib.sha256()
    for room in _ROOMS:
        package = Path(tcompile.__file__).parent if room == "tcompile" else _room(room)
        for path in sorted(package.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _room(name: str) -> Path:
    import importlib

    return Path(importlib.import_module(f"tcompile.{name}").__path__[0])


def _inputs(graph_inputs: Sequence[Any], request: Mapping[str, Any]) -> dict[str, np.ndarray]:
    from tcompile.accuracy import random_inputs

    given = {}
    if request["recorded"]:
        with np.load(request["recorded"], allow_pickle=True) as data:
            given = {name.removeprefix("in."): data[name] for name in data}
    draws = {name: Draw(lo, hi, None if shape is None else tuple(shape)) for name, (lo, hi, shape) in request["draws"].items()}
    missing = [value for value in graph_inputs if value.name not in given]
    drawn = random_inputs(missing, request["sizes"], draws)
    return {value.name: given.get(value.name, drawn.get(value.name)) for value in graph_inputs}


def _prepare(request: Mapping[str, Any]) -> Ready:
    from tcompile.benchmarks.model_flops import model_flops
    from tcompile.ir.onnx_import import import_model
    from tcompile.pipeline import Options, compile_model

    stem, shapes = Path(request["stem"]), request["shapes"] or None
    start = time.perf_counter(), _cpu_seconds()
    options = Options(cache=not request["cold"], host_ops=False)
    compiled = compile_model(request["path"], shapes=shapes, options=options)
    artifact = stem.with_suffix(".tcm")
    compiled.save(artifact)
    wall, cpu = time.perf_counter() - start[0], _cpu_seconds() - start[1]
    graph = import_model(request["path"], shapes)
    inputs = _inputs(graph.inputs, request)
    np.savez(stem.with_suffix(".npz"), **inputs)
    return Ready(
        str(artifact),
        str(stem.with_suffix(".npz")),
        model_flops(graph, inputs),
        compiled.report(1)["weights_bytes"],
        artifact.stat().st_size,
        round(wall, 3),
        round(cpu, 3),
        round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        not request["cold"],
    )


def _cpu_seconds() -> float:
    """CPU time of this process and of those that it has waited for."""
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


if __name__ == "__main__":
    from tcompile.errors import Error as _Error

    replies, sys.stdout = sys.stdout, sys.stderr
    try:
        print(json.dumps(asdict(_prepare(json.load(sys.stdin)))), file=replies)
    except _Error as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())[:400]}")
