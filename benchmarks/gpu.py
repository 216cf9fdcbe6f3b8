"""GPU models: correct on every op's Problem and every public model, then timed against PyTorch and JAX on the same machine.

    python -m tcompile.benchmarks.gpu MODELS [--build DIR] [--only problems,models,bench,kernels] [--model TEXT] [--json FILE]
    python -m tcompile.benchmarks.gpu MODELS --target cuda-sm90        without a GPU: resources and static model of each kernel

MODELS is a folder as of ``benchmarks.models``. Everything ends within ``--seconds`` (520): what there is no time for is listed as
left out. Times are between CUDA events around many runs on device arrays: ours as captured graphs, PyTorch's eager calls (cuBLAS,
cuDNN), torch.compile, and JAX (XLA, jitted). PyTorch and JAX run the same simplified core ops at fixed shapes; single kernels are
compared with PyTorch's own functions. Fractions are of the rates that this machine reaches in its own copy and products.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from tcompile.benchmarks.gpu_static import static_report
from tcompile.benchmarks.model_set import REFUSED, Model, collect, of_numbers
from tcompile.benchmarks.models import default_build
from tcompile.errors import Error

PARTS = ("problems", "models", "bench", "kernels")
console = Console(width=200, highlight=False)


class Budget:
    """The time of the whole run."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints tables, writes JSON; 1 where an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--build", type=Path, default=default_build())
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--model", default="", help="models whose name holds this text")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--target", help="report on this target without a GPU")
    parser.add_argument("--seconds", type=float, default=520.0)
    parser.add_argument("--workers", type=int, default=12)
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    models = [m for m in collect(chosen.folder, chosen.build) if m.group != "frameworks" and m.name not in REFUSED and of_numbers(m.path)]
    models = [model for model in models if chosen.model in model.name]
    device = None if chosen.target else _device(chosen.device)
    static = device is None
    result = static_report(models, chosen.target or "cuda-sm90", console) if static else measured(models, chosen, device)
    if chosen.json:
        chosen.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(result.get("wrong")))


def _device(name: str) -> Any:
    from tcompile.runtime.cuda_devices import open_device

    try:
        return open_device(name)
    except Error as error:
        console.print(f"no GPU: {error}\nwhat is known without one:", markup=False)
        return None


def measured(models: list[Model], chosen: argparse.Namespace, device: Any) -> dict[str, Any]:
    """Everything that needs the device."""
    from tcompile.benchmarks.gpu_time import machine_rates

    parts, budget = chosen.only.split(","), Budget(chosen.seconds)
    result: dict[str, Any] = {"device": device.name, "sm": device.sm, "wrong": [], "left_out": []}
    rates = machine_rates()
    result["rates"] = rates
    console.print(f"{device.name}, sm_{device.sm}; measured: {_rates_text(rates)}", markup=False)
    artifacts = _compiled(models, chosen, device, budget, result) if {"models", "bench"} & set(parts) else {}
    if "kernels" in parts:
        result["kernels"] = _guarded(lambda: _kernels(device, rates, budget, result), result, "kernels")
    if "bench" in parts:
        result["bench"] = _bench(models, artifacts, device, budget, result)
    if "models" in parts:
        result["models"] = _verified(models, artifacts, device, budget, result)
    if "problems" in parts:
        result["problems"] = _problems(chosen, budget, result)
    console.print(f"wrong: {', '.join(result['wrong']) or 'nothing'}; left out: {', '.join(result['left_out']) or 'nothing'}", markup=False)
    return result


def _rates_text(rates: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {rate / (1e9 if name == 'copy' else 1e12):.0f} {'GB/s' if name == 'copy' else 'TFLOP/s'}" for name, rate in rates.items()
    )


def _guarded(work: Callable[[], Any], result: dict[str, Any], what: str) -> Any:
    """A part that fails is a line of the report, and does not end the others."""
    try:
        return work()
    except Exception as error:
        console.print(f"{what}: {type(error).__name__}: {error}", markup=False)
        result["left_out"].append(f"{what} ({type(error).__name__})")
        return None


# Correctness --------------------------------------------------------------------------------------------------


def compile_one(path: str, shapes: dict[str, list[int]], target: str, out: str, precision: str) -> float:
    """Compiles one model into a file, in a process of its own; gives the seconds."""
    import tcompile

    start = time.perf_counter()
    tcompile.compile_file(path, out, target, shapes, precision=precision, host_ops=False)
    return time.perf_counter() - start


def _compiled(models: list[Model], chosen: argparse.Namespace, device: Any, budget: Budget, result: dict[str, Any]) -> dict[str, Path]:
    """Artifacts of all models in float32 at fixed shapes, made in parallel; by model, and ``name@fp16`` for the second precision."""
    from tcompile.api import device_target
    from tcompile.benchmarks.gpu_cases import fixed_shapes

    folder = chosen.build / f"gpu-sm{device.sm}"
    folder.mkdir(parents=True, exist_ok=True)
    target, found = device_target(device), {}
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("spawn")) as pool:
        jobs = {}
        for precision in ("f32", "fp16"):
            for model in models:
                key = model.name if precision == "f32" else f"{model.name}@{precision}"
                out = folder / f"{key}.tcm"
                jobs[pool.submit(compile_one, str(model.path), fixed_shapes(model), target, str(out), precision)] = key, out
        try:
            for job in as_completed(jobs, timeout=max(budget.left * 0.4, 1)):
                key, out = jobs[job]
                if _guarded(job.result, result, f"compile {key}") is not None:
                    found[key] = out
        except TimeoutError:
            late = [key for key, out in jobs.values() if key not in found]
            result["left_out"] += [f"compile {key}" for key in late]
            pool.shutdown(wait=False, cancel_futures=True)
    return found


def _verified(models: list[Model], artifacts: dict[str, Path], device: Any, budget: Budget, result: dict[str, Any]) -> dict[str, Any]:
    """Each model's outputs against the interpreter: the largest error, of the largest value."""
    import tcompile
    from tcompile.accuracy import largest_error
    from tcompile.benchmarks.gpu_cases import fixed_shapes, inputs_of, peer_graph
    from tcompile.ir.interpret import interpret

    found = {}
    for model in models:
        if model.name not in artifacts or budget.left < 60:
            result["left_out"].append(f"verify {model.name}")
            continue

        def one(model: Model = model) -> dict[str, float]:
            graph = peer_graph(model.path, fixed_shapes(model))
            arrays = inputs_of(graph, model)
            with tcompile.load(artifacts[model.name], device=device) as executable:
                got = executable.run(arrays)
            pairs = (largest_error(got[name], expected) for name, expected in interpret(graph, arrays).items())
            return max(error / max(largest, 1e-30) for error, largest in pairs)

        error = _guarded(one, result, f"verify {model.name}")
        if error is not None:
            found[model.name] = error
            if not error <= 1e-4:
                result["wrong"].append(f"{model.name} by {error:.2g}")
            console.print(f"{model.name:34} error {error:.2e}{'' if error <= 1e-4 else '  WRONG'}", markup=False)
    return found


def problem(op: str, device: str) -> tuple[str, int, str]:
    """(op, batches, what is wrong) of one op's Problem on the device; in a process of its own."""
    import tcompile
    from tcompile.benchmarks.gpu_static import compiled_graph
    from tests.problems import PROBLEMS, compiled
    from tests.problems.problem import batches, sample

    def executable(graph: Any, *, optimised: bool = False, threads: int = 1) -> Any:
        return tcompile.load(compiled_graph(graph, device, optimised=optimised), device=device)

    compiled.executable = executable
    few, count = sample(PROBLEMS[op], 0), 0
    for batch in batches(few, 0):
        try:
            compiled.check_batch(batch, optimised=False)
        except (AssertionError, Error) as error:
            return op, count, f"{type(error).__name__}: {str(error)[:400]}"
        count += 1
    return op, count, ""


def _problems(chosen: argparse.Namespace, budget: Budget, result: dict[str, Any]) -> dict[str, Any]:
    """Every op's Problem, several at a time. They stand in the repository's tests, beside which this must run."""
    try:
        from tests.problems import PROBLEMS
    except ImportError:
        result["left_out"].append("problems (run at the root of the repository)")
        return {}
    found = {}
    with ProcessPoolExecutor(chosen.workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(problem, op, chosen.device) for op in PROBLEMS]
        try:
            for job in as_completed(jobs, timeout=max(budget.left - 10, 1)):
                op, count, wrong = job.result()
                found[op] = {"batches": count, "wrong": wrong}
                if wrong:
                    result["wrong"].append(f"op {op}")
                    console.print(f"op {op}: {wrong}", markup=False)
        except TimeoutError:
            result["left_out"] += [f"op {op}" for op in PROBLEMS if op not in found]
            for process in list(pool._processes.values()):
                process.terminate()
    console.print(f"{sum(not row['wrong'] for row in found.values())} of {len(found)} ops agree on the device")
    return found


# Speed --------------------------------------------------------------------------------------------------------


def _bench(models: list[Model], artifacts: dict[str, Path], device: Any, budget: Budget, result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a model: milliseconds of ours and of peers in float32, and of ours in float16 products."""
    from tcompile.benchmarks.gpu_time import model_times

    rows = []
    for model in models:
        if model.name not in artifacts or budget.left < 90:
            result["left_out"].append(f"bench {model.name}")
            continue
        row = _guarded(lambda m=model: model_times(m, artifacts, device), result, f"bench {model.name}")
        if row is not None:
            rows.append(row)
            times = "  ".join(
                f"{name} {row[name]:.3f} ms" for name in ("ours", "ours_fp16", "compile", "compile_fp16", "eager", "jax") if row.get(name)
            )
            console.print(f"{model.name:34} {times}", markup=False)
    for mine, peer in (("ours", "compile"), ("ours", "eager"), ("ours", "jax"), ("ours_fp16", "compile_fp16")):
        ratios = [row[peer] / row[mine] for row in rows if row.get(peer) and row.get(mine)]
        if ratios:
            mean = math.exp(statistics.fmean(map(math.log, ratios)))
            result.setdefault("geomean", {})[f"{peer} / {mine}"] = mean
            console.print(f"geometric mean of {peer} / {mine} over {len(ratios)} models: {mean:.2f}x")
    return rows


def _kernels(device: Any, rates: dict[str, float], budget: Budget, result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a kernel: ours and PyTorch's own, with the fraction of the machine's measured rate."""
    from tcompile.benchmarks.gpu_cases import kernel_cases
    from tcompile.benchmarks.gpu_time import kernel_times

    rows = []
    for case in kernel_cases():
        if budget.left < 120:
            result["left_out"].append(f"kernel {case.name}")
            continue
        row = _guarded(lambda c=case: kernel_times(c, device, rates), result, f"kernel {case.name}")
        if row is not None:
            rows.append(row)
            console.print(
                f"{case.name:24} ours {row['ours']:.4f} ms, {row['fraction']:.0%} of the limit; PyTorch {row['torch']:.4f} ms, "
                f"{row['torch'] / row['ours']:.2f}x; error {row['error']:.1e}",
                markup=False,
            )
    return rows


if __name__ == "__main__":
    sys.exit(main())
