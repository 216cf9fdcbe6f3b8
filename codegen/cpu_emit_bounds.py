"""Checked builds: every access of a kernel is compared with the extent of its buffer, and leaves the kernel where it is outside.

    load p[i]  ->  offset = address of p[i] - p; unless offset < bytes of p (unsigned): return BOUNDS; load p[i]

The address that is compared is the one that the access uses, so that index expressions, lanes and masks are all put to the
test. Kernels are in bounds by construction; this finds where the construction is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tcompile.codegen import cpu_emit_index as index
from tcompile.codegen import cpu_emit_lanes as ops
from tcompile.codegen.cpu_emit_function import Function
from tcompile.codegen.cpu_emit_index import Names
from tcompile.codegen.cpu_emit_values import Value
from tcompile.ir import dims
from tcompile.ir.dims import Shape
from tcompile.ir.dtypes import DType


@dataclass(frozen=True)
class Bounds:
    """Emits the checks of one function. ``leave_unless`` leaves the kernel where a bool is false, on any lane."""

    fn: Function
    names: Names
    leave_unless: Callable[[Value], None]

    def check(self, base: Value, dtype: DType, shape: Shape, pointers: Value, mask: Value | None) -> None:
        """``pointers``: the address of an element, of one on each lane; lanes where ``mask`` is false are not accessed."""
        size = index.as_value(index.value(self.names, dims.product(shape) * dtype.bytes))
        first, place = (ops.convert(self.fn, "ptrtoint", "ptr", "i64", pointer) for pointer in (base, pointers))
        inside = ops.binary(self.fn, "icmp ult", "i64", ops.binary(self.fn, "sub", "i64", place, first), size)
        if mask is not None:
            inside = ops.binary(self.fn, "or", "i1", inside, ops.binary(self.fn, "xor", "i1", mask, Value("true")))
        self.leave_unless(inside)
