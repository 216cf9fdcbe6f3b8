"""The core op of a convolution along one axis whose input is rows of a table, scaled and shifted by channel.

A position's channels are those of a few rows side by side. What each tap makes of a row depends on the row alone, so a kernel can
multiply the table instead of the positions, of which there are more, and add up what each position finds there.
"""

from __future__ import annotations

import numpy as np

from tcompile.ir.dtypes import F32
from tcompile.ir.graph import TensorType
from tcompile.ir.opspec import REGISTRY, Arrays, Attrs, Env, OpSpec, Tolerance, Types, need, need_choice, register

POOLS = ("none", "extremes")


def _infer(types: Types, attrs: Attrs, regions: object) -> Types:
    table, rows, scale, shift, gain, bias, w = types
    need(table.rank == 2 and rows.rank == 3 and w.rank == 5, "table [V, D], rows [N, P, J], w [O/B, J, D, T, B]", f"{table}, {rows}, {w}")
    need(rows.dtype.is_integer and rows.dtype.bits >= 8, "rows of an integer type", rows.dtype)
    need(all(value.dtype == F32 for value in (table, scale, shift, gain, bias, w)), "numbers of f32", table)
    need(all(value.is_static for value in (table, gain, bias, w)), "known extents", f"{table}, {gain}, {bias}, {w}")
    blocks, parts, depth, taps, block = w.shape
    need(table.shape[1] == depth and rows.shape[2] == parts, f"table [V, {depth}], rows [N, P, {parts}]", f"{table}, {rows}")
    channels = (rows.shape[0], parts * depth)
    need(scale.shape == shift.shape == channels, f"a scale and a shift {list(channels)}", f"{scale}, {shift}")
    need(rows.shape[1:2] == gain.shape, "a gain for every position", f"{rows}, {gain}")
    count = gain.shape[0] - taps + 1
    need(taps >= 1 and count >= 1, "a result at least", count)
    known = bias.rank == 3 and bias.shape[::2] == (blocks, block) and bias.shape[1] in (1, count)
    need(known, f"bias [{blocks}, 1 or {count}, {block}]", bias)
    need_choice(attrs["pool"], POOLS)
    shape = (rows.shape[0], count, blocks * block) if attrs["pool"] == "none" else (2, rows.shape[0], blocks * block)
    return (TensorType(F32, shape),)


def _evaluate(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    table, rows, scale, shift, gain, bias, w = arrays
    blocks, parts, depth, taps, block = w.shape
    (found,) = REGISTRY["gather"].evaluate((table.astype(np.float64), rows), {"axis": 0}, (), env)
    numbers = found.reshape(*rows.shape[:2], parts * depth)
    x = gain.astype(np.float64)[:, None] * (numbers * scale[:, None] + shift[:, None])
    plain = w.astype(np.float64).transpose(3, 1, 2, 0, 4).reshape(taps, parts * depth, blocks * block)
    count = gain.shape[0] - taps + 1
    start = bias.astype(np.float64).transpose(1, 0, 2).reshape(bias.shape[1], blocks * block)
    y = start + sum(x[:, tap : tap + count] @ plain[tap] for tap in range(taps))
    y = y.astype(np.float32)
    return (y if attrs["pool"] == "none" else np.stack([y.max(axis=1), y.min(axis=1)]),)


register(
    OpSpec(
        "conv_gathered",
        "conv_gathered(table, rows, scale, shift, gain, bias, w) {pool}: a convolution at stride 1 along positions P of rows of a table"
        " [V, D]. rows [N, P, J], scale and shift [N, J * D], gain [P], bias [O/B, 1 or Q, B], w [O/B, J, D, T, B], Q = P - T + 1:"
        " y[n, q, o] = bias[q, o] + sum over t, j, d of gain[q + t] * (table[rows[n, q + t, j], d] * scale[n, j, d] + shift[n, j, d]) *"
        " w[o, j, d, t]. The result is y [N, Q, O], or with the pool ``extremes`` its largest and its smallest over q, [2, N, O].",
        operands=(7, 7),
        attrs={"pool": "str"},
        defaults={"pool": "none"},
        infer=_infer,
        evaluate=_evaluate,
        tolerance=Tolerance(ulp=4, grows=True),
    )
)
