"""Convolutions of embedded positions: the table of the embedding is multiplied, not the positions.

Runs after recognition, which finds gathers, and before layouts, which leave such convolutions alone.

    %x = reshape(gather(table, %rows))                             %r = reshape(%rows) to [N, P, J]
    %n = map(map(%x, %scale) {mul}, %shift) {add}       -->        %y = conv_gathered(table, %r, %scale, %shift, gain, bias, w)
    %y = conv(transpose(%n), w)

Where there are fewer rows in the table than positions, that is less work; what follows a maximum over all positions needs
the largest and the smallest result only, where the function between them has a single minimum:

    reduce(gelu(%y)) {max}      -->      max(gelu(max of %y), gelu(min of %y))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.choices import Option, choose
from tcompile.ir.dtypes import F32, I32
from tcompile.ir.graph import Graph, Node, Value
from tcompile.ir.target import Target
from tcompile.ir.tiles import direct_cycles, gathered_block, gathered_cycles, winograd_cycles
from tcompile.ir.winograd import BY_KERNEL, forms_of
from tcompile.passes.gathered_forms import Affine, affine, total
from tcompile.passes.gathered_sums import sum_of_gathered
from tcompile.passes.layout_forms import padded_to
from tcompile.passes.rewrite import Context, Patch, patch, rewrite, rule
from tcompile.passes.valleys import valley

_MOST_PARTS = 8  # rows of a position
_BIAS = 5  # the operand


@dataclass(frozen=True)
class GatheredConvs:
    """The pass. A target without channel blocks has no kernel for it."""

    target: Target
    name: str = "gathered-convs"

    def apply(self, graph: Graph) -> Graph:
        """The graph with the rules applied."""
        if not self.target.channel_block:
            return graph
        target = self.target

        @rule("conv")
        def gathered(node: Node, context: Context) -> Patch | None:
            return _gathered(node, context, target)

        return rewrite(rewrite(graph, (gathered,)), (bias_of_gathered, extremes_of_gathered, sum_of_gathered))


def _gathered(node: Node, context: Context, target: Target) -> Patch | None:
    weights = context.constant(node.inputs[1])
    axis = _moving_axis(node)
    if weights is None or axis is None or weights.dtype != np.float32 or node.attrs["dtype"] != F32:
        return None
    channels_last = _positions_by_channels(node.inputs[0], axis, context)
    form = affine(channels_last, context) if channels_last is not None else None
    if form is None or form.source.parts > _MOST_PARTS:
        return None
    w = weights.reshape(*weights.shape[:2], -1)  # [O, C, T]
    block = _block(form, w, channels_last.shape[1], target)
    if block is None:
        return None
    b = context.build(node)
    count = channels_last.shape[1] - w.shape[2] + 1
    y = _emit(b, form, w, channels_last, block)
    y = b.transpose(b.slice_axis(y, 2, 0, w.shape[0]), (0, 2, 1))
    assert y.shape[2] == count, y
    return patch("convolution of rows of a table", b, b.reshape(y, node.output.shape))


def _moving_axis(node: Node) -> int | None:
    """The spatial axis of a plain convolution at stride 1 along one axis; None for others."""
    attrs, x = node.attrs, node.inputs[0]
    plain = all(n == 1 for name in ("strides", "dilation", "lhs_dilation") for n in attrs[name])
    if not plain or attrs["groups"] != 1 or any(n != 0 for n in (*attrs["low"], *attrs["high"])):
        return None
    moving = [axis for axis in range(2, x.rank) if x.shape[axis] != 1]
    return moving[0] if len(moving) == 1 and all(isinstance(extent, int) for extent in x.shape[1:]) else None


def _positions_by_channels(value: Value, axis: int, context: Context) -> Value | None:
    """The value [N, P, C] that a value [N, C, spatial] is, whose one spatial axis that moves is ``axis``."""
    wanted = (value.shape[0], value.shape[axis], value.shape[1])
    order: list[int | None] = [2 if k == 1 else 1 if k == axis else 0 if k == 0 else None for k in range(value.rank)]
    while (made := context.producer(value, "transpose", "reshape")) is not None:
        if value.shape == wanted and order == [0, 1, 2]:
            return value
        (inner,) = made.inputs
        found = _before(made, inner, order)
        if found is None:
            break
        value, order = inner, found
    return value if value.shape == wanted and order == [0, 1, 2] else None


def _before(made: Node, inner: Value, order: Sequence[int | None]) -> list[int | None] | None:
    """Which axes the axes before a movement were; None of those of extent 1 that a reshape adds."""
    if made.op == "transpose":
        result: list[int | None] = [None] * inner.rank
        for position, axis in enumerate(made.attrs["perm"]):
            result[axis] = order[position]
        return result
    kept = [(axis, extent) for axis, extent in zip(order, made.output.shape, strict=True) if axis is not None]
    result = []
    for extent in inner.shape:
        if kept and extent == kept[0][1]:
            result.append(kept.pop(0)[0])
        elif extent == 1:
            result.append(None)
        else:
            return None
    return None if kept else result


def _block(form: Affine, w: np.ndarray, positions: int, target: Target) -> int | None:
    """The outputs of a task where multiplying the table is estimated to be faster than multiplying positions."""
    outputs, channels, taps = w.shape
    entries, depth = form.source.table.shape
    block = gathered_block(target, taps, entries * form.source.parts)
    if block is None or not outputs or positions < taps:
        return None
    count = positions - taps + 1
    options = [Option("positions", direct_cycles(target, count, taps, channels, outputs), None)]
    for winograd in forms_of(taps, 1) if taps in BY_KERNEL else ():
        cycles = winograd_cycles(target, winograd, dims.ceildiv(count, winograd.outputs), channels, outputs)
        options.append(Option(f"winograd {winograd.outputs}", cycles, None))
    padded = -(-outputs // block) * block
    options.append(Option("table", gathered_cycles(target, positions, entries, form.source.parts, depth, taps, padded), block))
    return choose("convolution of a table's rows", options)


def _emit(b: Builder, form: Affine, w: np.ndarray, like: Value, block: int) -> Value:
    """The conv_gathered of a value [N, P, C] of a form, with weights [O, C, T]."""
    images, positions, channels = like.shape
    outputs, _, taps = w.shape
    parts = form.source.parts
    rows = b.convert(b.reshape(form.source.rows, (images, positions, parts)), I32)
    scale, shift = (total(b, terms, (images, channels)) for terms in (form.scale, form.shift))
    gain = b.constant(np.ones(positions, np.float32)) if not form.gain else form.gain[0]
    for other in form.gain[1:]:
        gain = b.map("mul", gain, other)
    full = padded_to(w, 0, -(-outputs // block) * block)
    packed = full.reshape(-1, block, parts, channels // parts, taps).transpose(0, 2, 3, 4, 1)
    operands = [
        b.constant(form.source.table),
        rows,
        scale,
        shift,
        gain,
        b.constant(_in_blocks(_bias(form.rest, full), block)),
        b.constant(np.ascontiguousarray(packed)),
    ]
    return b.emit("conv_gathered", *operands, pool="none")


def _bias(rest: np.ndarray, w: np.ndarray) -> np.ndarray:
    """What a part that all channels of a position share adds to the results: [Q, O], or [1, O] where it is nothing."""
    outputs, _, taps = w.shape
    if not rest.any():
        return np.zeros((1, outputs), np.float32)
    sums = w.sum(axis=1, dtype=np.float64)  # [O, T]
    windows = np.lib.stride_tricks.sliding_window_view(rest, taps)  # [Q, T]
    return (windows @ sums.T).astype(np.float32)


def _in_blocks(bias: np.ndarray, block: int) -> np.ndarray:
    """[Q, O] as [O/B, Q, B]."""
    return np.ascontiguousarray(bias.reshape(bias.shape[0], -1, block).swapaxes(0, 1))


@rule("map")
def bias_of_gathered(node: Node, context: Context) -> Patch | None:
    # conv_gathered(.., bias) + c == conv_gathered(.., bias + c), for one c of each output channel
    if node.attrs["fn"] != "add":
        return None
    for value, other in (node.inputs, node.inputs[::-1]):
        core = _result_of(value, context) if context.used_once(value) else None
        wide = _of_channels(other, context) if core is not None else None
        if core is None or wide is None:
            continue
        b = context.build(core)
        bias = context.constant(core.inputs[_BIAS])
        assert bias is not None, core
        operands = list(core.inputs)
        blocks, _, block = bias.shape
        operands[_BIAS] = b.constant(bias + padded_to(wide, 0, blocks * block).reshape(blocks, 1, block))
        y = b.slice_axis(b.emit(core.op, *operands, **core.attrs), 2, 0, wide.size)
        return patch("bias of a convolution of rows", b, b.reshape(b.transpose(y, (0, 2, 1)), node.output.shape))
    return None


def _of_channels(value: Value, context: Context) -> np.ndarray | None:
    """The constant [O] that a value [N, O, ...] repeats."""
    spread = context.producer(value, "broadcast")
    c = context.constant(spread.inputs[0]) if spread is not None else None
    if c is None or value.rank < 3 or any(n != 1 for axis, n in zip(spread.attrs["axes"], c.shape, strict=True) if axis != 1):
        return None
    return np.ascontiguousarray(np.broadcast_to(c.reshape(-1), value.shape[1]))


def _result_of(value: Value, context: Context) -> Node | None:
    """The conv_gathered, read by nothing else, whose result a value [N, O, Q] is, or one with further axes of extent 1."""
    spatial = [extent for extent in value.shape[2:] if extent != 1]
    made = context.producer(value, "reshape", "transpose")
    while made is not None and made.op == "reshape":
        (inner,) = made.inputs
        if inner.shape[:2] != value.shape[:2] or [extent for extent in inner.shape[2:] if extent != 1] != spatial:
            return None
        made = context.producer(inner, "reshape", "transpose") if context.used_once(inner) else None
    if made is None or made.attrs["perm"] != (0, 2, 1):
        return None
    made, used = context.producer(made.inputs[0], "slice", "conv_gathered"), context.used_once(made.inputs[0])
    if made is not None and made.op == "slice":
        cut = made.attrs["start"] == (0, 0, 0) and set(made.attrs["step"]) == {1} and made.attrs["size"][1] == made.inputs[0].shape[1]
        used, made = used and context.used_once(made.inputs[0]), context.producer(made.inputs[0], "conv_gathered") if cut else None
    return made if made is not None and used and made.attrs["pool"] == "none" else None


@rule("reduce")
def extremes_of_gathered(node: Node, context: Context) -> Patch | None:
    # max over q of f(y[q]) == max(f(max of y), f(min of y)), where f falls, then rises
    (x,) = node.inputs
    if node.attrs["fn"] != "max" or node.attrs["axes"] != tuple(range(2, x.rank)) or not context.used_once(x):
        return None
    function = valley(x, context)
    core = _result_of(function.argument, context) if function.owns(context) else None
    if core is None:
        return None
    b = context.build(node)
    both = b.emit(core.op, *core.inputs, pool="extremes")
    images, outputs = node.output.shape
    largest, smallest = (b.reshape(b.slice(both, (k, 0, 0), (1, images, outputs)), (images, outputs)) for k in range(2))
    result = function.apply(b, largest)
    if not function.rises:
        result = b.map("max", result, function.apply(b, smallest))
    return patch("maximum of a function of rows", b, result)
