"""Core ops of blocked layouts. ``passes/layout.py`` makes them; no importer does.

A blocked activation of N C spatial is N C/B spatial B (B lanes, the last block padded). ``pack`` fills the pad lanes with
zeros; every other op writes them as it computes them, so a reader that needs zeros there says so with ``pack``.
"""

from __future__ import annotations

import numpy as np

from tcompile.ir import dims
from tcompile.ir.dims import DimLike
from tcompile.ir.graph import TensorType
from tcompile.ir.ops_contraction import window_count
from tcompile.ir.opspec import (
    REGISTRY,
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
    need_axis,
    need_extents,
    need_length,
    register,
)

# pack, unpack -----------------------------------------------------------------------------------------------


def _infer_pack(types: Types, attrs: Attrs, regions: object) -> Types:
    (x,), axis, block = types, attrs["axis"], attrs["block"]
    need_axis(axis, x.rank)
    need(block >= 1, "a block of at least 1", block)
    blocks = dims.ceildiv(x.shape[axis], block)
    return (TensorType(x.dtype, (*x.shape[:axis], blocks, *x.shape[axis + 1 :], block)),)


def _evaluate_pack(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    (x,), axis, block = arrays, attrs["axis"], attrs["block"]
    blocks = -(-x.shape[axis] // block)
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, blocks * block - x.shape[axis])
    split = np.pad(x, widths).reshape(*x.shape[:axis], blocks, block, *x.shape[axis + 1 :])
    return (np.moveaxis(split, axis + 1, -1),)


register(
    OpSpec(
        "pack",
        "pack(x) {axis, block}: the axis becomes ceil(extent / block) blocks, its lanes a new last axis; pad lanes are zero.",
        operands=(1, 1),
        attrs={"axis": "int", "block": "int"},
        infer=_infer_pack,
        evaluate=_evaluate_pack,
    )
)


def _infer_unpack(types: Types, attrs: Attrs, regions: object) -> Types:
    (x,), axis, extent, block = types, attrs["axis"], attrs["extent"], attrs["block"]
    need_axis(axis, x.rank - 1)
    need(x.shape[-1] == block, f"{block} lanes", x)
    if differ(x.shape[axis], dims.ceildiv(extent, block)):
        raise RuleError(f"ceil({extent} / {block}) blocks", x)
    return (TensorType(x.dtype, (*x.shape[:axis], extent, *x.shape[axis + 1 : -1])),)


def _evaluate_unpack(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    (x,), axis = arrays, attrs["axis"]
    (extent,) = concrete((attrs["extent"],), env)
    joined = np.moveaxis(x, -1, axis + 1).reshape(*x.shape[:axis], x.shape[axis] * x.shape[-1], *x.shape[axis + 1 : -1])
    return (joined[(slice(None),) * axis + (slice(extent),)],)


register(
    OpSpec(
        "unpack",
        "unpack(x) {axis, extent, block}: undoes pack; the axis gets ``extent`` back, pad lanes are dropped.",
        operands=(1, 1),
        attrs={"axis": "int", "extent": "dim", "block": "int"},
        infer=_infer_unpack,
        evaluate=_evaluate_unpack,
    )
)

# dot_packed -------------------------------------------------------------------------------------------------


def pack_panels(b: np.ndarray, width: int) -> np.ndarray:
    """A matrix [K, N] as panels [ceil(N / width), K, width], the last one padded with zeros."""
    terms, columns = b.shape
    panels = -(-columns // width)
    padded = b if columns == panels * width else np.pad(b, ((0, 0), (0, panels * width - columns)))
    return np.ascontiguousarray(padded.reshape(terms, panels, width).transpose(1, 0, 2))


def _infer_dot_packed(types: Types, attrs: Attrs, regions: object) -> Types:
    a, b = types
    need(a.rank >= 1 and b.rank == 3, "a [..., K] and b [panels, K, width]", f"{a}, {b}")
    if differ(a.shape[-1], b.shape[1]):
        raise RuleError(f"{b.shape[1]} terms", a)
    if differ(b.shape[0], dims.ceildiv(attrs["columns"], b.shape[2])):
        raise RuleError(f"panels of {attrs['columns']} columns", b)
    return (TensorType(attrs["dtype"], (*a.shape[:-1], attrs["columns"])),)


def _evaluate_dot_packed(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    a, b = arrays
    matrix = b.transpose(1, 0, 2).reshape(b.shape[1], b.shape[0] * b.shape[2])[:, : attrs["columns"]]
    plain = {"batch": ((), ()), "contract": ((a.ndim - 1,), (0,)), "dtype": attrs["dtype"]}
    return REGISTRY["dot_general"].evaluate((a, matrix), plain, (), env)


register(
    OpSpec(
        "dot_packed",
        "dot_packed(a, b) {columns, dtype, few}: a [..., K] times a matrix [K, columns] stored as panels [ceil(columns / W), K, W]."
        " ``few``: a symbolic number of rows is expected to be small.",
        operands=(2, 2),
        attrs={"columns": "int", "dtype": "dtype", "few": "bool"},
        defaults={"few": False},
        infer=_infer_dot_packed,
        evaluate=_evaluate_dot_packed,
        tolerance=Tolerance(ulp=2, grows=True),
    )
)

# Blocked convolutions ---------------------------------------------------------------------------------------

_CONV_ATTRS = {"strides": "ints", "dilation": "ints", "dtype": "dtype"}


def output_extents(x: tuple[DimLike, ...], kernel: tuple[DimLike, ...], attrs: Attrs) -> tuple[DimLike, ...]:
    """The output extents of a convolution without padding."""
    need_length("strides", attrs["strides"], len(x))
    need_length("dilation", attrs["dilation"], len(x))
    need_length("kernel", kernel, len(x))
    found = tuple(window_count(n, k, s, d, 0, 0) for n, k, s, d in zip(x, kernel, attrs["strides"], attrs["dilation"], strict=True))
    need_extents(found)
    return found


def _infer_conv_blocked(types: Types, attrs: Attrs, regions: object) -> Types:
    x, w = types
    need(x.rank >= 4 and w.rank == x.rank + 1, "x [N, I/B, spatial, B] and w [O/B, I/g/B, kernel, B, B]", f"{x}, {w}")
    groups = attrs["groups"]
    if differ(x.shape[1], w.shape[1] * groups) or differ(x.shape[-1], w.shape[-2]):
        raise RuleError(f"{groups} groups of {w.shape[1]} input blocks of {w.shape[-2]}", x)
    need(w.shape[0] % groups == 0, f"output blocks in {groups} groups", w)
    _need_windows(attrs.get("windows", ()), w.shape[0], w.shape[2:-2], groups)
    _need_reads(attrs.get("reads", ()), w.shape[0], w.shape[1])
    spatial = output_extents(x.shape[2:-1], w.shape[2:-2], attrs)
    return (TensorType(attrs["dtype"], (x.shape[0], w.shape[0], *spatial, w.shape[-1])),)


def _need_windows(windows: tuple[int, ...], blocks: int, kernel: tuple[int, ...], groups: int) -> None:
    """Pairs of (start, size) for every axis of every section."""
    sections, rest = divmod(len(windows), 2 * max(len(kernel), 1))
    need(not windows or (rest == 0 and groups == 1 and blocks % sections == 0), "whole sections of the output blocks", windows)
    extents = kernel * sections
    inside = all(min(start, size) >= 0 and start + size <= n for start, size, n in zip(windows[::2], windows[1::2], extents, strict=True))
    need(inside, "windows inside the kernel", windows)


def _need_reads(reads: tuple[int, ...], blocks: int, inputs: int) -> None:
    """A pair of (start, size) for every output block."""
    need(len(reads) in (0, 2 * blocks), "a start and a size for every output block", reads)
    inside = all(min(start, size) >= 0 and start + size <= inputs for start, size in zip(reads[::2], reads[1::2], strict=True))
    need(inside, f"parts of {inputs} input blocks", reads)


def _evaluate_conv_blocked(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, w = arrays
    kernel = w.ndim - 4
    # [O/B, I/B, kernel, Bi, Bo] -> [O, I, kernel]
    order = (0, w.ndim - 1, 1, w.ndim - 2, *range(2, 2 + kernel))
    plain = w.transpose(order).reshape(w.shape[0] * w.shape[-1], w.shape[1] * w.shape[-2], *w.shape[2:-2])
    return (blocked_result(channels_first(x), plain, attrs, env, attrs["groups"], w.shape[-1]),)


def channels_first(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -1, 2).reshape(x.shape[0], x.shape[1] * x.shape[-1], *x.shape[2:-1])


def blocked_result(x: np.ndarray, w: np.ndarray, attrs: Attrs, env: Env, groups: int, block: int) -> np.ndarray:
    nothing = (0,) * (x.ndim - 2)
    plain = {**attrs, "lhs_dilation": (1,) * (x.ndim - 2), "low": nothing, "high": nothing, "groups": groups}
    (out,) = REGISTRY["conv"].evaluate((x, w), plain, (), env)
    return _evaluate_pack((out,), {"axis": 1, "block": block}, (), env)[0]


register(
    OpSpec(
        "conv_blocked",
        "conv_blocked(x, w) {strides, dilation, groups, windows, reads, dtype}: x [N, I/B, spatial, B] (padded), "
        "w [O/B, I/g/B, kernel, Bi, Bo]. ``windows``, if any: for each of equal sections of O/B and each axis the start and "
        "size of what is not zero in the kernel; "
        "``reads``, if any: for each output block the start and size of what is not zero of the group's input blocks.",
        operands=(2, 2),
        attrs={**_CONV_ATTRS, "groups": "int", "windows": "ints", "reads": "ints"},
        defaults={"windows": (), "reads": ()},
        infer=_infer_conv_blocked,
        evaluate=_evaluate_conv_blocked,
        tolerance=Tolerance(ulp=2, grows=True),
    )
)


def _infer_conv_stem(types: Types, attrs: Attrs, regions: object) -> Types:
    x, w = types
    need(x.rank >= 3 and w.rank == x.rank + 1, "x [N, I, spatial] and w [O/B, I, kernel, B]", f"{x}, {w}")
    if differ(x.shape[1], w.shape[1]):
        raise RuleError(f"{w.shape[1]} input channels", x)
    return (TensorType(attrs["dtype"], (x.shape[0], w.shape[0], *output_extents(x.shape[2:], w.shape[2:-1], attrs), w.shape[-1])),)


def _evaluate_conv_stem(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, w = arrays
    plain = np.moveaxis(w, -1, 1).reshape(w.shape[0] * w.shape[-1], *w.shape[1:-1])
    return (blocked_result(x, plain, attrs, env, 1, w.shape[-1]),)


register(
    OpSpec(
        "conv_stem",
        "conv_stem(x, w) {strides, dilation, dtype}: plain x [N, I, spatial] (padded), w [O/B, I, kernel, B], blocked result.",
        operands=(2, 2),
        attrs=_CONV_ATTRS,
        infer=_infer_conv_stem,
        evaluate=_evaluate_conv_stem,
        tolerance=Tolerance(ulp=2, grows=True),
    )
)


def _infer_depthwise(types: Types, attrs: Attrs, regions: object) -> Types:
    x, w = types
    need(
        x.rank >= 4 and w.rank in (x.rank - 1, x.rank),
        "x [N, C/B, spatial, B] and w [C/B, kernel, B] or [C/B, G, kernel, B]",
        f"{x}, {w}",
    )
    if differ(x.shape[1], w.shape[0]) or differ(x.shape[-1], w.shape[-1]):
        raise RuleError(f"{w.shape[0]} blocks of {w.shape[-1]}", x)
    if w.rank == x.rank:
        need(w.shape[1] > 0 and w.shape[-1] % w.shape[1] == 0, "groups that part a block evenly", f"{w}")
    return (TensorType(attrs["dtype"], (*x.shape[:2], *output_extents(x.shape[2:-1], w.shape[2 - x.rank : -1], attrs), x.shape[-1])),)


def _evaluate_depthwise(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, w = arrays
    turned = w if w.ndim == x.ndim else w[:, None]
    channels, group = w.shape[0] * w.shape[-1], turned.shape[1]
    by_channel = np.moveaxis(turned, -1, 1).reshape(channels, *turned.shape[1:-1])
    plain = np.zeros_like(by_channel)
    for channel in range(channels):
        for turn in range(group):
            plain[channel, (channel + turn) % group] = by_channel[channel, turn]
    return (blocked_result(channels_first(x), plain, attrs, env, max(channels // group, 1), w.shape[-1]),)


register(
    OpSpec(
        "depthwise_blocked",
        "depthwise_blocked(x, w) {strides, dilation, dtype}: x [N, C/B, spatial, B] (padded), w [C/B, kernel, B] a kernel per channel, "
        "or [C/B, G, kernel, B] in groups of G channels, where w[.., j, .., l] is for channel (l + j) % G of l's group.",
        operands=(2, 2),
        attrs=_CONV_ATTRS,
        infer=_infer_depthwise,
        evaluate=_evaluate_depthwise,
        tolerance=Tolerance(ulp=2, grows=True),
    )
)
