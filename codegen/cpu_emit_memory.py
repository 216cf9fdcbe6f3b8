"""Loads and stores of memory buffers: contiguous vectors, one element for all lanes, gathers and scatters, masks.

    index steps by 1 a lane       ->  one vector load, alignment of the element
    same index on all lanes       ->  scalar load, splatted where used
    small constant steps (loads)  ->  vector loads and shuffles
    anything else                 ->  gather or scatter over pointers (LLVM takes it apart where there is no instruction)

A masked access without an instruction for it selects addresses: lanes that are off read a constant zero, or
write a sink, so that no branch is needed and nothing outside the buffer is touched.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.codegen import cpu_emit_index as index
from tcompile.codegen import cpu_emit_lanes as ops
from tcompile.codegen import cpu_emit_spread as spread
from tcompile.codegen.cpu_emit_bounds import Bounds
from tcompile.codegen.cpu_emit_casts import Casts
from tcompile.codegen.cpu_emit_function import Function
from tcompile.codegen.cpu_emit_index import Names
from tcompile.codegen.cpu_emit_spread import Spread
from tcompile.codegen.cpu_emit_values import Value, is_narrow, memory_type, suffix, vector
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.target import Target

_NEAR = 4  # vectors that a load of scattered constants distances may span
ZEROS = "@tc.zeros"  # zero bytes: what a masked-off lane, or a vector of them, reads
ZERO_BYTES = 128


@dataclass
class Buffer:
    """Elements in memory. ``group`` names what its stores may change: buffers that may be one share it."""

    name: str
    dtype: DType
    shape: Shape
    base: Value
    group: str


@dataclass(frozen=True)
class Access:
    """Elements at ``pointer`` + numbers: None is the same for all lanes; constants start with 0. ``width``: i32 or i64 numbers."""

    pointer: Value
    numbers: spread.Numbers | None = None
    width: str = "i32"


class Memory:
    """Emits the accesses of one function. ``mask`` is what holds on the active lanes (None: all)."""

    def __init__(self, fn: Function, names: Names, casts: Casts, target: Target) -> None:
        self.fn = fn
        self.names = names
        self.casts = casts
        self.target = target
        self.versions: dict[str, int] = {}
        self.uses_zeros = False
        self.bounds: Bounds | None = None  # of a checked build
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

    def _access(self, buffer: Buffer, indices: Shape) -> Access:
        """Where the elements of the lanes lie."""
        flat, kind, fn = self.flat(buffer, indices), memory_type(buffer.dtype), self.fn
        if index.uniform(self.names, flat):
            return Access(index.pointer(self.names, buffer.base, kind, *index.scalars(self.names, flat)))
        found = spread.spread(self.names, flat)
        if found is None:
            return Access(buffer.base, index.as_value(index.value(self.names, flat)), "i64")
        one = spread.joined(fn, found)
        constant, numbers = found.constant, one and one.numbers
        if isinstance(numbers, tuple):
            constant, numbers = constant + numbers[0], tuple(number - numbers[0] for number in numbers)
        pointer = index.pointer(self.names, buffer.base, kind, constant, found.terms)
        if numbers is None:
            return Access(pointer, spread.vector(fn, Spread(found.lanes, offsets=found.offsets)), "i64")
        return Access(pointer, numbers if not isinstance(numbers, tuple) or any(numbers) else None)

    def _pointers(self, access: Access, kind: str, lanes: int) -> Value:
        """The addresses of all lanes."""
        if access.numbers is None:
            return ops.widened(self.fn, access.pointer, "ptr", lanes)
        offsets = spread.as_vector(access.numbers)
        depth = max(access.pointer.depth, offsets.depth)
        text = f"getelementptr {kind}, ptr {access.pointer.name}, <{lanes} x {access.width}> {offsets.name}"
        return Value(self.fn.pure(text, depth), depth, lanes)

    def _check(self, buffer: Buffer, access: Access, mask: Value | None, lanes: int) -> None:
        if self.bounds is not None:
            pointers = access.pointer if access.numbers is None else self._pointers(access, memory_type(buffer.dtype), lanes)
            self.bounds.check(buffer.base, buffer.dtype, buffer.shape, pointers, mask)

    # Loads ---------------------------------------------------------------------------------------------------

    def load(self, buffer: Buffer, indices: Shape, mask: Value | None, active: Value | None, lanes: int) -> Value:
        """The element at ``indices``; 0 where ``mask`` is false. ``active``: the lanes that run at all."""
        access = self._access(buffer, indices)
        if access.numbers is None and (mask is None or not mask.lanes):
            self._check(buffer, access, mask, 0)
            raw = self._scalar(buffer, access.pointer, mask)
        else:
            some = self._both(mask, active)
            self._check(buffer, access, some, lanes)
            raw = self._lanes(buffer, access, some, lanes)
        return self._from_memory(raw, buffer.dtype)

    def _load(self, buffer: Buffer, text: str, depth: int, lanes: int) -> Value:
        name, depth = self.fn.load(text, buffer.group, self.versions.get(buffer.group, 0), depth)
        return Value(name, depth, lanes)

    def _scalar(self, buffer: Buffer, pointer: Value, mask: Value | None) -> Value:
        if mask is not None:
            pointer = ops.select(self.fn, mask, "ptr", pointer, self._zeros())
        return self._load(buffer, f"load {memory_type(buffer.dtype)}, ptr {pointer.name}, align {buffer.dtype.bytes}", pointer.depth, 0)

    def _lanes(self, buffer: Buffer, access: Access, mask: Value | None, lanes: int) -> Value:
        if mask is None:
            return self._near(buffer, access, lanes) or self._gather(buffer, access, None, lanes)
        if access.numbers == tuple(range(lanes)) and self._maskable(buffer.dtype):
            kind, align = memory_type(buffer.dtype), buffer.dtype.bytes
            wide = vector(kind, lanes)
            text = (
                f"call {wide} @llvm.masked.load.{suffix(kind, lanes)}.p0(ptr align {align} {access.pointer.name}, "
                f"<{lanes} x i1> {self._mask(mask, lanes)}, {wide} zeroinitializer)"
            )
            return self._load(buffer, text, max(access.pointer.depth, mask.depth), lanes)
        if access.numbers == tuple(range(lanes)) and not mask.lanes and lanes * buffer.dtype.bytes <= ZERO_BYTES:
            return self._whole(buffer, ops.select(self.fn, mask, "ptr", access.pointer, self._zeros()), 0, lanes)
        return self._gather(buffer, access, mask, lanes)

    def _near(self, buffer: Buffer, access: Access, lanes: int) -> Value | None:
        """Elements at constant distances by whole vectors that reach from the first to the last of them, and shuffles."""
        numbers = access.numbers
        if not isinstance(numbers, tuple):
            return None
        low, span = min(numbers), max(numbers) - min(numbers) + 1
        if span < lanes or span > _NEAR * lanes:
            return None
        # the last vector ends with the last element: nothing beyond what the lanes themselves touch is read
        starts = [*range(low, low + span - lanes, lanes), low + span - lanes]
        result: Value | None = None
        filled: set[int] = set()
        for start in starts:
            part = self._whole(buffer, access.pointer, start, lanes)
            mine = {k for k, number in enumerate(numbers) if start <= number < start + lanes} - filled
            places = [numbers[k] - start if k in mine else None for k in range(lanes)]
            result = self._blend(part, result, places, memory_type(buffer.dtype), lanes)
            filled |= mine
        return result

    def _whole(self, buffer: Buffer, pointer: Value, start: int, lanes: int) -> Value:
        kind = memory_type(buffer.dtype)
        if start:
            pointer = Value(self.fn.pure(f"getelementptr {kind}, ptr {pointer.name}, i64 {start}", pointer.depth), pointer.depth)
        return self._load(buffer, f"load {vector(kind, lanes)}, ptr {pointer.name}, align {buffer.dtype.bytes}", pointer.depth, lanes)

    def _blend(self, part: Value, before: Value | None, places: list[int | None], kind: str, lanes: int) -> Value:
        """Lane k: part[places[k]], or what it was before."""
        if places == list(range(lanes)):
            return part
        if before is None:
            return ops.shuffle(self.fn, part, part, kind, [place or 0 for place in places])
        return ops.shuffle(self.fn, part, before, kind, [lanes + k if place is None else place for k, place in enumerate(places)])

    def _gather(self, buffer: Buffer, access: Access, mask: Value | None, lanes: int) -> Value:
        kind, align = memory_type(buffer.dtype), buffer.dtype.bytes
        pointers = self._pointers(access, kind, lanes)
        if mask is not None:
            pointers = ops.select(self.fn, mask, "ptr", pointers, self._zeros())
        wide = vector(kind, lanes)
        text = (
            f"call {wide} @llvm.masked.gather.{suffix(kind, lanes)}.v{lanes}p0(<{lanes} x ptr> align {align} "
            f"{pointers.name}, <{lanes} x i1> splat (i1 true), {wide} poison)"
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
        access = self._access(buffer, indices)
        raw = self._to_memory(value, buffer.dtype)
        if access.numbers is None and not raw.lanes and (mask is None or not mask.lanes):
            self._check(buffer, access, mask, 0)
            self._store_scalar(buffer, access.pointer, raw, mask)
        else:
            some = self._both(mask, active)
            self._check(buffer, access, some, lanes)
            self._store_lanes(buffer, access, raw, some, lanes)
        self.touch(buffer.group)

    def touch(self, group: str) -> None:
        """Says that the buffers of a group changed."""
        self.versions[group] = self.versions.get(group, 0) + 1

    def _store_scalar(self, buffer: Buffer, pointer: Value, raw: Value, mask: Value | None) -> None:
        if mask is not None:
            pointer = ops.select(self.fn, mask, "ptr", pointer, self._sink_slot())
        self.fn.effect(f"store {memory_type(buffer.dtype)} {raw.name}, ptr {pointer.name}, align {buffer.dtype.bytes}")

    def _store_lanes(self, buffer: Buffer, access: Access, raw: Value, mask: Value | None, lanes: int) -> None:
        kind, align = memory_type(buffer.dtype), buffer.dtype.bytes
        data = f"{vector(kind, lanes)} {ops.splat(self.fn, raw, kind, lanes)}"
        if access.numbers == tuple(range(lanes)):
            if mask is None:
                self.fn.effect(f"store {data}, ptr {access.pointer.name}, align {align}")
                return
            if self._maskable(buffer.dtype):
                self.fn.effect(
                    f"call void @llvm.masked.store.{suffix(kind, lanes)}.p0({data}, ptr align {align} {access.pointer.name}, "
                    f"<{lanes} x i1> {self._mask(mask, lanes)})"
                )
                return
        pointers = self._pointers(access, kind, lanes)
        if mask is not None:
            pointers = ops.select(self.fn, mask, "ptr", pointers, self._sink_slot())
        self.fn.effect(
            f"call void @llvm.masked.scatter.{suffix(kind, lanes)}.v{lanes}p0({data}, <{lanes} x ptr> align {align} "
            f"{pointers.name}, <{lanes} x i1> splat (i1 true))"
        )

    def prefetch(self, buffer: Buffer, indices: Shape, *, near: bool) -> None:
        """Asks for the cache line of an element, in the L2 or the L1 cache."""
        pointer = self._access(buffer, indices).pointer
        self.fn.effect(f"call void @llvm.prefetch.p0(ptr {pointer.name}, i32 0, i32 {3 if near else 2}, i32 1)")

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
