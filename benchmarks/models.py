"""The public models: correctness (``--verify``, ``--sizes``) and speed against peers (``--bench``).

    python -m benchmarks.models --verify FOLDER [--only TEXT]
    python -m benchmarks.models --sizes FOLDER
    python -m benchmarks.models --bench FOLDER --peer onnxruntime [--peer openvino] [--threads 1,2] [--json FILE]

FOLDER holds ``real/``, ``exported/``, ``recipes/``, ``minilm/`` and ``frameworks/``; the light models of the ``onnx`` package join
them. Each model is handled by a process of its own, so that nothing one of them does can hide or disturb another.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from tcompile.benchmarks.cases import Case
from tcompile.benchmarks.model_set import REFUSED, Model, collect, default_build, of_numbers
from tcompile.benchmarks.sizes import RANGED
from tcompile.benchmarks.speed import Settings, show, show_costs
from tcompile.benchmarks.speed import bench as measure

MODEL_SECONDS = 300


def run_apart(module: str, *arguments: str) -> dict:
    """The result of a module that judges one model, in a process of its own; a crash or a time-out is a result too."""
    command = [sys.executable, "-m", f"tcompile.benchmarks.{module}", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=MODEL_SECONDS)
    except subprocess.TimeoutExpired:
        return {"status": "crashed", "detail": f"no answer within {MODEL_SECONDS} s"}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return {"status": "crashed", "detail": f"status {done.returncode}: {done.stderr.strip()[-300:]}"}


def verify(models: list[Model]) -> int:
    """Prints one line a model and the totals; 1 where one is wrong, crashes, or is refused though it must run."""
    bad = 0
    counts: dict[tuple[str, str], int] = {}
    for model in models:
        result = run_apart("verify_one", str(model.path), model.group)
        status = result["status"]
        if status == "refused" and model.name in REFUSED:
            named = all(op in result["detail"] for op in REFUSED[model.name])
            status = "refused as it must be" if named else "refused without naming its ops"
        counts[model.group, status] = counts.get((model.group, status), 0) + 1
        good = status in ("agrees", "refused as it must be") or (status == "refused" and model.group == "frameworks")
        bad += not good
        print(f"{model.group:10} {model.name:36} {status:10} {result.get('detail', '')}", flush=True)
    for (group, status), count in sorted(counts.items()):
        print(f"{group:10} {status:24} {count}")
    print(f"passed {len(models) - bad} of {len(models)}")
    return 1 if bad else 0


def sizes(models: list[Model]) -> int:
    """Runs the models with declared ranges at all their sizes; 1 where one is wrong or fails."""
    chosen = [model for model in models if model.name in RANGED]
    results = {model.name: run_apart("sizes", str(model.path)) for model in chosen}
    for name, result in results.items():
        print(f"{name:24} {result['status']:8} {result['detail']}", flush=True)
    agree = sum(result["status"] == "agrees" for result in results.values())
    print(f"passed {agree} of {len(chosen)}; {len(RANGED) - len(chosen)} are not there")
    return 0 if agree == len(chosen) > 0 else 1


def case_of(model: Model) -> Case:
    """A public model with the inputs that make sense for it, recorded ones where the set has some."""
    recorded = model.path.with_suffix(".npz") if model.group == "frameworks" else None
    return Case(model.name, model.path, model.inputs.sizes, model.inputs.draws, recorded)


def timed(model: Model) -> bool:
    """Whether a model is one to time."""
    return model.name not in REFUSED and of_numbers(model.path)


def bench(models: list[Model], arguments: argparse.Namespace) -> int:
    """Times every model against its peers."""
    threads = tuple(map(int, arguments.threads.split(",")))
    settings = Settings(
        tuple(arguments.peer), threads, arguments.clock, arguments.seconds, arguments.json, arguments.resume, arguments.cold
    )
    cases = (case_of(model) for model in models if timed(model))
    found = measure(cases, settings, lambda text: print(text, file=sys.stderr, flush=True))
    console = Console(width=None if sys.stdout.isatty() else 200)
    show(found, arguments.peer, console)
    show_costs(found, arguments.peer, console)
    return 1 if found["failed"] else 0


def main() -> int:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--verify", type=Path, metavar="FOLDER")
    what.add_argument("--sizes", type=Path, metavar="FOLDER", help="one artifact at five sizes each, within its ranges and outside")
    what.add_argument("--bench", type=Path, metavar="FOLDER")
    parser.add_argument("--only", default="", help="comma-separated texts; a model's name must contain one")
    parser.add_argument("--group", default="", help="only this group")
    parser.add_argument("--build", type=Path, default=default_build(), help="where recipes are completed")
    parser.add_argument("--peer", action="append", default=[], choices=("onnxruntime", "openvino"))
    parser.add_argument("--threads", default="1")
    parser.add_argument("--json", type=Path, help="written after each model")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU time, for one thread on a busy machine")
    parser.add_argument("--seconds", type=float, default=2.0, help="to measure one model with one number of threads")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the JSON file has of this compiler")
    parser.add_argument("--cold", action="store_true", help="compile anew without caches, to time compiling")
    arguments = parser.parse_args()
    models = collect(arguments.verify or arguments.sizes or arguments.bench, arguments.build)
    models = [m for m in models if any(text in m.name for text in arguments.only.split(",")) and arguments.group in ("", m.group)]
    if arguments.sizes:
        return sizes(models)
    return verify(models) if arguments.verify else bench(models, arguments)


if __name__ == "__main__":
    sys.exit(main())
