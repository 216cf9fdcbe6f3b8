"""Times on the device, between CUDA events: ours, PyTorch's and JAX's of the same work, and the machine's own rates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import tcompile
from tcompile.accuracy import largest_error, random_inputs
from tcompile.benchmarks.gpu_cases import KernelCase, fixed_shapes, graph_flops, inputs_of, peer_graph
from tcompile.benchmarks.gpu_jax import jax_function
from tcompile.benchmarks.gpu_static import compiled_graph
from tcompile.benchmarks.gpu_torch import torch_function
from tcompile.benchmarks.model_set import Model

_LONG = 0.2  # seconds that a measurement takes about
_REPEATS = 5


def torch_seconds(run: Callable[[], object]) -> float:
    """The least mean time of a call on PyTorch's stream, of several series."""
    import torch

    for _ in range(3):
        run()
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    turns = max(3, min(1000, int(_LONG / _REPEATS / max(time.perf_counter() - start, 1e-6))))
    best = float("inf")
    for _ in range(_REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(turns):
            run()
        end.record()
        torch.cuda.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3 / turns)
    return best


def our_seconds(executable: Any, arrays: Mapping[str, np.ndarray]) -> float:
    """Ours on device arrays, the least mean of several series."""
    import torch

    given = {name: torch.from_numpy(np.ascontiguousarray(array)).cuda() for name, array in arrays.items()}
    first = executable.seconds(given, runs=3)
    turns = max(3, min(1000, int(_LONG / _REPEATS / max(first, 1e-6))))
    return min(executable.seconds(given, runs=turns) for _ in range(_REPEATS))


def machine_rates() -> dict[str, float]:
    """What PyTorch reaches here: bytes a second of a copy (read and written), operations a second of products of 8192^2 matrices."""
    import torch

    source = torch.empty(1 << 28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    found = {"copy": 2 * source.nbytes / torch_seconds(lambda: target.copy_(source))}
    n = 8192
    for name, dtype, tf32 in (("f32", "float32", False), ("tf32", "float32", True), ("f16", "float16", False), ("bf16", "bfloat16", False)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a = torch.randn(n, n, device="cuda").to(getattr(torch, dtype))
        found[name] = 2 * n**3 / torch_seconds(lambda a=a: torch.mm(a, a))
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return found


def model_times(model: Model, artifacts: Mapping[str, Path], device: Any) -> dict[str, Any]:
    """Milliseconds of one model; a peer that fails is None, with why under ``peer_errors``."""
    import torch

    graph = peer_graph(model.path, fixed_shapes(model))
    arrays = inputs_of(graph, model)
    row: dict[str, Any] = {"model": model.name, "gflop": graph_flops(graph) / 1e9, "peer_errors": {}}
    for name, key in (("ours", model.name), ("ours_fp16", f"{model.name}@fp16")):
        if key in artifacts:
            with tcompile.load(artifacts[key], device=device) as executable:
                row[name] = 1e3 * our_seconds(executable, arrays)
    tensors = [torch.from_numpy(np.ascontiguousarray(arrays[value.name])).cuda() for value in graph.inputs]
    row["eager"] = _peer(row, "eager", lambda: torch_seconds(_eager(graph, tensors)))
    row["compile"] = _peer(row, "compile", lambda: torch_seconds(_compiled(graph, tensors)))
    row["compile_fp16"] = _peer(row, "compile_fp16", lambda: torch_seconds(_compiled(graph, tensors, half=True)))
    row["jax"] = _peer(row, "jax", lambda: _jax_seconds(graph, arrays))
    return row


def _peer(row: dict[str, Any], name: str, measure: Callable[[], float]) -> float | None:
    try:
        return 1e3 * measure()
    except Exception as error:  # whatever a peer fails with, the others go on
        row["peer_errors"][name] = f"{type(error).__name__}: {str(error)[:200]}"
        return None


def _eager(graph: Any, tensors: list[Any]) -> Callable[[], object]:
    import torch

    function = torch_function(graph)

    def run() -> object:
        with torch.inference_mode():
            return function(*tensors)

    return run


def _compiled(graph: Any, tensors: list[Any], *, half: bool = False) -> Callable[[], object]:
    """torch.compile with CUDA graphs; ``half`` under autocast, whose products are float16."""
    import torch

    torch._dynamo.reset()
    function = torch.compile(torch_function(graph), mode="reduce-overhead", dynamic=False)

    def run() -> object:
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=half):
            return function(*tensors)

    return run


def _jax_seconds(graph: Any, arrays: Mapping[str, np.ndarray]) -> float:
    """JAX, whose calls are asynchronous: the wall time of many calls with one wait at the end."""
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_default_matmul_precision", "highest")
    function = jax.jit(jax_function(graph))
    given = [jax.device_put(arrays[value.name]) for value in graph.inputs]
    jax.block_until_ready(function(*given))
    start = time.perf_counter()
    jax.block_until_ready(function(*given))
    turns = max(3, min(1000, int(_LONG / _REPEATS / max(time.perf_counter() - start, 1e-6))))
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        for _ in range(turns):
            result = function(*given)
        jax.block_until_ready(result)
        best = min(best, (time.perf_counter() - start) / turns)
    return best


def kernel_times(case: KernelCase, device: Any, rates: Mapping[str, float]) -> dict[str, Any]:
    """Milliseconds of one kernel and of PyTorch's own; ``fraction`` of the roofline by the machine's measured rates."""
    import torch

    arrays = random_inputs(case.graph.inputs, {})
    with tcompile.load(compiled_graph(case.graph, device, precision=case.precision), device=device) as executable:
        ours, got = our_seconds(executable, arrays), executable.run(arrays)["y"]
    tensors = [_tensor(array) for array in (arrays[value.name] for value in case.graph.inputs)]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = case.precision == "tf32"
    theirs = torch_seconds(lambda: case.torch(torch, tensors))
    exact = case.torch(torch, [tensor.double() for tensor in tensors]).cpu().numpy()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    error, largest = largest_error(got.astype(np.float64), exact)
    least = max(case.flops / rates[case.precision if case.dtype == "f32" else case.dtype], case.bytes / rates["copy"])
    return {
        "kernel": case.name, "ours": 1e3 * ours, "torch": 1e3 * theirs, "fraction": least / ours, "error": error / max(largest, 1e-30)
    }  # fmt: skip


def _tensor(array: np.ndarray) -> Any:
    """A tensor on the device; PyTorch takes no NumPy bfloat16."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16).cuda()
    return torch.from_numpy(np.ascontiguousarray(array)).cuda()
