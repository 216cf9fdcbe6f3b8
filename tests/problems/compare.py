"""How far compiled results may be from the interpreter's: each op's declared tolerance, elementwise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.casts import convert
from tcompile.ir.elementwise import TABLE
from tcompile.ir.graph import Node
from tcompile.ir.ops import evaluate, spec
from tcompile.ir.winograd import form_of

BITS = {"constant", "dim", "bind_dim", "iota", "rng_bits", "bitcast", "broadcast", "reshape", "transpose", "slice", "pad", "concat"}
BITS |= {"gather", "gather_nd", "gather_elements", "sort", "compact", "arg_reduce", "pack", "unpack", "if"}
FUSED_ULP = 16  # a few functions and a sum after each other
LINEAR = {
    "dot_general",
    "conv",
    "dot_packed",
    "conv_blocked",
    "conv_stem",
    "conv_pointwise",
    "depthwise_blocked",
    "conv_winograd",
    "conv_strassen",
    "conv_gathered",
}


def assert_close(got: np.ndarray, expected: np.ndarray, node: Node, operands: Sequence[np.ndarray] | None) -> None:
    """Raises AssertionError where an output of a node is further from what was expected than its op allows.

    ``operands``: the node's, to scale the error of sums by the magnitude of their terms; None where they are not at hand.
    """
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape), f"{got.dtype}{got.shape}, expected {expected.dtype}{expected.shape}"
    if node.op in BITS or (node.op.startswith("scatter") and node.attrs["combiner"] == "set"):
        np.testing.assert_array_equal(_raw(got), _raw(expected))
        return
    if not dtypes.from_numpy(expected.dtype).is_float:
        np.testing.assert_array_equal(got, expected)
        return
    with np.errstate(all="ignore"):
        mine, theirs = (convert(array, dtypes.F64) for array in (got, expected))
        error = np.where((mine == theirs) | (np.isnan(mine) & np.isnan(theirs)), 0, np.abs(mine - theirs))
        limit = np.broadcast_to(_limit(node, operands, theirs, dtypes.from_numpy(expected.dtype)), error.shape)
        wrong = (error != 0) & ~(error <= limit)
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0])
        first = f"at {list(map(int, at))}: {got[at]}, expected {expected[at]} ± {limit[at]:.3g}"
        raise AssertionError(f"{wrong.sum()} of {wrong.size} differ; {first}")


def _raw(array: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat if array.dtype == bool else flat.view(np.dtype(f"u{array.dtype.itemsize}"))


def _limit(node: Node, operands: Sequence[np.ndarray] | None, expected: np.ndarray, dtype: dtypes.DType) -> np.ndarray | float:
    """The error allowed at each element."""
    smallest = float(ml_dtypes.finfo(dtype.numpy).smallest_subnormal)
    eps = float(ml_dtypes.finfo(dtype.numpy).eps)
    magnitude = np.abs(expected)
    if node.op == "map":
        row = TABLE[node.attrs["fn"]]
        flushed = 256 * float(np.finfo(np.float64 if dtype.bits == 64 else np.float32).smallest_normal) if row.flushes else 0.0
        return row.ulp * (eps * magnitude + smallest) + flushed if row.ulp else 0.0
    if node.op == "fused":
        return FUSED_ULP * (eps * magnitude + smallest) if node.regions[0].nodes[-1].attrs.get("fn") == "div" else 0.0
    if not spec(node.op).tolerance.grows or node.attrs.get("fn") in ("max", "min", "and", "or"):
        return 0.0
    relative = spec(node.op).tolerance.relative(dtype, terms(node, operands))
    if node.op in LINEAR or node.attrs.get("fn") == "add":
        magnitude = _sum_of_magnitudes(node, operands)
    return relative * magnitude + smallest


def _sum_of_magnitudes(node: Node, operands: Sequence[np.ndarray]) -> np.ndarray:
    """What the op gives for the absolute values of its operands, in f64."""
    wide = [np.abs(convert(array, dtypes.F64)) for array in operands]
    if node.op == "conv_winograd":  # the transforms subtract, so a bound: what they can make of the largest values, along each axis
        form = form_of(node.attrs["kernel"], operands[0].ndim - 3, node.attrs["tile"], node.attrs.get("stride", 1))
        gain = (np.abs(form.input_matrix).sum(1).max() * np.abs(form.output_matrix).sum(1).max()) ** form.axes
        return gain * terms(node, operands) * wide[0].max(initial=0) * wide[1].max(initial=0)
    if node.op == "conv_gathered":  # of an extreme: of all that are compared
        wide[1] = operands[1]
        (sums,) = evaluate(node.op, [array if array.dtype != np.float64 else array.astype(np.float32) for array in wide], {"pool": "none"})
        return sums if node.attrs["pool"] == "none" else sums.max(axis=1)
    if node.op == "conv_strassen":  # two inputs a sum, up to four values a result
        return 8 * terms(node, operands) * wide[0].max(initial=0) * wide[1].max(initial=0)
    attrs = {**node.attrs, "dtype": dtypes.F64} if "dtype" in node.attrs else node.attrs
    return evaluate(node.op, wide, attrs)[0]


def terms(node: Node, operands: Sequence[np.ndarray]) -> int:
    """How many terms one result sums."""
    x, shapes = operands[0], [array.shape for array in operands]
    match node.op:
        case "dot_general":
            return math.prod(x.shape[axis] for axis in node.attrs["contract"][0])
        case "dot_packed":
            return x.shape[-1]
        case "conv":
            return math.prod(shapes[1][1:])
        case "reduce":
            return math.prod(x.shape[axis] for axis in node.attrs["axes"])
        case "reduce_window":
            return math.prod(node.attrs["window"])
        case "conv_gathered":
            return math.prod(shapes[-1][1:4])
        case "cumulative":
            return x.shape[node.attrs["axis"]]
        case _:  # blocked convolutions: all of the weights but the output's lanes
            return max(1, math.prod(shapes[1]) // max(shapes[1][0] * shapes[1][-1], 1))
