"""Core ops of blocked layouts whose weights are interleaved for dot-product instructions. ``passes/layout_integer.py`` makes them.

The weights of G neighbouring terms (channels, or rows of a matrix) lie side by side in one 32-bit word: two halves, or
four bytes. So do the activations, which are blocked by a multiple of G channels, or whose rows are a multiple of G long.

A third operand of a convolution tells that sums of an activation and a weight fit i16, so that a kernel may multiply sums (Winograd, "A New
Algorithm for Inner Product", 1968): half as many products, of which those of a column's weights among themselves are known.

    sum of (x[a] + w[b]) * (x[b] + w[a])  ==  sum of x[a] * w[a] + x[b] * w[b]  +  sum of x[a] * x[b]  +  sum of w[a] * w[b]
"""

from __future__ import annotations

import numpy as np

from tcompile.ir import dims, dtypes
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import TensorType
from tcompile.ir.ops_layout import blocked_result, channels_first, output_extents
from tcompile.ir.opspec import REGISTRY, Arrays, Attrs, Env, OpSpec, RuleError, Types, differ, need, register

_KINDS = {2: ((dtypes.I16,), dtypes.I16), 4: ((dtypes.U8,), dtypes.I8)}  # of activations and weights, by G


def _need_words(x: DType, w: DType, parts: object) -> None:
    kinds = _KINDS.get(parts)
    need(kinds is not None, "2 or 4 terms side by side", parts)
    need(x in kinds[0] and w == kinds[1], f"factors {kinds[0][0]} and {kinds[1]}", f"{x}, {w}")


def _need_products(products: list[TensorType], w: TensorType, words: object, shape: tuple) -> None:
    """``words`` of a block are an even number, of halves, and the products as many as the output channels."""
    if not products:
        return
    need(w.shape[-1] == 2 and isinstance(words, int) and words % 2 == 0, "an even number of words of halves", w)
    need(products[0].dtype == dtypes.I32 and products[0].shape == shape, f"products i32[{', '.join(map(str, shape))}]", products[0])


def interleave(matrix: np.ndarray, axis: int, parts: int) -> np.ndarray:
    """The axis in groups of ``parts``, which become a new last axis."""
    split = matrix.reshape(*matrix.shape[:axis], matrix.shape[axis] // parts, parts, *matrix.shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(split, axis + 1, -1))


def word_products(w: np.ndarray) -> np.ndarray:
    """Of words [..., K, width, 2], the products of each even one with the one behind it, summed over K: [..., width] in i32."""
    even, odd = (w[..., k::2, :, :].astype(np.int64) for k in (0, 1))
    return (even * odd).sum(axis=(-3, -1)).astype(np.int32)


def _joined(w: np.ndarray, axis: int) -> np.ndarray:
    """Undoes ``interleave``."""
    moved = np.moveaxis(w, -1, axis + 1)
    return moved.reshape(*moved.shape[:axis], moved.shape[axis] * moved.shape[axis + 1], *moved.shape[axis + 2 :])


def _infer_dot(types: Types, attrs: Attrs, regions: object) -> Types:
    a, b = types
    need(a.rank >= 1 and b.rank == 4, "a [..., K] and b [panels, K/G, width, G]", f"{a}, {b}")
    _need_words(a.dtype, b.dtype, b.shape[3])
    if differ(a.shape[-1], b.shape[1] * b.shape[3]):
        raise RuleError(f"{b.shape[1] * b.shape[3]} terms", a)
    if differ(b.shape[0], dims.ceildiv(attrs["columns"], b.shape[2])):
        raise RuleError(f"panels of {attrs['columns']} columns", b)
    return (TensorType(dtypes.I32, (*a.shape[:-1], attrs["columns"])),)


def _evaluate_dot(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    a, b = arrays
    return REGISTRY["dot_packed"].evaluate((a, _joined(b, 1)), {**attrs, "dtype": dtypes.I32}, (), env)


register(
    OpSpec(
        "dot_interleaved",
        "dot_interleaved(a, b) {columns}: a [..., K] times a matrix [K, columns] stored as panels [ceil(columns / W), K/G, W, G], in i32.",
        operands=(2, 2),
        attrs={"columns": "int"},
        infer=_infer_dot,
        evaluate=_evaluate_dot,
    )
)


def _infer_conv(types: Types, attrs: Attrs, regions: object) -> Types:
    x, w, *products = types
    need(x.rank >= 4 and w.rank == x.rank + 2, "x [N, I/A, spatial, A] and w [O/B, I/g/A, kernel, A/G, B, G]", f"{x}, {w}")
    groups = attrs["groups"]
    _need_words(x.dtype, w.dtype, w.shape[-1])
    if differ(x.shape[1], w.shape[1] * groups) or differ(x.shape[-1], w.shape[-3] * w.shape[-1]):
        raise RuleError(f"{groups} groups of {w.shape[1]} input blocks of {w.shape[-3] * w.shape[-1]}", x)
    need(w.shape[0] % groups == 0, f"output blocks in {groups} groups", w)
    _need_products(products, w, w.shape[-3], (w.shape[0], w.shape[-2]))
    spatial = output_extents(x.shape[2:-1], w.shape[2:-3], attrs)
    return (TensorType(dtypes.I32, (x.shape[0], w.shape[0], *spatial, w.shape[-2])),)


def _evaluate_conv(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, w = arrays[:2]
    blocked = _joined(w, w.ndim - 3)  # [O/B, I/A, kernel, A, B]
    order = (0, blocked.ndim - 1, 1, blocked.ndim - 2, *range(2, blocked.ndim - 2))
    plain = blocked.transpose(order).reshape(w.shape[0] * w.shape[-2], -1, *w.shape[2:-3])
    attrs = {**attrs, "dtype": dtypes.I32}
    return (blocked_result(channels_first(x), plain, attrs, env, attrs["groups"], w.shape[-2]),)


register(
    OpSpec(
        "conv_interleaved",
        "conv_interleaved(x, w[, products]) {strides, dilation, groups}: x [N, I/A, spatial, A] (padded), "
        "w [O/B, I/g/A, kernel, A/G, B, G], in i32; products [O/B, B] where sums of halves fit i16.",
        operands=(2, 3),
        attrs={"strides": "ints", "dilation": "ints", "groups": "int"},
        infer=_infer_conv,
        evaluate=_evaluate_conv,
    )
)
