"""The elementwise functions: one table that the graph's ``map``, the Loop IR's ``Op`` and every backend read.

Operands of one function have one dtype (``where``: a bool, then two of one dtype) and the result has it too,
except that comparisons and predicates give bool. Floats narrower than 32 bits compute in f32 and round after
each function. Integers wrap. No function traps:

    div, mod, fmod by an integer 0 give 0; INT_MIN div -1 is INT_MIN; div truncates towards zero
    mod has the divisor's sign (integers); fmod the dividend's (integers and floats)
    pow of integers wraps; a negative exponent truncates 1 / x**n (so 0 unless x is 1 or -1)
    shl, shr by less than 0 or at least the width give 0; shr of a signed type is arithmetic
    sigmoid and silu may give 0 for what is near the least normal numbers (below 256 times the least of f32 or f64)
    min, max propagate NaN; round is half to even; sign(NaN) is NaN; and/or/xor/not are bitwise
    dot2, dot4 take i32 words apart (the lowest bits first) and add the products of their parts to the third operand:
    two signed halves each; four bytes each, unsigned those of the first operand and signed those of the second;
    add2 adds the halves of i32 words apart, each wraps; pairs4 adds the products of their bytes, unsigned by signed, two and two
    into halves, which saturate
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tcompile.errors import InvalidModelError
from tcompile.ir import dtypes
from tcompile.ir.casts import convert, wrap
from tcompile.ir.dtypes import BOOL, I32, DType
from tcompile.ir.special import erf, fma

Meaning = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Elementwise:
    """One row: ``kinds`` are the operand kinds allowed (f, i, u, b), ``ulp`` the error a backend may have in f32.

    ``wide`` says that the NumPy meaning of f32 is computed in f64 and rounded, so that the oracle is exact; ``flushes``, that
    backends may give 0 for what is below 256 times the least normal number of f32 or f64; ``only`` names the one dtype that a
    function of words takes.
    """

    name: str
    arity: int
    kinds: str
    meaning: Meaning
    predicate: bool = False  # the result is bool
    wide: bool = False
    ulp: float = 0.0
    flushes: bool = False
    only: DType | None = None

    def takes(self, dtype: DType) -> bool:
        """Whether operands (of ``where``: the chosen ones) may have a dtype."""
        return dtype.kind in self.kinds and self.only in (None, dtype)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return a / b
    # q == floor(a / b) moved up by one where the division is inexact and the signs differ
    safe = np.where((b == 0) | (b == a.dtype.type(-1) if a.dtype.kind == "i" else b == 0), a.dtype.type(1), b)
    q = np.floor_divide(a, safe)
    q = q + ((q * safe != a) & ((a < 0) != (safe < 0))).astype(a.dtype)
    if a.dtype.kind == "i":
        q = np.where(b == -1, np.negative(a), q)
    return np.where(b == 0, a.dtype.type(0), q)


def _modulo(function: Meaning) -> Meaning:
    def modulo(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if a.dtype.kind == "f":
            return function(a, b)
        # x mod 0 is 0 by definition, x mod -1 is 0: both as x mod 1, which cannot trap
        unsafe = (b == 0) | (b == -1) if a.dtype.kind == "i" else b == 0
        return function(a, np.where(unsafe, a.dtype.type(1), b))

    return modulo


def _power(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return np.power(a, b)
    if a.dtype.kind == "u":
        return np.power(a, b)
    positive = np.power(a, np.maximum(b, 0))
    unit = np.where(a == 1, 1, np.where(a == -1, np.where(b % 2 == 0, 1, -1), 0)).astype(a.dtype)
    return np.where(b < 0, unit, positive)


def _shift(function: Meaning) -> Meaning:
    def shift(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        outside = (b < 0) | (b >= a.dtype.itemsize * 8)
        return np.where(outside, a.dtype.type(0), function(a, np.where(outside, b.dtype.type(0), b)))

    return shift


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _dot(parts: tuple[type, type]) -> Meaning:
    """c + the products of the parts of a and b, which wraps."""

    def dot(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        left, right = (np.ascontiguousarray(x, np.int32)[..., None].view(part) for x, part in zip((a, b), parts, strict=True))
        products = left.astype(np.int64) * right.astype(np.int64)
        return (products.sum(axis=-1) + c).astype(np.int32)

    return dot


def _add_halves(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sums of the halves of a and b, which wrap."""
    left, right = (np.ascontiguousarray(x, np.int32)[..., None].view(np.int16) for x in np.broadcast_arrays(a, b))
    return (left + right).view(np.int32)[..., 0]


def _pairs_of_bytes(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The products of the unsigned bytes of a and the signed ones of b, two and two added into halves, which saturate."""
    both = zip(np.broadcast_arrays(a, b), (np.uint8, np.int8), strict=True)
    left, right = (np.ascontiguousarray(x, np.int32)[..., None].view(part).astype(np.int32) for x, part in both)
    products = (left * right).reshape(*left.shape[:-1], 2, 2).sum(axis=-1)
    return np.clip(products, -(2**15), 2**15 - 1).astype(np.int16).view(np.int32)[..., 0]


def _row(name: str, arity: int, kinds: str, meaning: Meaning, **more: object) -> Elementwise:
    return Elementwise(name, arity, kinds, meaning, **more)


def _wide(name: str, meaning: Meaning, ulp: float, arity: int = 1, *, flushes: bool = False) -> Elementwise:
    return Elementwise(name, arity, "f", meaning, wide=True, ulp=ulp, flushes=flushes)


_ROWS = (
    _row("add", 2, "fiu", np.add),
    _row("sub", 2, "fiu", np.subtract),
    _row("mul", 2, "fiu", np.multiply),
    _row("div", 2, "fiu", _divide),
    _row("mod", 2, "iu", _modulo(np.remainder)),
    _row("fmod", 2, "fiu", _modulo(np.fmod)),
    Elementwise("pow", 2, "fiu", _power, wide=True, ulp=4),
    _row("min", 2, "fiu", np.minimum),
    _row("max", 2, "fiu", np.maximum),
    _row("neg", 1, "fiu", np.negative),
    _row("abs", 1, "fiu", np.abs),
    _row("sign", 1, "fiu", np.sign),
    _row("ceil", 1, "f", np.ceil),
    _row("floor", 1, "f", np.floor),
    _row("round", 1, "f", np.rint),
    _row("trunc", 1, "f", np.trunc),
    _row("sqrt", 1, "f", np.sqrt),
    _wide("rsqrt", lambda x: 1 / np.sqrt(x), 2),
    _row("recip", 1, "f", lambda x: x.dtype.type(1) / x),
    _wide("exp", np.exp, 2),
    _wide("log", np.log, 2),
    _wide("log1p", np.log1p, 4),
    _wide("expm1", np.expm1, 4),
    _wide("sin", np.sin, 4),
    _wide("cos", np.cos, 4),
    _wide("tan", np.tan, 4),
    _wide("asin", np.arcsin, 4),
    _wide("acos", np.arccos, 4),
    _wide("atan", np.arctan, 4),
    _wide("atan2", np.arctan2, 4, arity=2),
    _wide("sinh", np.sinh, 4),
    _wide("cosh", np.cosh, 4),
    _wide("tanh", np.tanh, 6),
    _wide("asinh", np.arcsinh, 4),
    _wide("acosh", np.arccosh, 4),
    _wide("atanh", np.arctanh, 4),
    _wide("erf", erf, 6),
    _wide("silu", _silu, 7, flushes=True),  # x sigmoid(x)
    _wide("sigmoid", _sigmoid, 6, flushes=True),  # 4 but far left, where the shorter reduction that gates are worth errs by more
    _row("fma", 3, "f", fma),
    _row("and", 2, "biu", np.bitwise_and),
    _row("or", 2, "biu", np.bitwise_or),
    _row("xor", 2, "biu", np.bitwise_xor),
    _row("not", 1, "biu", np.invert),
    _row("shl", 2, "iu", _shift(np.left_shift)),
    _row("shr", 2, "iu", _shift(np.right_shift)),
    _row("eq", 2, "fiub", np.equal, predicate=True),
    _row("ne", 2, "fiub", np.not_equal, predicate=True),
    _row("lt", 2, "fiu", np.less, predicate=True),
    _row("le", 2, "fiu", np.less_equal, predicate=True),
    _row("gt", 2, "fiu", np.greater, predicate=True),
    _row("ge", 2, "fiu", np.greater_equal, predicate=True),
    _row("isnan", 1, "f", np.isnan, predicate=True),
    _row("isinf", 1, "f", np.isinf, predicate=True),
    _row("where", 3, "fiub", np.where),
    _row("dot2", 3, "i", _dot((np.int16, np.int16)), only=I32),
    _row("dot4", 3, "i", _dot((np.uint8, np.int8)), only=I32),
    _row("add2", 2, "i", _add_halves, only=I32),
    _row("pairs4", 2, "i", _pairs_of_bytes, only=I32),
)
TABLE = {row.name: row for row in _ROWS}


def result_dtype(fn: str, operands: Sequence[DType]) -> DType:
    """The dtype of ``fn`` over operand dtypes. Raises InvalidModelError for an unknown fn, wrong arity or dtypes."""
    row = TABLE.get(fn)
    if row is None:
        raise InvalidModelError(f"map: expected a function of the elementwise table, got {fn!r}", hint=f"one of {', '.join(TABLE)}")
    if len(operands) != row.arity:
        raise InvalidModelError(f"map {fn}: expected {row.arity} operands, got {len(operands)}")
    values = operands[1:] if fn == "where" else operands
    if fn == "where" and operands[0] != BOOL:
        raise InvalidModelError(f"map where: expected a bool condition, got {operands[0]}")
    if any(dtype != values[0] for dtype in values):
        raise InvalidModelError(f"map {fn}: expected operands of one dtype, got {', '.join(map(str, operands))}")
    if values[0].kind not in row.kinds:
        raise InvalidModelError(f"map {fn}: expected a dtype of the kinds {', '.join(row.kinds)}, got {values[0]}")
    if not row.takes(values[0]):
        raise InvalidModelError(f"map {fn}: expected {row.only}, got {values[0]}")
    return BOOL if row.predicate else values[0]


def apply(fn: str, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """What ``fn`` computes, by NumPy, on arrays of shapes that broadcast. Raises as ``result_dtype``."""
    arrays = [np.asarray(array) for array in arrays]
    operands = [dtypes.from_numpy(array.dtype) for array in arrays]
    result = result_dtype(fn, operands)
    row, operand = TABLE[fn], operands[-1]
    with np.errstate(all="ignore"):
        if fn == "where":
            return np.asarray(np.where(*arrays))
        if operand.is_float and operand.bits < 64 and row.wide:
            arrays = [convert(array, dtypes.F64) for array in arrays]
        elif operand.is_float and operand.bits < 32:
            arrays = [convert(array, dtypes.F32) for array in arrays]
        elif operand.is_integer and operand.bits < 8:
            return _apply_sub_byte(row, arrays, operand, result)
        return convert(np.asarray(row.meaning(*arrays)), result, saturate=False)


def _apply_sub_byte(row: Elementwise, arrays: Sequence[np.ndarray], operand: DType, result: DType) -> np.ndarray:
    wide = np.int8 if operand.kind == "i" else np.uint8
    values = [array.astype(wide) for array in arrays]
    out = np.asarray(row.meaning(*values))
    if row.name in ("shl", "shr"):  # the width is the type's, not its storage's
        out = np.where((values[1] < 0) | (values[1] >= operand.bits), wide(0), out)
    return out if result == BOOL else wrap(out, result)
