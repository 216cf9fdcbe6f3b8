"""The core op of a 3x3 convolution by Winograd's F(4x4, 3x3) on blocked activations (``ir/winograd.py``)."""

from __future__ import annotations

import numpy as np

from tcompile.ir import dims
from tcompile.ir.casts import convert
from tcompile.ir.graph import TensorType
from tcompile.ir.opspec import Arrays, Attrs, Env, OpSpec, RuleError, Tolerance, Types, concrete, differ, need, register
from tcompile.ir.winograd import INPUT, KERNEL, OUTPUT, transform_input, transform_output


def padded_extent(extent: dims.DimLike) -> dims.DimLike:
    """Input rows (or columns) that whole tiles over ``extent`` outputs read."""
    return dims.ceildiv(extent, OUTPUT) * OUTPUT + KERNEL - 1


def _infer(types: Types, attrs: Attrs, regions: object) -> Types:
    x, u = types
    need(x.rank == 5 and u.rank == 5 and u.shape[0] == INPUT * INPUT, "x [N, I/B, H, W, B] and u [36, O/B, I/B, Bi, Bo]", f"{x}, {u}")
    need(x.dtype == u.dtype == attrs["dtype"] and x.dtype.is_float, "floats of one type", f"{x.dtype}, {u.dtype}, {attrs['dtype']}")
    if differ(x.shape[1], u.shape[2]) or differ(x.shape[-1], u.shape[3]):
        raise RuleError(f"{u.shape[2]} blocks of {u.shape[3]} channels", x)
    for extent, output in zip(x.shape[2:4], attrs["size"], strict=True):
        if differ(extent, padded_extent(output)):
            raise RuleError(f"an input padded to {padded_extent(output)} for {output} outputs", x)
    return (TensorType(attrs["dtype"], (x.shape[0], u.shape[1], *attrs["size"], u.shape[4])),)


def _evaluate(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, u = (convert(array, attrs["dtype"].compute) for array in arrays)
    height, width = concrete(attrs["size"], env)
    windows = np.lib.stride_tricks.sliding_window_view(x, (INPUT, INPUT), axis=(2, 3))[:, :, ::OUTPUT, ::OUTPUT]
    v = transform_input(windows.astype(np.float64))  # [N, I/B, tiles, tiles, B, 36]
    products = np.einsum("nbhwiz,zobij->nohwjz", v, u.astype(np.float64), optimize=True)
    y = transform_output(products)  # [N, O/B, tiles, tiles, B, 4, 4]
    joined = y.transpose(0, 1, 2, 5, 3, 6, 4).reshape(*y.shape[:2], y.shape[2] * OUTPUT, y.shape[3] * OUTPUT, y.shape[4])
    return (convert(np.ascontiguousarray(joined[:, :, :height, :width]), attrs["dtype"]),)


register(
    OpSpec(
        "conv_winograd",
        "conv_winograd(x, u) {size, dtype}: a 3x3 convolution of x [N, I/B, H, W, B], padded to whole tiles, with transformed weights u.",
        operands=(2, 2),
        attrs={"size": "dims", "dtype": "dtype"},
        infer=_infer,
        evaluate=_evaluate,
        tolerance=Tolerance(ulp=8, grows=True),
    )
)
