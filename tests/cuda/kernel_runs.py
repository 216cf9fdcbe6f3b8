"""Runs Loop IR kernels under the shim on NumPy arrays, as ``ir/loops_interpret.run_kernel`` does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from tcompile.codegen.cuda_c import STATUS_CODES, emit_module, function_name, launch
from tcompile.codegen.loop_rewrite import Rewriter
from tcompile.ir import dims as dim
from tcompile.ir.dims import Ranges
from tcompile.ir.loops import Block, For, Kernel, LoopKind, Status, Stmt
from tcompile.ir.loops_interpret import run_kernel
from tcompile.ir.loops_verify import verify_kernel
from tcompile.ir.loops_verify_gpu import is_gpu_kernel
from tests.codegen.kernel_runs import assert_same
from tests.cuda.shim_build import ShimModule

_STATUS = {code: status for status, code in STATUS_CODES.items()}


class Loaded:
    """The CUDA C of several kernels, compiled for the shim; ``run`` launches one of them."""

    def __init__(self, kernels: Iterable[Kernel], ranges: Ranges | None = None) -> None:
        kernels = tuple(kernels)
        for kernel in kernels:
            verify_kernel(kernel, ranges)
        self.text = emit_module(kernels, ranges)
        self.module = ShimModule(self.text)

    def run(self, kernel: Kernel, arrays: Sequence[np.ndarray], dims: Sequence[int] = ()) -> Status | None:
        """Writes arrays in place. Returns None, or the status of a failed check. Raises ShimError for what no kernel may do."""
        shape, values = launch(kernel), dict(zip(kernel.dims, map(int, dims), strict=True))
        grid = [dim.evaluate(extent, values) for extent in shape.grid]
        copies = [aligned(array) for array in arrays]
        for a, b in kernel.aliases:
            if arrays[a] is arrays[b]:
                copies[b] = copies[a]
        status = np.zeros(1, np.int32)
        if all(grid):
            words = [*(copy.ctypes.data for copy in copies), *values.values(), status.ctypes.data]
            self.module.function(function_name(kernel))(grid, shape.block, shape.shared_bytes, words)
        for array, copy in zip(arrays, copies, strict=True):
            array[...] = copy
        return _STATUS.get(int(status[0]))


def run_cuda(kernel: Kernel, arrays: Sequence[np.ndarray], dims: Sequence[int] = (), ranges: Ranges | None = None) -> Status | None:
    """Runs one kernel; see ``Loaded.run``."""
    return Loaded((kernel,), ranges).run(kernel, arrays, dims)


def compare(kernel: Kernel, arrays: Sequence[np.ndarray], dims: Sequence[int] = (), ulp: float = 0) -> int:
    """Runs a kernel under the shim and in the interpreter on copies of ``arrays``; both must agree. Returns the status code."""
    mine, theirs = [array.copy() for array in arrays], [array.copy() for array in arrays]
    for a, b in kernel.aliases:
        mine[b], theirs[b] = mine[a], theirs[a]
    status = run_kernel(kernel, theirs, dims)
    found = run_cuda(on_gpu(kernel), mine, dims)
    assert found == status
    if status is None:
        for param, a, b in zip(kernel.params, mine, theirs, strict=True):
            assert_same(a, b, param.name, ulp)
    return 0 if status is None else STATUS_CODES[status]


def on_gpu(kernel: Kernel) -> Kernel:
    """A kernel of loops for one thread of one block, its parallel loop in order; one that is a GPU kernel stays."""
    if is_gpu_kernel(kernel):
        return kernel
    body = _InOrder().block(kernel.body)
    return replace(kernel, body=(For("grid_", 1, (For("block_", 1, body, LoopKind.BLOCK),), LoopKind.GRID),))


class _InOrder(Rewriter):
    """Makes parallel loops, and vector loops of one lane, serial ones."""

    def statement(self, stmt: Stmt) -> Block:
        if isinstance(stmt, For) and (stmt.kind is LoopKind.PARALLEL or (stmt.kind is LoopKind.VECTOR and stmt.width == 1)):
            stmt = replace(stmt, kind=LoopKind.SERIAL)
        return super().statement(stmt)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy whose data begins at a multiple of 256 bytes."""
    room = np.empty(array.nbytes + 256, np.uint8)
    start = -room.ctypes.data % 256
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
