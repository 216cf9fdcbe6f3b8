"""The core op of a pointwise convolution by Strassen's algorithm (``ir/strassen.py``), in blocked form."""

from __future__ import annotations

import math

import numpy as np

from tcompile.ir.casts import convert
from tcompile.ir.dims import ceildiv
from tcompile.ir.graph import TensorType
from tcompile.ir.opspec import Arrays, Attrs, Env, OpSpec, RuleError, Tolerance, Types, differ, need, need_length, register
from tcompile.ir.strassen import INPUTS, OUTPUTS, VALUES


def _infer(types: Types, attrs: Attrs, regions: object) -> Types:
    x, u = types
    need(x.rank >= 4, "x [N, I/B, spatial, B]", x)
    need(u.rank == 6 and u.shape[0] == VALUES and u.shape[2] == 1, f"u [{VALUES}, O/2B, 1, I/2B, Bi, Bo]", u)
    need(x.dtype == u.dtype == attrs["dtype"] and x.dtype.is_float, "floats of one type", f"{x.dtype}, {u.dtype}, {attrs['dtype']}")
    need_length("strides", attrs["strides"], x.rank - 3)
    need(min(attrs["strides"]) >= 1, "strides of at least 1", attrs["strides"])
    if differ(x.shape[1], 2 * u.shape[3]) or differ(x.shape[-1], u.shape[4]):
        raise RuleError(f"{2 * u.shape[3]} blocks of {u.shape[4]} channels", x)
    space = (ceildiv(extent, step) for extent, step in zip(x.shape[2:-1], attrs["strides"], strict=True))
    return (TensorType(attrs["dtype"], (x.shape[0], 2 * u.shape[1], *space, u.shape[5])),)


def _evaluate(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, u = (convert(array, attrs["dtype"].compute).astype(np.float64) for array in arrays)
    x = x[(slice(None), slice(None), *(slice(None, None, step) for step in attrs["strides"]))]
    images, blocks, *space, lanes = x.shape
    positions, half = math.prod(space), u.shape[1]
    pairs = -(-positions // 2)
    rows = np.pad(x.reshape(images, blocks, positions, lanes), ((0, 0), (0, 0), (0, positions % 2), (0, 0)))
    quarters = rows.reshape(images, 2, blocks // 2, pairs, 2, lanes).transpose(4, 1, 0, 2, 3, 5)  # [position, half, N, I/2B, pair, B]
    v = np.tensordot(INPUTS, quarters.reshape(4, *quarters.shape[2:]), 1)
    m = np.einsum("vnipa,voiab->vnopb", v, u[:, :, 0], optimize=True)
    c = np.tensordot(OUTPUTS, m, 1).reshape(2, 2, *m.shape[1:]).transpose(2, 1, 3, 4, 0, 5)  # [N, half, O/2B, pair, position, B]
    y = c.reshape(images, 2 * half, 2 * pairs, u.shape[5])[:, :, :positions]
    return (convert(y.reshape(images, 2 * half, *space, u.shape[5]), attrs["dtype"]),)


register(
    OpSpec(
        "conv_strassen",
        "conv_strassen(x, u) {strides, dtype}: a pointwise convolution of x [N, I/B, spatial, B] with transformed weights "
        "u [7, O/2B, 1, I/2B, B, B]: of pairs of positions in memory order, halves of the input channels and of the output channels.",
        operands=(2, 2),
        attrs={"strides": "ints", "dtype": "dtype"},
        infer=_infer,
        evaluate=_evaluate,
        tolerance=Tolerance(ulp=8, grows=True),
    )
)
