"""Loads and stores of memory buffers: contiguous vectors, one element for all lanes, gathers and scatters, masks.

    index steps by 1 a lane  ->  one vector load, alignment of the element
    same index on all lanes  ->  scalar load, splatted where used
    anything else            ->  gather or scatter over pointers (LLVM takes it apart where there is no instruction)

A masked access without an instruction for it selects addresses: lanes that are off read a constant zero, or
write a sink, so that no branch is needed and nothing outside the buffer is touched.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.codegen import cpu_emit_index as index
from tcompile.codegen import cpu_emit_lanes as ops
from tcompile.codegen.cpu_emit_casts import Casts
from tcompile.codegen.cpu_emit_function import Function
from tcompile.codegen.cpu_emit_index import Names
from tcompile.codegen.cpu_emit_values import Value, is_narrow, memory_type, register_type, suffix, vector
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.target import Target

ZEROS = "@tc.zeros"  # sixteen zero bytes: what a masked-off lane reads


@dataclass
class Buffer:
    """Elements in memory. ``group`` names what its stores may change: buffers that may be one share it."""

    name: str
    dtype: DType
    shape: Shape
    base: Value
    group: str


class Memory:
    """Emits the accesses of one function. ``mask`` is what holds on the active lanes (None: all)."""

    def __init__(self, fn: Function, names: Names, casts: Casts, target: Target) -> None:
        self.fn = fn
        self.names = names
        self.casts = casts
        self.target = target
        self.versions: dict[str, int] = {}
        self.uses_zeros = False
        self._flat: dict[tuple[int, str], tuple[Shape, DimLike]] = {}
        self._sink: Value | None = None

    # Addresses -----------------------------------------------------------------------------------------------

    def flat(self, buffer: Buffer, indices: Shape) -> DimLike:
        """The row-major position of an element."""
        key = (id(indices), buffer.name)
        known = self._flat.get(key)
        if known is None or known[0] is not indices:
            position: DimLike = 0
            for place, extent in zip(indices, buffer.shape, strict=True):
                position = position * extent + place
            known = self._flat[key] = (indices, position)
        return known[1]

    def _pointer(self, buffer: Buffer, flat: DimLike) -> Value:
        """The address of lane 0."""
        return index.pointer(self.names, buffer.base, memory_type(buffer.dtype), *index.first_lane(self.names, flat))

    def _pointers(self, buffer: Buffer, flat: DimLike, lanes: int) -> Value:
        """The addresses of all lanes."""
        kind, step = memory_type(buffer.dtype), index.lane_step(self.names, flat)
        if step is not None:
            base, offsets = self._pointer(buffer, flat), ops.iota(lanes, step=step)
        else:
            base, offsets = buffer.base, index.as_value(index.value(self.names, flat))
        depth = max(base.depth, offsets.depth)
        text = f"getelementptr {kind}, ptr {base.name}, {vector('i64', offsets.lanes)} {offsets.name}"
        return Value(self.fn.pure(text, depth), depth, offsets.lanes)

    # Loads ---------------------------------------------------------------------------------------------------

    def load(self, buffer: Buffer, indices: Shape, mask: Value | None, active: Value | None, lanes: int) -> Value:
        """The element at ``indices``; 0 where ``mask`` is false. ``active``: the lanes that run at all."""
        flat = self.flat(buffer, indices)
        if index.uniform(self.names, flat) and (mask is None or not mask.lanes):
            raw = self._scalar(buffer, self._pointer(buffer, flat), mask)
        else:
            raw = self._lanes(buffer, flat, self._both(mask, active), lanes)
        return self._from_memory(raw, buffer.dtype)

    def _load(self, buffer: Buffer, text: str, depth: int, lanes: int) -> Value:
        name, depth = self.fn.load(text, buffer.group, self.versions.get(buffer.group, 0), depth)
        return Value(name, depth, lanes)

    def _scalar(self, buffer: Buffer, pointer: Value, mask: Value | None) -> Value:
        if mask is not None:
            pointer = ops.select(self.fn, mask, "ptr", pointer, self._zeros())
        return self._load(buffer, f"load {memory_type(buffer.dtype)}, ptr {pointer.name}, align {buffer.dtype.bytes}", pointer.depth, 0)

    def _lanes(self, buffer: Buffer, flat: DimLike, mask: Value | None, lanes: int) -> Value:
        kind, align = memory_type(buffer.dtype), buffer.dtype.bytes
        wide = vector(kind, lanes)
        if index.lane_step(self.names, flat) == 1:
            if mask is None:
                pointer = self._pointer(buffer, flat)
                return self._load(buffer, f"load {wide}, ptr {pointer.name}, align {align}", pointer.depth, lanes)
            if self._maskable(buffer.dtype):
                pointer = self._pointer(buffer, flat)
                text = (
                    f"call {wide} @llvm.masked.load.{suffix(kind, lanes)}.p0(ptr align {align} {pointer.name}, "
                    f"<{lanes} x i1> {self._mask(mask, lanes)}, {wide} zeroinitializer)"
                )
                return self._load(buffer, text, max(pointer.depth, mask.depth), lanes)
        pointers = self._pointers(buffer, flat, lanes)
        if mask is not None:
            pointers = ops.select(self.fn, mask, "ptr", pointers, self._zeros())
        on = "splat (i1 true)"
        text = (
            f"call {wide} @llvm.masked.gather.{suffix(kind, lanes)}.v{lanes}p0(<{lanes} x ptr> align {align} "
            f"{ops.splat(self.fn, pointers, 'ptr', lanes)}, <{lanes} x i1> {on}, {wide} poison)"
        )
        return self._load(buffer, text, pointers.depth, lanes)

    def _from_memory(self, raw: Value, dtype: DType) -> Value:
        if dtype.kind == "b":
            return ops.binary(self.fn, "icmp ne", "i8", raw, Value("0"))
        if is_narrow(dtype):
            return Value(None, raw.depth, raw.lanes, raw.name)
        return self.casts.wrapped(raw, dtype)

    # Stores --------------------------------------------------------------------------------------------------

    def store(self, buffer: Buffer, indices: Shape, value: Value, mask: Value | None, active: Value | None, lanes: int) -> None:
        """Writes a value where ``mask`` holds."""
        flat = self.flat(buffer, indices)
        raw = self._to_memory(value, buffer.dtype)
        if index.uniform(self.names, flat) and not raw.lanes and (mask is None or not mask.lanes):
            self._store_scalar(buffer, self._pointer(buffer, flat), raw, mask)
        else:
            self._store_lanes(buffer, flat, raw, self._both(mask, active), lanes)
        self.touch(buffer.group)

    def touch(self, group: str) -> None:
        """Says that the buffers of a group changed."""
        self.versions[group] = self.versions.get(group, 0) + 1

    def _store_scalar(self, buffer: Buffer, pointer: Value, raw: Value, mask: Value | None) -> None:
        if mask is not None:
            pointer = ops.select(self.fn, mask, "ptr", pointer, self._sink_slot())
        self.fn.effect(f"store {memory_type(buffer.dtype)} {raw.name}, ptr {pointer.name}, align {buffer.dtype.bytes}")

    def _store_lanes(self, buffer: Buffer, flat: DimLike, raw: Value, mask: Value | None, lanes: int) -> None:
        kind, align = memory_type(buffer.dtype), buffer.dtype.bytes
        data = f"{vector(kind, lanes)} {ops.splat(self.fn, raw, kind, lanes)}"
        if index.lane_step(self.names, flat) == 1:
            if mask is None:
                self.fn.effect(f"store {data}, ptr {self._pointer(buffer, flat).name}, align {align}")
                return
            if self._maskable(buffer.dtype):
                pointer = self._pointer(buffer, flat)
                self.fn.effect(
                    f"call void @llvm.masked.store.{suffix(kind, lanes)}.p0({data}, ptr align {align} {pointer.name}, "
                    f"<{lanes} x i1> {self._mask(mask, lanes)})"
                )
                return
        pointers = self._pointers(buffer, flat, lanes)
        if mask is not None:
            pointers = ops.select(self.fn, mask, "ptr", pointers, self._sink_slot())
        self.fn.effect(
            f"call void @llvm.masked.scatter.{suffix(kind, lanes)}.v{lanes}p0({data}, <{lanes} x ptr> align {align} "
            f"{ops.splat(self.fn, pointers, 'ptr', lanes)}, <{lanes} x i1> splat (i1 true))"
        )

    def _to_memory(self, value: Value, dtype: DType) -> Value:
        if dtype.kind == "b":
            return ops.convert(self.fn, "zext", "i1", "i8", value)
        if is_narrow(dtype):
            return self.casts.bits(value, dtype)
        if dtype.kind == "i" and dtype.bits < 8:  # the upper bits of a stored byte are 0
            return ops.binary(self.fn, "and", "i8", value, Value(str((1 << dtype.bits) - 1)))
        return value

    # Masks ---------------------------------------------------------------------------------------------------

    def _both(self, a: Value | None, b: Value | None) -> Value | None:
        if a is None or b is None:
            return b if a is None else a
        return ops.binary(self.fn, "and", "i1", a, b)

    def _mask(self, mask: Value, lanes: int) -> str:
        return ops.splat(self.fn, mask, "i1", lanes)

    def _maskable(self, dtype: DType) -> bool:
        return dtype.bytes in self.target.mask_bytes

    def _zeros(self) -> Value:
        self.uses_zeros = True
        return Value(ZEROS)

    def _sink_slot(self) -> Value:
        if self._sink is None:
            self._sink = Value(self.fn.alloca("[16 x i8]", 16))
        return self._sink


__all__ = ["ZEROS", "Buffer", "Memory", "register_type"]
