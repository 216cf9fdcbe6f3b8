"""Times on the device, between CUDA events: ours, PyTorch's and JAX's of the same work, and the machine's own rates."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import tcompile
from tcompile.accuracy import largest_error, random_inputs
from tcompile.benchmarks.gpu_cases import KernelCase, peer_case
from tcompile.benchmarks.gpu_jax import jax_function
from tcompile.benchmarks.gpu_static import compiled_graph
from tcompile.benchmarks.gpu_torch import torch_function
from tcompile.benchmarks.model_set import Model

_LONG = 0.2  # seconds that a measurement takes about
_REPEATS = 5
_LIMITS = {"f32": 1e-5, "tf32": 1e-3, "f16": 2e-3, "bf16": 1.6e-2}  # of errors of kernels, of the largest value: a few roundings


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
    given = {name: _tensor(array) for name, array in arrays.items()}
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


def our_milliseconds(model: Model, path: Path, device: str) -> float:
    """Milliseconds of a run of a model's artifact."""
    with tcompile.load(path, device=device) as executable:
        return 1e3 * our_seconds(executable, peer_case(model)[1])


def peer_milliseconds(model: Model, which: str) -> float:
    """Milliseconds of a run of one of ``PEERS``."""
    graph, arrays = peer_case(model)
    return 1e3 * PEERS[which](graph, arrays)


def _torch_tensors(graph: Any, arrays: Mapping[str, np.ndarray]) -> list[Any]:
    return [_tensor(arrays[value.name]) for value in graph.inputs]


def _eager(graph: Any, tensors: list[Any], *, half: bool = False) -> Callable[[], object]:
    return _called(torch_function(graph), tensors, half)


def _compiled(graph: Any, tensors: list[Any], *, half: bool = False) -> Callable[[], object]:
    """torch.compile with CUDA graphs; ``half`` under autocast, whose products are float16."""
    import torch

    torch._dynamo.reset()
    torch._dynamo.config.cache_size_limit = 64
    return _called(torch.compile(torch_function(graph), mode="reduce-overhead", dynamic=False), tensors, half)


def _called(function: Callable[..., object], tensors: list[Any], half: bool) -> Callable[[], object]:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 as ours

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


PEERS: dict[str, Callable[[Any, Mapping[str, np.ndarray]], float]] = {
    "eager": lambda graph, arrays: torch_seconds(_eager(graph, _torch_tensors(graph, arrays))),
    "eager_fp16": lambda graph, arrays: torch_seconds(_eager(graph, _torch_tensors(graph, arrays), half=True)),
    "compile": lambda graph, arrays: torch_seconds(_compiled(graph, _torch_tensors(graph, arrays))),
    "compile_fp16": lambda graph, arrays: torch_seconds(_compiled(graph, _torch_tensors(graph, arrays), half=True)),
    "jax": lambda graph, arrays: _jax_seconds(graph, arrays),
}


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
    error /= max(largest, 1e-30)
    kind = case.precision if case.dtype == "f32" else case.dtype
    least = max(case.flops / rates[kind], case.bytes / rates["copy"])
    return {
        "kernel": case.name, "ours": 1e3 * ours, "torch": 1e3 * theirs, "fraction": least / ours, "error": error,
        "wrong": "" if error <= _LIMITS[kind] else f"off by {error:.2g}"
    }  # fmt: skip


def _tensor(array: np.ndarray) -> Any:
    """A tensor on the device; PyTorch takes no NumPy bfloat16."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16).cuda()
    return torch.from_numpy(np.array(array, order="C")).cuda()  # not ascontiguousarray, which gives scalars an axis
