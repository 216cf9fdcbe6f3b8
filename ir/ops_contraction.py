"""Core ops that multiply and add: dot_general and conv.

Both accumulate in the compute type of ``dtype`` (f32 for narrower floats, i32 for 8-bit integers by the importer's
choice of ``dtype``); integers wrap. 8- and 16-bit integer operands may differ in type, as may f32 and 16-bit floats.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from tcompile.errors import ExecutionError
from tcompile.ir import dims, dtypes
from tcompile.ir.casts import convert, wrap
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import TensorType
from tcompile.ir.opspec import (
    Arrays,
    Attrs,
    Env,
    OpSpec,
    RuleError,
    Tolerance,
    Types,
    concrete,
    differ,
    need,
    need_extents,
    need_length,
    register,
)


def _need_factors(a: DType, b: DType, result: DType) -> None:
    mixed = a.is_integer and b.is_integer and max(a.bits, b.bits) <= 16
    narrow = dtypes.F32 in (a, b) and {a, b} <= {dtypes.F32, dtypes.F16, dtypes.BF16}
    allowed = "factors of one number type, of integers up to 16 bits, or of f32 and a 16-bit float"
    need((a == b or mixed or narrow) and a.kind != "b", allowed, f"{a}, {b}")
    need(result.is_float == a.is_float and result.kind != "b", f"a result of the kind of {a}", result)


def _accumulate(a: np.ndarray, b: np.ndarray, dtype: DType, terms: int, product) -> np.ndarray:
    """Runs ``product`` on operands of the type that accumulates, and rounds or wraps the result to ``dtype``."""
    kinds = [dtypes.from_numpy(array.dtype) for array in (a, b)]
    if dtype.is_float:
        wide = max((dtype.compute, *(kind.compute for kind in kinds)), key=lambda kind: kind.bits)
        with np.errstate(all="ignore"):
            return convert(product(convert(a, wide), convert(b, wide)), dtype, saturate=False)
    if sum(kind.bits for kind in kinds) + math.ceil(math.log2(max(terms, 1))) <= 53:
        exact = product(a.astype(np.float64), b.astype(np.float64))  # f64 holds the sums exactly, and is faster
        return wrap(exact.astype(np.int64), dtype)
    return wrap(product(wrap(a, dtypes.I64), wrap(b, dtypes.I64)), dtype)


# dot_general ------------------------------------------------------------------------------------------------


def free_axes(rank: int, batch: Sequence[int], contract: Sequence[int]) -> tuple[int, ...]:
    """The axes that are neither batch nor contracted, in order."""
    return tuple(axis for axis in range(rank) if axis not in batch and axis not in contract)


def _infer_dot(types: Types, attrs: Attrs, regions: object) -> Types:
    a, b = types
    _need_factors(a.dtype, b.dtype, attrs["dtype"])
    need(len(attrs["batch"]) == 2 and len(attrs["contract"]) == 2, "a pair of axis lists", f"{attrs['batch']}, {attrs['contract']}")
    for type_, batch, contract in zip(types, attrs["batch"], attrs["contract"], strict=True):
        used = (*batch, *contract)
        need(len(set(used)) == len(used) and all(0 <= k < type_.rank for k in used), f"distinct axes of {type_}", used)
    for ours, theirs in (attrs["batch"], attrs["contract"]):
        need(len(ours) == len(theirs), "as many axes of both operands", f"{ours}, {theirs}")
        if any(differ(a.shape[i], b.shape[j]) for i, j in zip(ours, theirs, strict=True)):
            raise RuleError(f"equal extents on axes {ours} and {theirs}", f"{a}, {b}")
    free = [[t.shape[k] for k in free_axes(t.rank, x, y)] for t, x, y in zip(types, attrs["batch"], attrs["contract"], strict=True)]
    return (TensorType(attrs["dtype"], (*(a.shape[k] for k in attrs["batch"][0]), *free[0], *free[1])),)


def _evaluate_dot(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    (a, b), (batch_a, batch_b), (contract_a, contract_b) = arrays, attrs["batch"], attrs["contract"]
    free_a, free_b = free_axes(a.ndim, batch_a, contract_a), free_axes(b.ndim, batch_b, contract_b)
    batch, rows, columns = ([x.shape[k] for k in axes] for x, axes in ((a, batch_a), (a, free_a), (b, free_b)))
    same_batch = batch == [b.shape[k] for k in batch_b]
    if same_batch and 0 in (*batch, *rows, *columns):  # no terms to pair
        return (np.zeros((*batch, *rows, *columns), attrs["dtype"].numpy),)
    if not same_batch or [a.shape[k] for k in contract_a] != [b.shape[k] for k in contract_b]:
        raise ExecutionError(f"dot_general: the extents of {list(a.shape)} and {list(b.shape)} do not fit")
    terms = math.prod(a.shape[k] for k in contract_a)
    left = a.transpose(*batch_a, *free_a, *contract_a).reshape(math.prod(batch), math.prod(rows), terms)
    right = b.transpose(*batch_b, *contract_b, *free_b).reshape(math.prod(batch), terms, math.prod(columns))
    return (_accumulate(left, right, attrs["dtype"], terms, np.matmul).reshape((*batch, *rows, *columns)),)


register(
    OpSpec(
        "dot_general",
        "dot_general(a, b) {batch, contract, dtype}: out axes are batch, a's free, b's free; axis lists are (of a, of b).",
        operands=(2, 2),
        attrs={"batch": "int pairs", "contract": "int pairs", "dtype": "dtype"},
        infer=_infer_dot,
        evaluate=_evaluate_dot,
        tolerance=Tolerance(ulp=2, grows=True),
    )
)

# conv -------------------------------------------------------------------------------------------------------


def dilated(extent: DimLike, dilation: int) -> DimLike:
    """The extent after dilation - 1 zeros are put between neighbours.

    Of no elements it is what ONNX's formulas make of it, 1 - dilation, whether 0 is known or a symbol's value.
    """
    return extent if dilation == 1 else (extent - 1) * dilation + 1


def window_count(extent: DimLike, window: DimLike, stride: int, dilation: int, low: DimLike, high: DimLike) -> DimLike:
    """How many windows fit on a padded axis."""
    return dims.floordiv(extent + low + high - dilated(window, dilation), stride) + 1


def _infer_conv(types: Types, attrs: Attrs, regions: object) -> Types:
    x, w = types
    _need_factors(x.dtype, w.dtype, attrs["dtype"])
    need(x.rank == w.rank >= 3, "operands N C spatial and O I spatial of one rank", f"{x}, {w}")
    for name in ("strides", "lhs_dilation", "dilation", "low", "high"):
        need_length(name, attrs[name], x.rank - 2)
    need(min((*attrs["strides"], *attrs["lhs_dilation"], *attrs["dilation"])) >= 1, "strides and dilations of at least 1", attrs["strides"])
    need_extents((*attrs["low"], *attrs["high"]))
    groups, outputs, inputs = attrs["groups"], w.shape[0], w.shape[1]
    need(groups >= 1 and not (isinstance(outputs, int) and outputs % groups), f"output channels in {groups} groups", outputs)
    if differ(x.shape[1], inputs * groups):
        raise RuleError(f"{groups} groups of {inputs} input channels", x.shape[1])
    spatial = tuple(
        window_count(dilated(n, lhs), k, stride, dilation, low, high)
        for n, k, stride, lhs, dilation, low, high in zip(x.shape[2:], w.shape[2:], *_geometry(attrs), strict=True)
    )
    need_extents(spatial)
    return (TensorType(attrs["dtype"], (x.shape[0], outputs, *spatial)),)


def _geometry(attrs: Attrs) -> tuple[Sequence, ...]:
    return tuple(attrs[name] for name in ("strides", "lhs_dilation", "dilation", "low", "high"))


def _evaluate_conv(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, w = arrays
    low, high = concrete(attrs["low"], env), concrete(attrs["high"], env)
    if x.shape[1] != w.shape[1] * attrs["groups"]:
        raise ExecutionError(f"conv: {x.shape[1]} channels do not fit weights of shape {list(w.shape)}")

    def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return _convolve(_spread(x, attrs["lhs_dilation"], low, high), w, attrs["strides"], attrs["dilation"], attrs["groups"])

    return (_accumulate(x, w, attrs["dtype"], math.prod(w.shape[1:]), product),)


def _spread(x: np.ndarray, dilation: Sequence[int], low: Sequence[int], high: Sequence[int]) -> np.ndarray:
    """x with zeros between and around the elements of its spatial axes."""
    if {*low, *high} <= {0} and set(dilation) <= {1}:
        return x
    inner = [dilated(n, d) for n, d in zip(x.shape[2:], dilation, strict=True)]
    out = np.zeros((*x.shape[:2], *(max(a + n + b, 0) for a, n, b in zip(low, inner, high, strict=True))), x.dtype)
    if x.size:
        out[(..., *(slice(a, a + n, d) for a, n, d in zip(low, inner, dilation, strict=True)))] = x
    return out


def _convolve(x: np.ndarray, w: np.ndarray, strides: Sequence[int], dilation: Sequence[int], groups: int) -> np.ndarray:
    batch, kernel = x.shape[0], w.shape[2:]
    out = [window_count(n, k, s, d, 0, 0) for n, k, s, d in zip(x.shape[2:], kernel, strides, dilation, strict=True)]
    if min(out) < 0:
        raise ExecutionError(f"conv: windows of {list(kernel)} do not fit into {list(x.shape[2:])} elements", hint="give larger inputs")
    x = x.reshape(batch, groups, -1, *x.shape[2:]) if x.size else x.reshape(batch, groups, w.shape[1], *x.shape[2:])
    w = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    if w.shape[2] == 1 and groups > 1:
        result = _sum_of_taps(x, w, out, strides, dilation)
    else:
        result = np.stack([_matmul_columns(image, w, out, strides, dilation) for image in x]) if batch else np.zeros(0, x.dtype)
    return result.reshape(batch, w.shape[0] * w.shape[1], *out)


def _sum_of_taps(x: np.ndarray, w: np.ndarray, out: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> np.ndarray:
    """Depthwise: one scaled, shifted view of x per kernel element. x is (N, G, 1, ...), the result (N, G, O/G, ...)."""
    total = np.zeros((x.shape[0], *w.shape[:2], *out), x.dtype)
    for tap in itertools.product(*map(range, w.shape[3:])):
        starts = [t * d for t, d in zip(tap, dilation, strict=True)]
        ends = [a + s * (n - 1) + 1 if n else a for a, s, n in zip(starts, strides, out, strict=True)]
        view = x[(..., *map(slice, starts, ends, strides))]
        total += view * w[(slice(None), slice(None), 0, *tap)].reshape(*w.shape[:2], *(1 for _ in out))
    return total


def _matmul_columns(image: np.ndarray, w: np.ndarray, out: Sequence[int], strides: Sequence[int], dilation: Sequence[int]) -> np.ndarray:
    """im2col: one image (G, C/G, ...) times weights (G, O/G, C/G, ...)."""
    kernel = w.shape[3:]
    steps = image.strides[2:]
    windows = np.lib.stride_tricks.as_strided(
        image,
        (*image.shape[:2], *kernel, *out),
        (*image.strides[:2], *(a * d for a, d in zip(steps, dilation, strict=True)), *(a * s for a, s in zip(steps, strides, strict=True))),
        writeable=False,
    )
    columns = windows.reshape(w.shape[0], math.prod(w.shape[2:]), math.prod(out))
    return np.matmul(w.reshape(*w.shape[:2], math.prod(w.shape[2:])), columns)


register(
    OpSpec(
        "conv",
        "conv(x, w) {strides, lhs_dilation, dilation, low, high, groups, dtype}: N C spatial with O C/groups spatial.",
        operands=(2, 2),
        attrs={
            "strides": "ints",
            "lhs_dilation": "ints",
            "dilation": "ints",
            "low": "dims",
            "high": "dims",
            "groups": "int",
            "dtype": "dtype",
        },
        infer=_infer_conv,
        evaluate=_evaluate_conv,
        tolerance=Tolerance(ulp=2, grows=True),
    )
)
