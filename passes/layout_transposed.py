"""Transposed convolutions as ordinary ones: each phase of the output is a convolution of the undilated input.

Output position o = d*q + r of an axis with input dilation d reads only kernel positions k with (r + k - low) % d == 0, and
those at input position q + (r + k - low) / d. All phases r read windows around q, so one convolution with d times the output
channels computes them together (each phase has a window of its own, around which weights are zero), and what remains is to
interleave: channels (r, c) at q go to channel c at d*q + r.

    conv(x, w) {lhs_dilation = (2, 2)}
-->
    conv_blocked(pad(x), w') [N, 4*C/16, H, W, 16]; reshape; transpose; reshape [N, C/16, 2*H, 2*W, 16]
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.dims import DimLike
from tcompile.ir.graph import Node, Value
from tcompile.passes.layout_forms import Forms, pack_array

MOST_WASTE = 4.0  # multiplications with zero weights that the one convolution may add, per useful one


@dataclass(frozen=True)
class Axis:
    """One spatial axis: which (phase, window position) each kernel position serves, and the border of the input."""

    phases: int
    served: tuple[tuple[int, int], ...]  # of kernel position k
    window: int
    low: int
    high: DimLike
    length: DimLike  # outputs of one phase


def assign_transposed(node: Node, forms: Forms) -> bool:
    """Computes a transposed convolution with constant weights blocked; tells whether it did."""
    x, w = node.inputs
    weights = forms.constant(forms.plain(w))
    axes = _axes(node)
    if weights is None or axes is None or node.attrs["groups"] != 1:
        return False
    b, outputs = forms.b, weights.shape[0]
    kernel = _joined(weights, axes)  # [phases, O, I, windows]
    padded = _bordered(b, forms.finite(x), axes)
    common = {"strides": (1,) * len(axes), "dilation": (1,) * len(axes), "dtype": node.attrs["dtype"], "groups": 1}
    packed = pack_array(pack_array(kernel.reshape(-1, *kernel.shape[2:]), 1, forms.block), 0, forms.block)
    if outputs % forms.block == 0:
        result = b.emit("conv_blocked", padded, b.constant(packed), windows=_windows(axes), **common)
        blocked = _interleave(b, result, outputs // forms.block, axes, node.output.shape[2:])
        forms.set_blocked(node.output, blocked, 0.0)
        return True
    result = b.emit("conv_blocked", padded, b.constant(packed), **common)
    plain = b.emit("unpack", result, axis=1, extent=kernel.shape[0] * outputs, block=forms.block)
    forms.set_plain(node.output, _interleave(b, plain, outputs, axes, node.output.shape[2:]))
    return True


def _axes(node: Node) -> list[Axis] | None:
    """The plan of every spatial axis, or None where one does not fit."""
    attrs, x, w = node.attrs, node.inputs[0], node.inputs[1]
    if any(s != 1 for s in attrs["strides"]) or not w.type.is_static or not all(isinstance(low, int) for low in attrs["low"]):
        return None
    found = [
        _axis(*geometry)
        for geometry in zip(
            w.shape[2:], attrs["lhs_dilation"], attrs["dilation"], attrs["low"], x.shape[2:], node.output.shape[2:], strict=True
        )
    ]
    axes = [axis for axis in found if axis is not None]
    if len(axes) < len(found):
        return None
    work = math.prod(axis.phases * axis.window for axis in axes) / math.prod(w.shape[2:])
    return axes if work <= MOST_WASTE else None


def _axis(kernel: int, phases: int, dilation: int, low: int, extent: DimLike, length: DimLike) -> Axis | None:
    served = []
    for k in range(kernel):
        # the phase that position k serves: r with (r + k*dilation - low) % phases == 0
        phase = (low - k * dilation) % phases
        served.append((phase, (phase + k * dilation - low) // phases))
    first, last = min(place for _, place in served), max(place for _, place in served)
    turns = dims.ceildiv(length, phases)
    high = turns + last - extent
    if not (isinstance(high, int) or dims.nonnegative(high)):
        return None
    return Axis(phases, tuple((phase, place - first) for phase, place in served), last - first + 1, -first, high, turns)


def _joined(weights: np.ndarray, axes: list[Axis]) -> np.ndarray:
    """The weights of all phases over their common window."""
    phases = math.prod(axis.phases for axis in axes)
    joined = np.zeros((phases, *weights.shape[:2], *(axis.window for axis in axes)), weights.dtype)
    for position in itertools.product(*map(range, weights.shape[2:])):
        phase, place = 0, []
        for axis, k in zip(axes, position, strict=True):
            mine, where = axis.served[k]
            phase = phase * axis.phases + mine
            place.append(where)
        joined[(phase, slice(None), slice(None), *place)] = weights[(slice(None), slice(None), *position)]
    return joined


def _windows(axes: list[Axis]) -> tuple[int, ...]:
    """The start and size of the part of the window that each phase reads, along every axis."""
    found: list[int] = []
    for phase in itertools.product(*(range(axis.phases) for axis in axes)):
        for axis, mine in zip(axes, phase, strict=True):
            places = [place for owner, place in axis.served if owner == mine]
            found += (min(places), max(places) - min(places) + 1) if places else (0, 0)
    return tuple(found)


def _bordered(b: Builder, x: Value, axes: list[Axis]) -> Value:
    """The blocked input with the border that the windows reach into, less what no window reads."""
    low = [max(axis.low, 0) for axis in axes]
    high = [axis.high if not isinstance(axis.high, int) or axis.high > 0 else 0 for axis in axes]
    if any(amount != 0 for amount in (*low, *high)):
        x = b.emit("pad", x, b.constant(0, x.dtype), low=(0, 0, *low, 0), high=(0, 0, *high, 0), mode="constant")
    start = [max(-axis.low, 0) for axis in axes]
    size = [axis.length + axis.window - 1 for axis in axes]
    return b.slice(x, (0, 0, *start, 0), (*x.shape[:2], *size, x.shape[-1]))


def _interleave(b: Builder, x: Value, channels: int, axes: list[Axis], spatial: tuple[DimLike, ...]) -> Value:
    """[N, phases * channels, Q.., (lanes)] to [N, channels, d * Q.., (lanes)], cut to the output's extents."""
    rank, lanes = len(axes), x.shape[2 + len(axes) :]
    phases, lengths = [axis.phases for axis in axes], [axis.length for axis in axes]
    split = b.reshape(x, (x.shape[0], *phases, channels, *lengths, *lanes))
    pairs = [place for k in range(rank) for place in (2 + rank + k, 1 + k)]
    behind = range(2 + 2 * rank, 2 + 2 * rank + len(lanes))
    mixed = b.transpose(split, (0, 1 + rank, *pairs, *behind))
    joined = b.reshape(mixed, (x.shape[0], channels, *(axis.phases * axis.length for axis in axes), *lanes))
    return b.slice(joined, (0,) * joined.rank, (x.shape[0], channels, *spatial, *lanes))
