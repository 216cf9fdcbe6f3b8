"""Convolutions whose groups are one channel, or a few, in blocked form: lanes stay in their group.

    conv(x, w)      -->  depthwise_blocked(pad(pack(x)), w')            one input and one output channel in a group
                         depthwise_blocked(pad(pack(repeat(x))), w')    one input channel in a group, several output channels
                         depthwise_blocked(pad(pack(x)), w' of G)       groups of 2 or 4 channels

Joined to whole blocks, narrow groups would multiply by zeros for the most part.
"""

from __future__ import annotations

import numpy as np

from tcompile.ir.graph import Node, Value
from tcompile.passes.layout_forms import AXIS, Forms, pack_array, padded

NARROW = (2, 4)  # channels of a group that turn by one shuffle each


def assign_depthwise(node: Node, weights: np.ndarray, forms: Forms) -> bool:
    """Computes a convolution of narrow groups blocked; tells whether it did."""
    x, _ = node.inputs
    groups, per_group, outputs = node.attrs["groups"], weights.shape[1], weights.shape[0]
    if groups == 1 or not outputs:
        return False
    if per_group == 1:
        source = forms.finite(x) if outputs == groups else forms.pack(_repeated(node, outputs // groups, forms), AXIS)
        packed = pack_array(weights[:, 0], 0, forms.block)
    elif _is_narrow(node, per_group, outputs // groups, forms):
        source = forms.finite(x)
        packed = pack_array(_turned(weights), 0, forms.block)
    else:
        return False
    attrs = {name: node.attrs[name] for name in ("strides", "dilation", "dtype")}
    bordered = padded(forms.b, source, node, lanes=True)
    forms.set_blocked(node.output, forms.b.emit("depthwise_blocked", bordered, forms.b.constant(packed), **attrs), 0.0)
    return True


def _is_narrow(node: Node, inputs: int, outputs: int, forms: Forms) -> bool:
    floats = all(value.dtype.is_float for value in (*node.inputs, node.output))
    return inputs == outputs and inputs in NARROW and inputs <= forms.target.float_lanes and forms.block % inputs == 0 and floats


def _repeated(node: Node, times: int, forms: Forms) -> Value:
    """x [N, C, spatial] with each channel ``times`` times in a row."""
    x = forms.plain(node.inputs[0])
    images, channels, *spatial = x.shape
    axes = (0, 1, *range(3, 3 + len(spatial)))
    wide = forms.b.emit("broadcast", x, shape=(images, channels, times, *spatial), axes=axes)
    return forms.b.reshape(wide, (images, channels * times, *spatial))


def _turned(weights: np.ndarray) -> np.ndarray:
    """[O, G, kernel] -> [O, G, kernel]: the j-th of a channel l is the weight of channel (l + j) % G of its group."""
    group, channels = weights.shape[1], np.arange(weights.shape[0])
    return np.stack([weights[channels, (channels + turn) % group] for turn in range(group)], axis=1)
