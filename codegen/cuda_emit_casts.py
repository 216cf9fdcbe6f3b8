"""Conversions between element types as C, as ``ir/casts.py`` means them."""

from __future__ import annotations

from collections.abc import Callable

from tcompile.codegen.cuda_emit_types import bits_type, c_type, is_narrow
from tcompile.errors import InvalidModelError
from tcompile.ir import dtypes
from tcompile.ir.casts import integer_limits
from tcompile.ir.dtypes import BOOL, F32, F64, DType

Uses = Callable[[str], None]
_SATURATED = {"i32": "tc_to_int", "u32": "tc_to_uint", "i64": "tc_to_llong", "u64": "tc_to_ullong"}
_HAS_OVERFLOW = (dtypes.F16, dtypes.BF16, dtypes.F8E8M0)  # encoders without the choice to saturate


def widened(text: str, dtype: DType, uses: Uses) -> str:
    """A value in the type arithmetic is done in: narrow floats as f32."""
    if not is_narrow(dtype):
        return text
    uses(f"tc_{dtype}")
    return f"tc_from_{dtype}({text})"


def narrowed(text: str, dtype: DType, uses: Uses, *, saturate: bool) -> str:
    """An f32 rounded to a narrow float."""
    uses(f"tc_{dtype}")
    more = "" if dtype in _HAS_OVERFLOW else f", {str(saturate).lower()}"
    return f"tc_to_{dtype}({text}{more})"


def convert(text: str, source: DType, target: DType, uses: Uses, *, saturate: bool = True) -> str:
    """A value as another dtype. ``text`` binds as tight as a cast, and so does what is returned."""
    if source == target:
        return text
    text, source = widened(text, source, uses), source.compute
    if target == BOOL:
        return f"({text} != 0)"
    if target.is_integer:
        return _float_to_int(text, source, target, uses) if source.is_float else wrapped(text, target)
    if is_narrow(target):
        if source == F64:
            uses("tc_round_to_odd")
            text = f"tc_round_to_odd({text})"
        elif source != F32:
            text = f"(float){text}"
        return narrowed(text, target, uses, saturate=saturate)
    return text if source == target else f"({c_type(target)}){text}"


def wrapped(text: str, dtype: DType) -> str:
    """An integer kept to the low bits of an integer type."""
    if dtype.bits >= 8:
        return f"({c_type(dtype)}){text}"
    if dtype.kind == "u":
        return f"(unsigned char)({text} & {(1 << dtype.bits) - 1})"
    return f"(signed char)((int)((unsigned){text} << {32 - dtype.bits}) >> {32 - dtype.bits})"


def _float_to_int(text: str, source: DType, target: DType, uses: Uses) -> str:
    uses("tc_to_integer")
    if target.name in _SATURATED:
        return f"{_SATURATED[target.name]}({text})"
    low, high = integer_limits(target)
    return f"({c_type(target)})min(max(tc_to_int({text}), {low}), {high})"


def bitcast(text: str, source: DType, target: DType) -> str:
    """The same bits as a dtype of the same width."""
    if source.bits != target.bits:
        raise InvalidModelError(f"Bitcast: expected types of one width, got {source} and {target}")
    if source == target:
        return text
    raw = as_bits(text, source)
    if target.bits < 8 and not target.is_integer and target != BOOL:
        return f"({c_type(target)})({raw} & {(1 << target.bits) - 1})"
    if target.bits < 8 and target.is_integer:
        return wrapped(f"({raw})", target)
    return from_bits(raw, target)


def as_bits(text: str, dtype: DType) -> str:
    """A value as the unsigned integer of its storage."""
    if dtype == F32:
        return f"__float_as_uint({text})"
    if dtype == F64:
        return f"(unsigned long long)__double_as_longlong({text})"
    return text if is_narrow(dtype) or dtype.kind == "u" else f"({bits_type(dtype)}){text}"


def from_bits(text: str, dtype: DType) -> str:
    """A value of the unsigned integer of its storage."""
    if dtype == F32:
        return f"__uint_as_float({text})"
    if dtype == F64:
        return f"__longlong_as_double((long long)({text}))"
    if dtype == BOOL:
        return f"(({text}) != 0)"
    return f"({c_type(dtype)})({text})"
