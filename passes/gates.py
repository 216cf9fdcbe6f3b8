"""Factors of channels move from a convolution's input to its weights; run with the constant folding after layouts.

    %g = broadcast(%s) {axes = (0, 1, 4), ...}                 %v = broadcast(%s) {axes = (1, 4), ...}
    %m = map(%x, %g) {fn = "mul"}                   -->        %u = map(%w, %v) {fn = "mul"}
    %y = conv_blocked(%m, %w)                                  %y = conv_blocked(%x, %u)

Such are the gates of squeeze-and-excitation blocks. Large images have many more positions than a pointwise kernel has outputs, and
the input is then read where it lies. The factors of one image alone can be in the weights: the batch is 1, or they are the same for all.
"""

from __future__ import annotations

from tcompile.ir.dims import product
from tcompile.ir.graph import Node, Value
from tcompile.passes.rewrite import Context, Patch, patch, rule

WORTH = 4  # times as many elements as the weights has the input: gates that are functions are computed for each row of the weights


@rule("conv_blocked")
def gate_of_weights(node: Node, context: Context) -> Patch | None:
    # sum over c of (x[c] * s[c]) * w[c] == sum over c of x[c] * (s[c] * w[c])
    gated = context.producer(node.inputs[0], "map")
    if gated is None or gated.attrs["fn"] != "mul" or node.attrs["groups"] != 1 or not context.used_once(gated.output):
        return None
    w = node.inputs[1]
    weights, elements = product(w.shape), product(gated.output.shape)
    if not isinstance(weights, int) or not isinstance(elements, int) or WORTH * weights > elements or w.dtype != gated.output.dtype:
        return None
    for x, factor in (gated.inputs, gated.inputs[::-1]):
        source = _factors(factor, context)
        if source is not None and not context.is_constant(factor):
            b = context.build(node)
            factors = b.reshape(source, (w.shape[1], w.shape[-2]))
            spread = b.emit("broadcast", factors, shape=w.shape, axes=(1, w.rank - 2))
            result = b.emit("conv_blocked", x, b.map("mul", w, spread), **node.attrs)
            return patch("gate of a convolution's input in its weights", b, result)
    return None


def _factors(value: Value, context: Context) -> Value | None:
    """What a value repeats at every position: a number for each channel of the only image."""
    made = context.producer(value, "broadcast")
    if made is None or not value.dtype.is_float:
        return None
    shape, axes = value.shape, made.attrs["axes"]
    channels = (1, len(shape) - 1)
    alone = axes == channels or (axes == (0, *channels) and shape[0] == 1)
    return made.inputs[0] if alone and made.inputs[0].shape[-2:] == (shape[1], shape[-1]) else None


RULES = (gate_of_weights,)
