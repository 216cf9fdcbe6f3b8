"""Convolutions of channels that were joined: the parts stay blocked, each with pad lanes of its own, and the weights skip those.

    %j = concat(%a, %b) {axis = 1}           %j = concat(%a', %b')            a' [N, ceil(Ca / B), ..., B]
    %y = conv(%j, %w)                 -->    %y = conv_blocked(%j, %w')       w' zero in the pad lanes of both

Where Ca is no multiple of B, the channels of b would else move to other lanes: unpacked, joined and packed again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tcompile.ir.graph import Node, Value
from tcompile.passes.layout_forms import AXIS, Form, Forms

_MOVE_CYCLES = 4.0  # of bringing one element to another lane


@contextmanager
def joined_input(node: Node, forms: Forms, weights: np.ndarray) -> Iterator[np.ndarray]:
    """While it is open, the blocked form of a convolution's input is that of its parts, where it has some; yields the weights for it."""
    (x, _), parts = node.inputs, _parts(node, forms, weights)
    if not parts:
        yield weights
        return
    before = forms.table[x]
    if x not in forms.joined:
        forms.joined[x] = forms.b.emit("concat", *map(forms.finite, parts), axis=AXIS)
    forms.table[x] = Form(blocked=forms.joined[x], lanes=0.0, native=True)  # finite, and met by zero weights
    yield _spread(weights, [part.shape[AXIS] for part in parts], forms.block)
    forms.table[x] = before


def _parts(node: Node, forms: Forms, weights: np.ndarray) -> list[Value]:
    """The values whose channels were joined to the input of a convolution; none where the joined ones are blocked anyway, or where
    the products with more pad lanes would take longer than moving the channels."""
    x = node.inputs[0]
    if node.attrs["groups"] != 1 or forms.native(x) or not x.dtype.is_float:
        return []
    parts = list(_leaves(x, forms))
    known = all(isinstance(part.shape[AXIS], int) and part.shape[AXIS] > 0 for part in parts)
    if len(parts) < 2 or not known or not any(map(forms.native, parts)):
        return []
    block = forms.block
    more = (sum(-(-part.shape[AXIS] // block) for part in parts) - -(-x.shape[AXIS] // block)) * block
    products = more * math.prod(weights.shape[2:]) * -(-weights.shape[0] // block) * block
    rate = forms.target.fma_ports * forms.target.float_lanes
    return parts if products <= _MOVE_CYCLES * x.shape[AXIS] * rate else []


def _leaves(value: Value, forms: Forms) -> Iterator[Value]:
    node = forms.producers.get(value)
    if node is None or node.op != "concat" or node.attrs["axis"] != AXIS or forms.native(value):
        yield value
        return
    for operand in node.inputs:
        yield from _leaves(operand, forms)


def _spread(weights: np.ndarray, channels: list[int], block: int) -> np.ndarray:
    """[O, I, kernel] with zeros behind the input channels of each part, up to whole blocks."""
    wide = np.zeros((weights.shape[0], sum(-(-count // block) for count in channels) * block, *weights.shape[2:]), weights.dtype)
    start = place = 0
    for count in channels:
        wide[:, place : place + count] = weights[:, start : start + count]
        start, place = start + count, place + -(-count // block) * block
    return wide
