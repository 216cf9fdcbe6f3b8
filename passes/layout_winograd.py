"""Convolutions at stride 1 or 2, square or along one axis, by Winograd's algorithm, where that is faster.

conv(x, w) --> conv_winograd(pack(x), u)     u = G w Gt, packed; the kernel reads zeros around the input

A kernel of a single axis is one of that axis alone where the others have one position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tcompile.ir.choices import Option, choose
from tcompile.ir.dims import ceildiv
from tcompile.ir.dtypes import F32
from tcompile.ir.graph import Node
from tcompile.ir.tiles import direct_cycles, winograd_cycles
from tcompile.ir.winograd import Winograd, forms_of
from tcompile.passes.layout_forms import Forms, pack_array

_MARGIN = 0.95  # of the direct estimate that the other must stay below


def winograd_form(node: Node, weights: np.ndarray, forms: Forms) -> Winograd | None:
    """The algorithm for a convolution; None where it has not the shape, or too few channels for the transforms to pay."""
    attrs, axes = node.attrs, _axes(node, weights)
    size = [node.output.shape[2 + axis] for axis in axes]
    strides = {attrs["strides"][axis] for axis in axes}
    if len(strides) != 1 or (strides != {1} and any(attrs["dilation"][axis] != 1 for axis in axes)):
        return None
    forms_for = forms_of(weights.shape[2 + axes[0]], len(axes), strides.pop())
    if not forms_for:
        return None
    low = [attrs["low"][axis] for axis in axes]
    if attrs["dtype"] != F32 or not all(isinstance(n, int) for n in (*size, *low)) or min(low) < 0:
        return None
    kernel, steps, block = weights.shape[2 + axes[0]], [attrs["dilation"][axis] for axis in axes], forms.block
    channels = [-(-channels // block) * block for channels in weights.shape[1::-1]]
    options = [Option("direct", _MARGIN * direct_cycles(forms.target, math.prod(size), kernel ** len(axes), *channels), None)]
    for form in forms_for:
        cycles = winograd_cycles(forms.target, form, _tiles(size, steps, form), *channels)
        options.append(Option(f"winograd {form.outputs}", cycles, form))
    return choose("convolution", options)


def _tiles(size: Sequence[int], steps: Sequence[int], form: Winograd) -> int:
    """How many tiles cover an output."""
    return math.prod(ceildiv(ceildiv(extent, step), form.outputs) * step for extent, step in zip(size, steps, strict=True))


def _axes(node: Node, weights: np.ndarray) -> tuple[int, ...]:
    """The spatial axes that a square or single-axis kernel moves along; none for other kernels."""
    taps, size = weights.shape[2:], node.output.shape[2:]
    if len(taps) == 2 and taps[0] == taps[1]:
        return (0, 1)
    moving = tuple(axis for axis in range(len(taps)) if taps[axis] != 1 or size[axis] != 1)
    still = (axis for axis in range(len(taps)) if axis not in moving)
    return moving if len(moving) == 1 and all(node.inputs[0].shape[2 + axis] == 1 for axis in still) else ()


def assign_winograd(node: Node, weights: np.ndarray, form: Winograd, forms: Forms) -> None:
    """Computes the convolution by the algorithm that ``winograd_form`` found."""
    attrs, axes, b = node.attrs, _axes(node, weights), forms.b
    kernel = weights.shape[2 + axes[0]]
    u = b.constant(pack_transformed(weights.reshape(*weights.shape[:2], *(kernel,) * form.axes), form, forms.block))
    common = {name: tuple(attrs[name][axis] for axis in axes) for name in ("low", "dilation")}
    x, size = forms.finite(node.inputs[0]), tuple(node.output.shape[2 + axis] for axis in axes)
    x = b.reshape(x, (*x.shape[:2], *(x.shape[2 + axis] for axis in axes), x.shape[-1]))
    common |= {"stride": form.stride, "dtype": attrs["dtype"]}
    result = b.emit("conv_winograd", x, u, kernel=kernel, tile=form.outputs, size=size, **common)
    result = b.reshape(result, (*result.shape[:2], *node.output.shape[2:], result.shape[-1]))
    forms.set_blocked(node.output, result, 0.0)


def pack_transformed(weights: np.ndarray, form: Winograd, block: int) -> np.ndarray:
    """[O, I, r, r] (or [O, I, r]) -> [n * n (or n), O/B, pieces, I/B, B of I, B of O].

    A block of O at a time: the transform works in f64.
    """
    outputs, inputs = (-(-channels // block) for channels in weights.shape[:2])
    packed = np.zeros((form.values, outputs, len(form.offsets), inputs, block, block), weights.dtype)
    for k in range(outputs):
        part = form.transform_weights(weights[k * block : (k + 1) * block])  # [n * n, o, pieces, I]
        packed[:, k, ..., : part.shape[1]] = np.moveaxis(pack_array(part, 3, block), 1, -1)
    return packed
