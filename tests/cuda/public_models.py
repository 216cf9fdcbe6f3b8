"""Public models under the shim: imported, compiled for a GPU, their CUDA C run on the CPU, against the interpreter.

    python -m tests.cuda.public_models MODELS [--build DIR] [--group frameworks] [--model TEXT] [--precision tf32] [--done FILE]

MODELS is a folder as of ``tcompile.benchmarks.models``. Models of ``frameworks`` take the inputs that stand beside them, others random
ones at the sizes of ``SMALL``. ``--done`` names a file of the models that agreed: a run goes on after those. The exit status is 1
where one disagrees.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import tcompile
from tcompile.accuracy import compare, random_inputs
from tcompile.benchmarks.model_set import REFUSED, Model, collect, default_build, of_numbers
from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model
from tcompile.verify import UNITS, run_onnxruntime
from tests.cuda.shim_device import ShimDevice

SMALL: Mapping[str, Mapping[str, int]] = {
    "lstm_gru_tagger": {"seq": 5},
    "minilm_l6_v2": {"seq": 7},
    "bert_base_dyn": {"seq": 7},
    "byte_sb_bidi_lstm": {"length": 9},
    "dlrm_dynb": {"batch": 3},
}


def on_shim(model: Any, **options: Any) -> Any:
    """A model loaded on the shim, through the same calls as on a GPU."""
    return tcompile.compile(model, device=ShimDevice(), device_code=False, cache=False, **options)


def inputs_of(model: Model, inputs: Any) -> dict[str, np.ndarray]:
    """The arrays that a model is run on: those beside it, or random ones."""
    beside = model.path.with_suffix(".npz")
    if model.group == "frameworks" and beside.exists():
        with np.load(beside) as data:
            return {name.removeprefix("in."): data[name] for name in data.files if name.startswith("in.")}
    known = model.inputs
    return random_inputs(inputs, {**known.sizes, **SMALL.get(model.name, {})}, known.draws)


def check_model(model: Model, precision: str = "f32", runs: int = 2) -> float:
    """The largest error of a model's outputs, of their largest values. Raises AssertionError naming an output that is wrong.

    The reference is the float64 interpreter (``tcompile verify``'s). Runs again on the same arrays, which the replay of the captured
    launches must answer with the same bits.
    """
    graph = import_model(model.path)
    arrays = inputs_of(model, graph.inputs)
    exe = on_shim(str(model.path), **({} if precision == "f32" else {"precision": precision}))
    results = [exe.run(arrays) for _ in range(runs)]
    for again in results[1:]:
        for name, array in again.items():
            assert np.array_equal(array, results[0][name], equal_nan=array.dtype.kind == "f"), f"{name} differs in a second run"
    rows = compare(results[0], interpret(graph, arrays, float64=True), run_onnxruntime(str(model.path), arrays), UNITS[precision])
    wrong = [f"{row.output} by {row.error:.3g} of {row.largest:.3g}" for row in rows if not row.agrees]
    assert not wrong, "; ".join(wrong)
    return max((row.error / max(row.largest, 1e-30) for row in rows), default=0.0)


def main() -> int:
    """Prints each model's error; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--build", type=Path, default=default_build())
    parser.add_argument("--group", default="")
    parser.add_argument("--model", default="")
    parser.add_argument("--precision", default="f32", choices=["f32", "tf32", "fp16", "bf16"])
    parser.add_argument("--done", type=Path)
    chosen = parser.parse_args()
    done = set(chosen.done.read_text().split()) if chosen.done and chosen.done.exists() else set()
    wrong = []
    for model in collect(chosen.folder, chosen.build):
        if model.name in done or model.name in REFUSED or chosen.model not in model.name or not model.group.startswith(chosen.group):
            continue
        if not of_numbers(model.path):
            continue
        start = time.perf_counter()
        try:
            error = check_model(model, chosen.precision)
        except Exception:
            wrong.append(model.name)
            print(f"{model.name}:\n{traceback.format_exc()[-2000:]}", flush=True)
            continue
        print(f"{model.name:36} {error:.2e} {time.perf_counter() - start:.1f} s", flush=True)
        if chosen.done:
            with chosen.done.open("a") as stream:
                stream.write(f"{model.name}\n")
    print(f"{len(wrong)} models are wrong: {' '.join(wrong)}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
