"""The core op of a square convolution at stride 1 by Winograd's algorithm on blocked activations (``ir/winograd.py``)."""

from __future__ import annotations

import itertools

import numpy as np

from tcompile.ir.casts import convert
from tcompile.ir.graph import TensorType
from tcompile.ir.opspec import Arrays, Attrs, Env, OpSpec, RuleError, Tolerance, Types, concrete, differ, need, need_length, register
from tcompile.ir.winograd import BY_KERNEL, Winograd


def _infer(types: Types, attrs: Attrs, regions: object) -> Types:
    x, u = types
    need(attrs["kernel"] in BY_KERNEL, f"a kernel of {' or '.join(map(str, BY_KERNEL))} taps", attrs["kernel"])
    values = BY_KERNEL[attrs["kernel"]].values
    need(x.rank == 5 and u.rank == 5 and u.shape[0] == values, f"x [N, I/B, H, W, B] and u [{values}, O/B, I/B, Bi, Bo]", f"{x}, {u}")
    need(x.dtype == u.dtype == attrs["dtype"] and x.dtype.is_float, "floats of one type", f"{x.dtype}, {u.dtype}, {attrs['dtype']}")
    for name in ("size", "low", "dilation"):
        need_length(name, attrs[name], 2)
    need(min(attrs["dilation"]) >= 1 and min(attrs["low"]) >= 0, "dilations of at least 1, borders of at least 0", attrs)
    if differ(x.shape[1], u.shape[2]) or differ(x.shape[-1], u.shape[3]):
        raise RuleError(f"{u.shape[2]} blocks of {u.shape[3]} channels", x)
    return (TensorType(attrs["dtype"], (x.shape[0], u.shape[1], *attrs["size"], u.shape[4])),)


def _evaluate(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, u = (convert(array, attrs["dtype"].compute).astype(np.float64) for array in arrays)
    size, form, dilation = concrete(attrs["size"], env), BY_KERNEL[attrs["kernel"]], attrs["dilation"]
    out = np.zeros((x.shape[0], u.shape[1], *size, u.shape[4]))
    for phase in itertools.product(*map(range, dilation)):
        part = out[:, :, phase[0] :: dilation[0], phase[1] :: dilation[1]]
        tiles = [-(-extent // form.outputs) for extent in part.shape[2:4]]
        windows = _windows(x, form, [at - low for at, low in zip(phase, attrs["low"], strict=True)], dilation, tiles)
        part[:] = _convolved(windows, u, form)[:, :, : part.shape[2], : part.shape[3]]
    return (convert(out, attrs["dtype"]),)


def _windows(x: np.ndarray, form: Winograd, start: list[int], step: tuple[int, ...], tiles: list[int]) -> np.ndarray:
    """The input tiles [N, I/B, down, across, B, n, n] of outputs whose first input is ``start``; zeros outside."""
    for axis, first, stride, count in zip((2, 3), start, step, tiles, strict=True):
        places = first + stride * (np.arange(count)[:, None] * form.outputs + np.arange(form.inputs)).ravel()
        inside = (places >= 0) & (places < x.shape[axis])
        taken = np.zeros((*x.shape[:axis], places.size, *x.shape[axis + 1 :]))
        index = (slice(None),) * axis
        taken[(*index, inside)] = x[(*index, places[inside])]
        x = taken
    split = x.reshape(*x.shape[:2], tiles[0], form.inputs, tiles[1], form.inputs, x.shape[-1])
    return split.transpose(0, 1, 2, 4, 6, 3, 5)


def _convolved(windows: np.ndarray, u: np.ndarray, form: Winograd) -> np.ndarray:
    """[N, O/B, rows, columns, B] of all tiles."""
    products = np.einsum("nbhwiz,zobij->nohwjz", form.transform_input(windows), u, optimize=True)
    y = form.transform_output(products)  # [N, O/B, down, across, B, m, m]
    return y.transpose(0, 1, 2, 5, 3, 6, 4).reshape(*y.shape[:2], y.shape[2] * form.outputs, y.shape[3] * form.outputs, y.shape[4])


register(
    OpSpec(
        "conv_winograd",
        "conv_winograd(x, u) {kernel, size, low, dilation, dtype}: a square convolution at stride 1 of x [N, I/B, H, W, B] with "
        "transformed weights u; ``low`` zeros stand before the input, and behind it as many as ``size`` outputs read.",
        operands=(2, 2),
        attrs={"kernel": "int", "size": "dims", "low": "ints", "dilation": "ints", "dtype": "dtype"},
        infer=_infer,
        evaluate=_evaluate,
        tolerance=Tolerance(ulp=8, grows=True),
    )
)
