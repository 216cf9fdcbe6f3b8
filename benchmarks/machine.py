"""The machine's limits, measured: multiply-add rate of float32, and read bandwidth by the size of what is read.

Rates are over the CPU time of the threads that run, all at once, so that other processes hardly disturb them.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

_ACCUMULATORS = 12
_FMA_TURNS = 200_000
_SIZES = tuple(1 << k for k in (14, 17, 18, 20, 22, 24, 26, 28))  # bytes of one thread
_READ_BYTES = 1 << 28  # in all, of one measurement
_REPEATS = 7
_FMA_REPEATS = 300


@dataclass(frozen=True)
class Limits:
    """``flops``: float32 operations a second. ``bandwidth``: (bytes of all threads' data, bytes a second) from small to large.

    ``flops_per_cycle``: those of one core.
    """

    threads: int
    flops: float
    flops_per_cycle: int
    bandwidth: tuple[tuple[int, float], ...]

    @property
    def cycle_rate(self) -> float:
        """Cycles a second of one core, as its rate of multiply-adds tells."""
        return self.flops / self.threads / self.flops_per_cycle

    @property
    def memory(self) -> float:
        """Bytes a second from memory."""
        return self.bandwidth[-1][1]

    def read_rate(self, size: float) -> float:
        """Bytes a second for data of ``size`` bytes, on a line between the sizes measured."""
        sizes, rates = zip(*self.bandwidth, strict=True)
        return float(np.interp(np.log(max(size, 1.0)), np.log(sizes), rates))

    def least_seconds(self, flops: float, moved: float) -> float:
        """The roofline: no run of so many operations on so many bytes is shorter."""
        return max(flops / self.flops, moved / self.read_rate(moved))

    def report(self) -> dict[str, object]:
        """As JSON holds it."""
        bandwidth = {str(size): round(rate / 1e9, 2) for size, rate in self.bandwidth}
        return {"threads": self.threads, "peak_gflops": round(self.flops / 1e9, 2), "read_gbs_by_bytes": bandwidth}


@cache
def limits(threads: int = 1) -> Limits:
    """Measures this machine with so many threads (a second or two, once a process)."""
    kernels = _kernels()
    flops = _rates(threads, lambda: kernels.flops(_FMA_TURNS), kernels.flops_per_turn * _FMA_TURNS, repeats=_FMA_REPEATS)
    return Limits(threads, flops, kernels.flops_per_cycle, tuple((size * threads, _bandwidth(kernels, threads, size)) for size in _SIZES))


def gpu_limits(target: str) -> Limits:
    """Those of a GPU target by its data sheet: float32 operations outside of tensor cores, and bandwidth of its memory."""
    from tcompile.ir.target import GpuTarget, named_target

    found = named_target(target)
    assert isinstance(found, GpuTarget), target
    return Limits(1, found.f32_flops, 1, ((1, found.bandwidth),))


def _bandwidth(kernels: _Kernels, threads: int, size: int) -> float:
    buffers = iter([np.ones(size, np.uint8) for _ in range(threads)])  # written, so that each page has memory of its own
    turns = max(_READ_BYTES // 8 // size, 1)
    mine = threading.local()

    def read() -> None:
        if not hasattr(mine, "buffer"):
            mine.buffer = next(buffers)
        kernels.read(mine.buffer.ctypes.data, size, turns)

    return _rates(threads, read, size * turns, repeats=_REPEATS)


def _rates(threads: int, work: Callable[[], object], amount: float, repeats: int = 1) -> float:
    """The best sum of the threads' rates, each over its own CPU time."""
    barrier, best = threading.Barrier(threads), [0.0] * threads

    def run(index: int) -> None:
        work()
        for _ in range(repeats):
            barrier.wait()
            start = time.thread_time()
            work()
            best[index] = max(best[index], amount / max(time.thread_time() - start, 1e-9))

    workers = [threading.Thread(target=run, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(best)


class _Kernels:
    """Native loops, made by LLVM for this machine; they run without the interpreter's lock."""

    def __init__(self, engine: object, lanes: int, ports: int) -> None:
        self._engine = engine  # owns the code
        self.flops_per_cycle = 2 * lanes * ports
        self.flops_per_turn = 2 * lanes * _ACCUMULATORS
        self.flops = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64)(engine.get_function_address("flops"))
        read = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
        self.read = read(engine.get_function_address("read"))


@cache
def _kernels() -> _Kernels:
    from llvmlite import binding

    from tcompile.ir.target import native_target

    target = native_target()
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=2
    )
    module = binding.parse_assembly(_flops_text(target.float_lanes) + _read_text(target.vector_bytes // 8))
    module.verify()
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return _Kernels(engine, target.float_lanes, target.fma_ports)


def _flops_text(lanes: int) -> str:
    """Independent chains of multiply-adds: acc = acc * x + x."""
    vector = f"<{lanes} x float>"
    phis = "\n".join(f"  %a{k} = phi {vector} [ zeroinitializer, %entry ], [ %b{k}, %loop ]" for k in range(_ACCUMULATORS))
    steps = "\n".join(
        f"  %b{k} = call {vector} @llvm.fma.v{lanes}f32({vector} %a{k}, {vector} %x, {vector} %x)" for k in range(_ACCUMULATORS)
    )
    sums = "\n".join(f"  %s{k + 1} = fadd {vector} {f'%s{k}' if k else 'zeroinitializer'}, %b{k}" for k in range(_ACCUMULATORS))
    return f"""
declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})
define float @flops(i64 %turns) {{
entry:
  %n = sitofp i64 %turns to float
  %d = fdiv float 1.0, %n
  %h = insertelement {vector} poison, float %d, i32 0
  %x = shufflevector {vector} %h, {vector} poison, <{lanes} x i32> zeroinitializer
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %j, %loop ]
{phis}
{steps}
  %j = add i64 %i, 1
  %more = icmp slt i64 %j, %turns
  br i1 %more, label %loop, label %exit
exit:
{sums}
  %r = extractelement {vector} %s{_ACCUMULATORS}, i32 0
  ret float %r
}}
"""


def _read_text(lanes: int) -> str:
    """Sums of a buffer's vectors, eight at a time."""
    vector, step = f"<{lanes} x i64>", 64 * lanes
    phis = "\n".join(f"  %a{k} = phi {vector} [ zeroinitializer, %outer ], [ %b{k}, %loop ]" for k in range(8))
    loads = "\n".join(
        f"  %p{k} = getelementptr i8, ptr %at, i64 {8 * lanes * k}\n"
        f"  %v{k} = load {vector}, ptr %p{k}, align 16\n"
        f"  %b{k} = add {vector} %a{k}, %v{k}"
        for k in range(8)
    )
    sums = "\n".join(f"  %s{k + 1} = add {vector} {f'%s{k}' if k else 'zeroinitializer'}, %b{k}" for k in range(8))
    return f"""
define i64 @read(ptr %data, i64 %size, i64 %turns) {{
entry:
  br label %outer
outer:
  %t = phi i64 [ 0, %entry ], [ %u, %done ]
  %total = phi i64 [ 0, %entry ], [ %next, %done ]
  br label %loop
loop:
  %i = phi i64 [ 0, %outer ], [ %j, %loop ]
{phis}
  %at = getelementptr i8, ptr %data, i64 %i
{loads}
  %j = add i64 %i, {step}
  %more = icmp slt i64 %j, %size
  br i1 %more, label %loop, label %done
done:
{sums}
  %r = extractelement {vector} %s8, i32 0
  %next = add i64 %total, %r
  %u = add i64 %t, 1
  %again = icmp slt i64 %u, %turns
  br i1 %again, label %outer, label %exit
exit:
  ret i64 %next
}}
"""
