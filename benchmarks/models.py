"""The public models: correctness (``--verify``, ``--sizes``) and speed against peers (``--bench``).

    python -m benchmarks.models --verify FOLDER [--only TEXT]
    python -m benchmarks.models --sizes FOLDER
    python -m benchmarks.models --bench FOLDER --peer onnxruntime [--peer openvino] [--threads 1,2] [--json FILE]

FOLDER holds ``real/``, ``exported/``, ``recipes/``, ``minilm/`` and ``frameworks/``. Each model is handled by a process of
its own, so that nothing one of them does can hide or disturb another.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tcompile.benchmarks.model_set import REFUSED, Model, collect
from tcompile.benchmarks.sizes import RANGED
from tcompile.benchmarks.speed import bench_model, print_speed_table

MODEL_SECONDS = 300


def default_build() -> Path:
    """Where completed models are kept."""
    return Path(os.environ.get("TCOMPILE_MODELS_DIR", Path.home() / ".cache" / "tcompile-models"))


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


def bench(models: list[Model], arguments: argparse.Namespace) -> int:
    """Times every model against its peers."""
    threads = [int(text) for text in arguments.threads.split(",")]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            if model.group != "frameworks" and model.name not in REFUSED:
                rows += bench_model(model, arguments.peer, threads, Path(folder))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print_speed_table(rows, arguments.peer)
    if arguments.json:
        arguments.json.write_text(json.dumps({"models": rows}, indent=1))
    return 0


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
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    models = collect(arguments.verify or arguments.sizes or arguments.bench, arguments.build)
    models = [m for m in models if any(text in m.name for text in arguments.only.split(",")) and arguments.group in ("", m.group)]
    if arguments.sizes:
        return sizes(models)
    return verify(models) if arguments.verify else bench(models, arguments)


if __name__ == "__main__":
    sys.exit(main())
