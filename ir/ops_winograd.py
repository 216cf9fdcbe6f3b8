"""The core op of a convolution at stride 1 or 2, square or along one axis, by Winograd's algorithm (``ir/winograd.py``), blocked."""

from __future__ import annotations

import itertools
import math

import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.casts import convert
from tcompile.ir.graph import TensorType
from tcompile.ir.opspec import Arrays, Attrs, Env, OpSpec, RuleError, Tolerance, Types, concrete, differ, need, need_length, register
from tcompile.ir.winograd import BY_KERNEL, WHOLE, Winograd, form_of, forms_of


def _infer(types: Types, attrs: Attrs, regions: object) -> Types:
    x, u = types
    need(x.rank in (4, 5), "x [N, I/B, H, W, B] or [N, I/B, W, B]", x)
    stride, forms = attrs["stride"], forms_of(attrs["kernel"], x.rank - 3, attrs["stride"])
    need(
        bool(forms), f"a kernel of {' or '.join(map(str, BY_KERNEL))} taps at stride 1, or of 3 at stride 2", f"{attrs['kernel']}, {stride}"
    )
    form = form_of(attrs["kernel"], x.rank - 3, attrs["tile"], stride)
    if form is None:
        raise RuleError(f"tiles of {' or '.join(str(form.outputs) for form in forms)} outputs", attrs["tile"])
    values, pieces = form.values, len(form.offsets)
    need(u.rank == 6 and u.shape[0] == values and u.shape[2] == pieces, f"u [{values}, O/B, {pieces}, I/B, Bi, Bo]", u)
    need(x.dtype == u.dtype == attrs["dtype"] and x.dtype.is_float, "floats of one type", f"{x.dtype}, {u.dtype}, {attrs['dtype']}")
    for name in ("size", "low", "dilation"):
        need_length(name, attrs[name], x.rank - 3)
    need(stride == 1 or max(attrs["dilation"]) == 1, "no dilation beside a stride", attrs["dilation"])
    need(min(attrs["dilation"]) >= 1 and min(attrs["low"]) >= 0, "dilations of at least 1, borders of at least 0", attrs)
    if differ(x.shape[1], u.shape[3]) or differ(x.shape[-1], u.shape[4]):
        raise RuleError(f"{u.shape[3]} blocks of {u.shape[4]} channels", x)
    return (TensorType(attrs["dtype"], (x.shape[0], u.shape[1], *attrs["size"], u.shape[5])),)


def _evaluate(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, u = (convert(array, attrs["dtype"].compute).astype(np.float64) for array in arrays)
    size, dilation = concrete(attrs["size"], env), attrs["dilation"]
    form = form_of(attrs["kernel"], x.ndim - 3, attrs["tile"], attrs["stride"])
    assert form is not None, attrs
    out = np.zeros((x.shape[0], u.shape[1], *size, u.shape[5]))
    for phase in itertools.product(*map(range, dilation)):
        part = out[:, :, *(slice(first, None, step) for first, step in zip(phase, dilation, strict=True))]
        tiles = [-(-extent // form.outputs) for extent in part.shape[2:-1]]
        for piece, offset in enumerate(form.offsets):
            start = [at - low + tap * step for at, low, tap, step in zip(phase, attrs["low"], offset, dilation, strict=True)]
            windows = _windows(x, form, start, dilation, tiles)
            part += _convolved(windows, u[:, :, piece], form)[:, :, *map(slice, part.shape[2:-1])]
    return (convert(out, attrs["dtype"]),)


def _windows(x: np.ndarray, form: Winograd, start: list[int], step: tuple[int, ...], tiles: list[int]) -> np.ndarray:
    """The input tiles [N, I/B, down, across, B, n, n] (of one axis, [N, I/B, across, B, n]) of outputs whose first input is ``start``."""
    for axis, (first, stride, count) in enumerate(zip(start, step, tiles, strict=True), 2):
        places = first + stride * (np.arange(count)[:, None] * form.outputs * form.stride + np.arange(form.inputs)).ravel()
        inside = (places >= 0) & (places < x.shape[axis])
        taken = np.zeros((*x.shape[:axis], places.size, *x.shape[axis + 1 :]))
        index = (slice(None),) * axis
        taken[(*index, inside)] = x[(*index, places[inside])]
        x = taken
    pairs = [extent for count in tiles for extent in (count, form.inputs)]
    grid, inside = range(2, 2 + len(pairs), 2), range(3, 2 + len(pairs), 2)
    return x.reshape(*x.shape[:2], *pairs, x.shape[-1]).transpose(0, 1, *grid, 2 + len(pairs), *inside)


def _convolved(windows: np.ndarray, u: np.ndarray, form: Winograd) -> np.ndarray:
    """[N, O/B, rows, columns, B] of all tiles; of one axis, [N, O/B, columns, B]."""
    v = form.transform_input(windows)
    grid = v.shape[2:-2]
    v = v.reshape(*v.shape[:2], math.prod(grid), *v.shape[-2:])
    y = form.transform_output(np.einsum("nbtiz,zobij->notjz", v, u, optimize=True))  # [N, O/B, tiles, B, m, m]
    y = y.reshape(*y.shape[:2], *grid, *y.shape[3:])  # [N, O/B, down, across, B, m, m]
    lanes = 2 + len(grid)
    order = [axis for k in range(len(grid)) for axis in (2 + k, lanes + 1 + k)]
    return y.transpose(0, 1, *order, lanes).reshape(*y.shape[:2], *(count * form.outputs for count in grid), y.shape[lanes])


register(
    OpSpec(
        "conv_winograd",
        "conv_winograd(x, u) {kernel, tile, size, low, dilation, stride, dtype}: a convolution of x [N, I/B, (H,) W, B] with "
        "transformed weights u, in tiles of ``tile`` outputs per axis; ``low`` zeros stand before the input, and "
        "behind it as many as ``size`` outputs read.",
        operands=(2, 2),
        attrs={"kernel": "int", "tile": "int", "size": "dims", "low": "ints", "dilation": "ints", "stride": "int", "dtype": "dtype"},
        defaults={"stride": 1},
        infer=_infer,
        evaluate=_evaluate,
        tolerance=Tolerance(ulp=8, grows=True),
    )
)


def _infer_whole(types: Types, attrs: Attrs, regions: object) -> Types:
    x, u = types
    values = " or ".join(map(str, WHOLE))
    need(x.rank == 5 and u.rank == 6 and u.shape[0] in WHOLE, f"x [N, I/B, H, W, B], u [{values}, O/B, I/B, B/2, B, 2]", u)
    need(x.dtype == u.dtype == dtypes.I16, "i16 factors", f"{x.dtype}, {u.dtype}")
    need_length("size", attrs["size"], 2)
    need_length("low", attrs["low"], 2)
    if differ(x.shape[1], u.shape[2]) or differ(x.shape[-1], 2 * u.shape[3]):
        raise RuleError(f"{u.shape[2]} blocks of {2 * u.shape[3]} channels", x)
    return (TensorType(dtypes.F32, (x.shape[0], u.shape[1], *attrs["size"], u.shape[4])),)


def _evaluate_whole(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, u = arrays
    joined = np.moveaxis(u, -1, 4).reshape(*u.shape[:3], 2 * u.shape[3], u.shape[4]).astype(np.float64)  # [36, O/B, I/B, B, B]
    size, form = concrete(attrs["size"], env), WHOLE[u.shape[0]]
    tiles = [-(-extent // form.outputs) for extent in size]
    windows = _windows(x.astype(np.float64), form, [-low for low in attrs["low"]], (1, 1), tiles)
    return (convert(_convolved(windows, joined, form)[:, :, : size[0], : size[1]], dtypes.F32),)


register(
    OpSpec(
        "conv_winograd_whole",
        "conv_winograd_whole(x, u) {size, low}: a 3x3 convolution of i16 x [N, I/B, H, W, B] by F(4x4, 3x3) or F(2x2, 3x3) with "
        "integer points, whose transformed inputs must fit i16 and sums i32; u [36 or 16, O/B, I/B, B/2, B, 2] holds two channels "
        "a word. The result is f32.",
        operands=(2, 2),
        attrs={"size": "dims", "low": "ints"},
        infer=_infer_whole,
        evaluate=_evaluate_whole,
        # points up to 2 lose two bits more than those of ``conv_winograd``, and sums beyond 2**24 are rounded before they cancel
        tolerance=Tolerance(ulp=96, grows=True),
    )
)
