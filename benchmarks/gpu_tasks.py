"""The pieces of work of the GPU benchmark: functions that run in a process of their own (``gpu_apart.py``), on a device by its name.

References of models are computed on the CPU: by the interpreter in float64, and in float32, whose error tells how much of a
difference rounding makes in this model.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from tcompile.benchmarks.model_set import Model
from tcompile.errors import Error

PRECISIONS = ("f32", "fp16")  # that models are compiled in


def artifact(folder: Path, model: Model, precision: str) -> Path:
    """Where a model's artifact is."""
    return folder / f"{model.name}@{precision}.tcm"


def compile_one(model: Model, target: str, folder: Path, precision: str) -> float:
    """Compiles a model into its file, at fixed shapes; the seconds."""
    import tcompile
    from tcompile.benchmarks.gpu_cases import fixed_shapes

    start = time.perf_counter()
    tcompile.compile_file(
        str(model.path), artifact(folder, model, precision), target, fixed_shapes(model), precision=precision, host_ops=False
    )
    return time.perf_counter() - start


def reference_one(model: Model, folder: Path) -> float:
    """Writes the outputs that a model must have beside its artifacts, unless they are there; the seconds."""
    from tcompile.accuracy import compare
    from tcompile.benchmarks.gpu_cases import peer_case
    from tcompile.ir.interpret import interpret

    path, start = folder / f"{model.name}.npz", time.perf_counter()
    if not path.exists():
        graph, arrays = peer_case(model)
        exact = interpret(graph, arrays, float64=True)
        errors = {row.output: row.error for row in compare(interpret(graph, arrays), exact)}
        made = path.with_suffix(".tmp.npz")
        np.savez(made, **{f"exact.{name}": array for name, array in exact.items()}, **{f"error.{name}": e for name, e in errors.items()})
        made.rename(path)
    return time.perf_counter() - start


def verify_one(model: Model, folder: Path, device: str, precision: str) -> dict[str, Any]:
    """How far a model's outputs on the device are off, as ``tcompile verify`` judges; twice, as the second run is a captured graph."""
    import tcompile
    from tcompile.accuracy import Comparison, largest_error
    from tcompile.benchmarks.gpu_cases import peer_case
    from tcompile.verify import UNITS

    _, arrays = peer_case(model)
    with tcompile.load(artifact(folder, model, precision), device=device) as executable:
        results = [executable.run(arrays) for _ in range(3)]
    worst, wrong = 0.0, []
    with np.load(folder / f"{model.name}.npz") as known:
        for name in results[0]:
            for result in results:
                error, largest = largest_error(result[name], known[f"exact.{name}"])
                row = Comparison(name, largest, error, float(known[f"error.{name}"]), UNITS[precision])
                worst = max(worst, error / max(largest, 1e-30))
                if not (row.agrees or error <= 1e-5 * largest):  # sums in another order than the interpreter's
                    wrong.append(f"{name} by {error:.2g} of {largest:.2g}")
    return {"error": worst, "wrong": "; ".join(dict.fromkeys(wrong))}


def problem(op: str, device: str) -> dict[str, Any]:
    """Some forms of an op on the device, with the passes and without: how many batches, and what is wrong."""
    import tcompile
    from tcompile.benchmarks.gpu_static import compiled_graph
    from tests.problems import PROBLEMS, compiled
    from tests.problems.problem import batches, sample

    def executable(graph: Any, *, optimised: bool = False, threads: int = 1) -> Any:
        return tcompile.load(compiled_graph(graph, device, optimised=optimised), device=device)

    compiled.executable = executable
    count = 0
    for batch in batches(sample(PROBLEMS[op], 0), 0):
        for optimised in (False,) if op == "fused" else (False, True):
            try:
                compiled.check_batch(batch, optimised=optimised)
            except (AssertionError, Error) as error:
                return {"batches": count, "wrong": f"{type(error).__name__}: {str(error)[:600]}"}
            count += 1
    return {"batches": count, "wrong": ""}


def rates() -> dict[str, float]:
    """What the machine reaches, by PyTorch; see ``gpu_time.machine_rates``."""
    from tcompile.benchmarks.gpu_time import machine_rates

    return machine_rates()


def kernel(name: str, device: str, known: dict[str, float]) -> dict[str, Any]:
    """The times of one kernel of ``gpu_cases.kernel_cases``."""
    from tcompile.benchmarks.gpu_cases import kernel_cases
    from tcompile.benchmarks.gpu_time import kernel_times
    from tcompile.runtime.cuda_devices import open_device

    (case,) = (case for case in kernel_cases() if case.name == name)
    return kernel_times(case, open_device(device), known)


def ours(model: Model, folder: Path, device: str, precision: str) -> float:
    """Milliseconds of a run of ours."""
    from tcompile.benchmarks.gpu_time import our_milliseconds

    return our_milliseconds(model, artifact(folder, model, precision), device)


def peer(model: Model, which: str) -> float:
    """Milliseconds of a run of a peer; see ``gpu_time.PEERS``."""
    from tcompile.benchmarks.gpu_time import peer_milliseconds

    return peer_milliseconds(model, which)


def flops(model: Model) -> float:
    """Floating-point operations of a model's products and convolutions."""
    from tcompile.benchmarks.gpu_cases import graph_flops, peer_case

    return graph_flops(peer_case(model)[0])
