"""Runs compiled kernels in this process, for tests: the object goes through LLVM's own loader."""

from __future__ import annotations

import ctypes

import numpy as np
from llvmlite import binding

from tcompile.codegen import cpu_llvm, cpu_object
from tcompile.ir import dims as dim
from tcompile.ir.loops import Kernel
from tcompile.ir.loops_interpret import run_kernel
from tcompile.ir.target import Target, native_target

NATIVE = native_target()
_ENTRY = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)


class Loaded:
    """An object in memory; ``run`` calls one of its kernels."""

    def __init__(self, code: bytes) -> None:
        cpu_object.initialise()
        machine = binding.Target.from_default_triple().create_target_machine()
        self.engine = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
        self.engine.add_object_file(binding.ObjectFileRef.from_data(code))
        self.engine.finalize_object()

    def run(self, kernel: Kernel, arrays: list[np.ndarray], dims: list[int], begin: int = 0, end: int = 1) -> int:
        """The status of one call; arrays are written in place."""
        words = [array.ctypes.data for array in arrays] + [value % 2**64 for value in dims]
        args = (ctypes.c_uint64 * max(len(words), 1))(*words)
        size = (
            dim.evaluate(cpu_llvm.scratch_bytes(kernel), dict(zip(kernel.dims, dims, strict=True)))
            if dims
            else cpu_llvm.scratch_bytes(kernel)
        )
        room = np.full(size + 64, 0xA5, np.uint8)
        start = -room.ctypes.data % 64 + room.ctypes.data
        return _ENTRY(self.engine.get_function_address(kernel.name))(ctypes.addressof(args), begin, end, start)


def load(*kernels: Kernel, target: Target | None = None, bounds: bool = False) -> Loaded:
    """Kernels compiled into one module, as a checked build where ``bounds``, and loaded."""
    target = target or NATIVE
    return Loaded(cpu_llvm.compile_module(cpu_llvm.emit_module(kernels, target, bounds=bounds), target))


def compare(kernel: Kernel, arrays: list[np.ndarray], dims: list[int], begin: int = 0, end: int | None = None, ulp: float = 0) -> int:
    """Runs a kernel natively and in the interpreter on copies of ``arrays``; both must agree. Returns the status code."""
    mine, theirs = [array.copy() for array in arrays], [array.copy() for array in arrays]
    for a, b in kernel.aliases:
        mine[b], theirs[b] = mine[a], theirs[a]
    status = run_kernel(kernel, theirs, dims, begin, end)
    code = load(kernel).run(kernel, mine, dims, begin, 1 if end is None else end)
    assert code == (0 if status is None else list(type(status)).index(status) + 1)
    if status is None:
        for param, a, b in zip(kernel.params, mine, theirs, strict=True):
            assert_same(a, b, param.name, ulp)
    return code


def assert_same(a: np.ndarray, b: np.ndarray, what: str = "", ulp: float = 0) -> None:
    """Equal values, NaN where NaN; within ``ulp`` units in the last place where asked."""
    if a.dtype.kind in "iub" and a.dtype.kind == b.dtype.kind and a.dtype.type.__module__ == "numpy":
        np.testing.assert_array_equal(a, b, what)
        return
    with np.errstate(invalid="ignore"):  # signalling NaNs
        wide, reference = a.astype(np.float64), b.astype(np.float64)
    if ulp and a.dtype in (np.float32, np.float64):
        np.testing.assert_array_max_ulp(a, b, ulp)
    else:
        np.testing.assert_array_equal(wide, reference, what)
