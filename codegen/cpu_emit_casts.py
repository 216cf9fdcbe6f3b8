"""Conversions between element types, as ``ir/casts.py`` means them: none traps, none is poison."""

from __future__ import annotations

from tcompile.codegen import cpu_emit_lanes as ops
from tcompile.codegen import cpu_emit_narrow as narrow
from tcompile.codegen import cpu_emit_saturate as saturate
from tcompile.codegen.cpu_emit_function import Function
from tcompile.codegen.cpu_emit_values import Value, is_narrow, register_type
from tcompile.errors import InvalidModelError
from tcompile.ir.dtypes import F32, F64, DType
from tcompile.ir.target import Target


class Casts:
    """The conversions of one function, and what of the target its operations depend on."""

    def __init__(self, fn: Function, target: Target) -> None:
        self.fn = fn
        self.half = target.half
        self.nan_minmax = target.nan_minmax
        self.vector_bytes = target.vector_bytes
        self.saturating = target.saturating_casts
        self.arch, self.features = target.arch, frozenset(target.features)

    def lanes_of(self, dtype: DType) -> int:
        """Elements of a 32- or 64-bit type that one vector register holds."""
        return self.vector_bytes // dtype.bytes

    # Narrow floats: two forms of one value ------------------------------------------------------------------

    def wide(self, value: Value, dtype: DType) -> Value:
        """A value in the form arithmetic uses: narrow floats as f32."""
        if not is_narrow(dtype) or value.name is not None:
            return value
        if value.narrow is None:
            value.narrow = narrow.decode(self.fn, Value(value.bits, value.depth, value.lanes), dtype, half=self.half)
        return value.narrow

    def bits(self, value: Value, dtype: DType) -> Value:
        """The stored bits of a narrow float."""
        if value.bits is not None:
            return Value(value.bits, value.depth, value.lanes)
        raise InvalidModelError(f"a {dtype} value without its bits")

    def narrowed(self, value: Value, dtype: DType, saturating: bool = False) -> Value:
        """An f32 rounded to a narrow float."""
        code = narrow.encode(self.fn, value, dtype, saturate=saturating, half=self.half)
        return Value(None, code.depth, code.lanes, code.name)

    # Integers narrower than a byte ---------------------------------------------------------------------------

    def wrapped(self, value: Value, dtype: DType) -> Value:
        """An i8 brought to the range of a sub-byte type (others: unchanged)."""
        if not dtype.is_integer or dtype.bits >= 8:
            return value
        if dtype.kind == "u":
            return ops.binary(self.fn, "and", "i8", value, Value(str((1 << dtype.bits) - 1)))
        shift = Value(str(8 - dtype.bits))
        return ops.binary(self.fn, "ashr", "i8", ops.binary(self.fn, "shl", "i8", value, shift), shift)

    # Conversions ---------------------------------------------------------------------------------------------

    def convert(self, value: Value, source: DType, target: DType, saturating: bool = True) -> Value:
        """The value as another dtype."""
        if source == target:
            return value
        value = self.wide(value, source)
        if source.is_float:
            source = source.compute
        if target.kind == "b":
            return self._to_bool(value, source)
        if target.is_integer:
            return self._float_to_int(value, source, target) if source.is_float else self._int_to_int(value, source, target)
        return self._to_float(value, source, target, saturating)

    def bitcast(self, value: Value, source: DType, target: DType) -> Value:
        """The same bits as a dtype of the same width."""
        if source.bits != target.bits:
            raise InvalidModelError(f"Bitcast: expected types of one width, got {source} and {target}")
        if source == target:
            return value
        if is_narrow(source):
            value, from_type = self.bits(value, source), f"i{8 * source.bytes}"
        else:
            from_type = register_type(source)
        if is_narrow(target):
            if target.bits < 8:
                value = ops.binary(self.fn, "and", "i8", value, Value(str((1 << target.bits) - 1)))
            return Value(None, value.depth, value.lanes, value.name)
        if from_type != register_type(target):
            value = ops.convert(self.fn, "bitcast", from_type, register_type(target), value)
        return self.wrapped(value, target)

    def _to_bool(self, value: Value, source: DType) -> Value:
        if source.is_float:
            return ops.binary(self.fn, "fcmp une", register_type(source), value, Value("0x0000000000000000"))
        return ops.binary(self.fn, "icmp ne", register_type(source), value, Value("0"))

    def _int_to_int(self, value: Value, source: DType, target: DType) -> Value:
        have, want = register_type(source), register_type(target)
        if have != want:
            wider = int(want[1:]) > int(have[1:])
            value = ops.convert(self.fn, ("sext" if source.kind == "i" else "zext") if wider else "trunc", have, want, value)
        return self.wrapped(value, target)

    def _float_to_int(self, value: Value, source: DType, target: DType) -> Value:
        if self.saturating:
            return saturate.by_intrinsic(self.fn, value, source, target)
        if target.bits < source.bits:
            return saturate.clamped(self.fn, value, source, target, self.lanes_of(source))
        return saturate.guarded(self.fn, value, source, target)

    def _to_float(self, value: Value, source: DType, target: DType, saturating: bool) -> Value:
        if is_narrow(target):
            if source == F64:
                value = narrow.round_to_odd(self.fn, value)
            elif source != F32:
                value = self._to_float(value, source, F32, saturating)
            return self.narrowed(value, target, saturating)
        if source == target:
            return value
        if source.is_float:
            return ops.convert(
                self.fn, "fpext" if target.bits > source.bits else "fptrunc", register_type(source), register_type(target), value
            )
        return ops.convert(self.fn, "sitofp" if source.kind == "i" else "uitofp", register_type(source), register_type(target), value)
