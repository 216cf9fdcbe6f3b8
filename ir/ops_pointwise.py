"""The core op of a pointwise convolution of plain images: products of a constant matrix with each of them."""

from __future__ import annotations

import numpy as np

from tcompile.ir.graph import TensorType
from tcompile.ir.opspec import REGISTRY, Arrays, Attrs, Env, OpSpec, RuleError, Tolerance, Types, differ, need, register


def pack_tiles(weights: np.ndarray, groups: int, height: int) -> np.ndarray:
    """Weights [O, I/g] as tiles of ``height`` rows [g, ceil(O/g / height), I/g, height], the last one of a group padded with zeros."""
    outputs, inputs = weights.shape[0] // groups, weights.shape[1]
    tiles = -(-outputs // height)
    full = np.zeros((groups, tiles * height, inputs), weights.dtype)
    full[:, :outputs] = weights.reshape(groups, outputs, inputs)
    return np.ascontiguousarray(full.reshape(groups, tiles, height, inputs).swapaxes(2, 3))


def _infer(types: Types, attrs: Attrs, regions: object) -> Types:
    x, w = types
    channels = attrs["channels"]
    need(x.rank >= 3 and w.rank == 4, "x [N, I, spatial] and w [g, tiles, I/g, height]", f"{x}, {w}")
    if differ(x.shape[1], w.shape[0] * w.shape[2]):
        raise RuleError(f"{w.shape[0]} groups of {w.shape[2]} channels", x)
    need(w.shape[0] >= 1 and w.shape[3] >= 1 and channels % w.shape[0] == 0, f"{channels} channels in equal groups", w)
    need(w.shape[1] == -(-(channels // w.shape[0]) // w.shape[3]), f"tiles of {channels} channels", w)
    return (TensorType(attrs["dtype"], (x.shape[0], channels, *x.shape[2:])),)


def _evaluate(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, w = arrays
    groups, tiles, inputs, height = w.shape
    rows = w.swapaxes(2, 3).reshape(groups, tiles * height, inputs)[:, : attrs["channels"] // groups]
    axes = x.ndim - 2
    plain = {"strides": (1,) * axes, "lhs_dilation": (1,) * axes, "dilation": (1,) * axes, "low": (0,) * axes, "high": (0,) * axes}
    weights = rows.reshape(attrs["channels"], inputs, *(1,) * axes)
    return REGISTRY["conv"].evaluate((x, weights), {**plain, "groups": groups, "dtype": attrs["dtype"]}, (), env)


register(
    OpSpec(
        "conv_pointwise",
        "conv_pointwise(x, w) {channels, dtype}: plain x [N, I, spatial] times a matrix for each of g groups of channels, "
        "w [g, ceil(channels / g / H), I/g, H] by tiles of H rows; the result is plain.",
        operands=(2, 2),
        attrs={"channels": "int", "dtype": "dtype"},
        infer=_infer,
        evaluate=_evaluate,
        tolerance=Tolerance(ulp=2, grows=True),
    )
)
