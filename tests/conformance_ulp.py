"""How many units in the last place outputs are from the exact ones, which the float64 interpreter computes.

The unit of an element is that of its own magnitude, but of no less than 1/1024 of its tensor's largest one: what is left
where large terms cancel has the error of the terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from tcompile.errors import Error
from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model

CANCELLATION = 2.0**-10


def largest_ulp(model: onnx.ModelProto, inputs: Sequence[Any], got: Sequence[Any]) -> float | None:
    """Of all float outputs; 0 where there are integers only. None where Python runs a part, or values are no tensors."""
    if not all(isinstance(array, np.ndarray) for array in got):
        return None
    try:
        graph = import_model(model)
        named = dict(zip([value.name for value in graph.inputs], inputs, strict=True))
        exact = interpret(graph, named, float64=True)
    except (Error, ValueError):  # host ops, sequences
        return None
    return max((_ulp(mine, theirs) for mine, theirs in zip(got, exact.values(), strict=True)), default=0.0)


def _ulp(got: np.ndarray, exact: np.ndarray) -> float:
    if got.dtype.kind in "iub" or got.size == 0 or not _is_float(got.dtype):
        return 0.0
    info = ml_dtypes.finfo(got.dtype)
    rounded = exact.astype(got.dtype).astype(np.float64)  # what overflows is infinite in both
    mine = got.astype(np.float64)
    theirs = np.clip(exact.astype(np.float64), float(info.min), float(info.max))  # where a conversion saturates
    finite = np.isfinite(rounded) & np.isfinite(mine) & np.isfinite(theirs)
    if not finite.any():
        return 0.0
    size = np.abs(theirs[finite])
    size = np.maximum(size, max(CANCELLATION * float(size.max()), float(info.smallest_normal)))
    unit = 2.0 ** np.floor(np.log2(size)) * float(info.eps)
    return float((np.abs(mine[finite] - theirs[finite]) / unit).max())


def _is_float(dtype: np.dtype) -> bool:
    try:
        ml_dtypes.finfo(dtype)
    except (ValueError, TypeError):
        return False
    return True
