"""3x3 convolutions of codes by Winograd's F(4x4, 3x3) or F(2x2, 3x3) with integer points, where its integers fit and it is faster.

    %n = conv(%q, codes) {dtype = i32}; %f = convert(%n, f32)  -->  %f = conv_winograd_whole(pack(%q), u)

The transformed inputs of codes fit i16; whether the sums of their products fit i32 is seen from the weights and from the
range of the codes. The result is f32 as good as that of a convolution of floats, so it serves where only floats are read.
"""

from __future__ import annotations

import numpy as np

from tcompile.ir.choices import Option, choose
from tcompile.ir.dims import ceildiv
from tcompile.ir.dtypes import F32, I16
from tcompile.ir.graph import Node, Value
from tcompile.ir.ops_interleaved import interleave
from tcompile.ir.tiles import halves_cycles, whole_winograd_cycles
from tcompile.ir.winograd import WHOLE, Winograd
from tcompile.passes.layout_forms import Forms, pack_array, padded_to
from tcompile.passes.layout_ranges import code_range

_MARGIN = 0.9  # of the direct estimate that the other must stay below


def assign_whole_winograd(node: Node, weights: np.ndarray, forms: Forms) -> bool:
    """Computes a convolution of i16 codes by Winograd's algorithm, if it can and that pays; tells whether it did."""
    x, size = node.inputs[0], node.output.shape[2:]
    if not _has_shape(node, weights) or not forms.winograd or not _read_as_floats(node.output, forms):
        return False
    block = forms.block
    outputs, inputs = (-(-channels // block) * block for channels in weights.shape[:2])
    options = [Option("direct", _MARGIN * halves_cycles(forms.target, size[0] * size[1], 9, inputs, outputs), None)]
    for form in WHOLE.values():
        options.append(Option(f"whole winograd {form.outputs}", _cycles(form, forms, size, inputs, outputs), form))
    form = choose("convolution", options)
    if form is None:
        return False
    u = form.transform_weights(weights.astype(np.float64))[:, :, 0]  # [values, O, I], whole numbers
    if not _fits(form, u, code_range(x, forms)):
        return False
    packed = pack_array(pack_array(padded_to(u, 1, outputs), 2, block), 1, block)  # [values, O/B, I/B, B of I, B of O]
    attrs = {"size": tuple(size), "low": tuple(node.attrs["low"])}
    u = forms.b.constant(interleave(packed, 3, 2).astype(np.int16))
    result = forms.b.emit("conv_winograd_whole", forms.b.convert(forms.finite(x), I16), u, **attrs)
    for user in forms.users[node.output]:
        forms.set_blocked(user.output, result, 0.0)
    forms.done.update(forms.users[node.output])
    return True


def _cycles(form: Winograd, forms: Forms, size: tuple[int, ...], inputs: int, outputs: int) -> float:
    tiles = ceildiv(size[0], form.outputs) * ceildiv(size[1], form.outputs)
    return whole_winograd_cycles(forms.target, form, tiles, inputs, outputs)


def _has_shape(node: Node, weights: np.ndarray) -> bool:
    attrs = node.attrs
    if weights.shape[2:] != (3, 3) or any(n != 1 for n in (*attrs["strides"], *attrs["dilation"])):
        return False
    return all(isinstance(n, int) for n in (*node.output.shape[2:], *attrs["low"])) and min(attrs["low"]) >= 0


def _read_as_floats(value: Value, forms: Forms) -> bool:
    users = forms.users.get(value, ())
    return bool(users) and value not in forms.returned and all(user.op == "convert" and user.output.dtype == F32 for user in users)


def _fits(form: Winograd, u: np.ndarray, codes: tuple[int, int]) -> bool:
    """Whether transformed codes fit i16, transformed weights too, and the sums of their products i32."""
    low, high = min(codes[0], 0), max(codes[1], 0)  # the border is zeros
    matrix = form.input_matrix
    up, down = np.maximum(matrix, 0).sum(axis=1), np.maximum(-matrix, 0).sum(axis=1)
    positive, negative = np.outer(up, up) + np.outer(down, down), np.outer(up, down) + np.outer(down, up)
    most = np.maximum(positive * high - negative * low, negative * high - positive * low).reshape(-1)  # of |V| by value
    sums = np.abs(u).sum(axis=2).max(axis=1)
    return most.max() < 2**15 and np.abs(u).max() < 2**15 and (most * sums).max() < 2**31
