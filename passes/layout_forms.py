"""The two forms a value of N C spatial may exist in while layouts are assigned, and the way from one to the other.

The blocked form [N, ceil(C/B), spatial, B] keeps a block of channels in a vector register (``Forms.block``). ``lanes`` is the
number that the pad lanes of the last block hold: NaN where it is not known. A reader that multiplies pad lanes with zero
weights needs a finite number there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tcompile.ir.build import Builder
from tcompile.ir.dtypes import BOOL
from tcompile.ir.graph import Graph, Node, Value
from tcompile.ir.spill import release
from tcompile.ir.target import Target
from tcompile.ir.tiles import channel_block

AXIS = 1


@dataclass
class Form:
    """Where a value of the old graph is in the new one."""

    plain: Value | None = None
    blocked: Value | None = None
    lanes: float = math.nan  # what pad lanes of ``blocked`` hold
    native: bool = False  # computed blocked


class Forms:
    """The values of the graph under construction by the old value they stand for. ``turns``: it runs in a loop, again and again."""

    def __init__(self, graph: Graph, builder: Builder, target: Target, *, winograd: bool, turns: bool = False) -> None:
        self.b = builder
        self.target, self.winograd, self.turns = target, winograd, turns
        self.producers, self.users, self.returned = graph.producers(), graph.users(), frozenset(graph.outputs)
        self.done: set[Node] = set()  # nodes that were computed together with an earlier one
        self.block = channel_block(target, [value.dtype for node in graph.nodes if node.op == "conv" for value in node.inputs])
        self.joined: dict[Value, Value] = {}  # concats of blocked parts, by what they stand for
        self.table: dict[Value, Form] = {value: Form(plain=value) for value in graph.inputs}

    def native(self, value: Value) -> bool:
        """Whether a value was computed in blocked form."""
        return self.table[value].native

    def set_plain(self, old: Value, new: Value) -> None:
        self.table[old] = Form(plain=new)

    def set_blocked(self, old: Value, new: Value, lanes: float) -> None:
        self.table[old] = Form(blocked=new, lanes=lanes, native=True)

    def plain(self, value: Value) -> Value:
        """The plain form; unpacked where there is none yet."""
        form = self.table[value]
        if form.plain is None:
            assert form.blocked is not None, value
            form.plain = self._unpack(form.blocked, value)
        return form.plain

    def _unpack(self, blocked: Value, old: Value) -> Value:
        channels = old.shape[AXIS]
        if all(extent == 1 for extent in old.shape[2:]) and channels % self.block == 0:
            return self.b.reshape(blocked, old.shape)  # [N, C/B, 1, 1, B] lies in memory like [N, C, 1, 1]
        return self.b.emit("unpack", blocked, axis=AXIS, extent=channels, block=self.block)

    def blocked(self, value: Value) -> Value:
        """The blocked form of a value of rank 2 or more with known channels; packed where there is none yet."""
        form = self.table[value]
        if form.blocked is None:
            node = self.producers.get(value)
            if node is not None and node.op == "broadcast":
                form.blocked, form.lanes = self._broadcast(node)
            else:
                form.blocked, form.lanes = self.pack(self.plain(value), AXIS), 0.0
        return form.blocked

    def lanes(self, value: Value) -> float:
        """What the pad lanes of ``blocked(value)`` hold, after that was asked for."""
        form = self.table[value]
        return 0.0 if value.shape[AXIS] % self.block == 0 else form.lanes

    def finite(self, value: Value) -> Value:
        """The blocked form with finite numbers in its pad lanes."""
        blocked = self.blocked(value)
        return blocked if math.isfinite(self.lanes(value)) else self._with_zero_lanes(blocked, value.shape[AXIS])

    def _with_zero_lanes(self, blocked: Value, channels: int) -> Value:
        valid = np.arange(blocked.shape[AXIS] * self.block).reshape(-1, self.block) < channels
        mask = self.b.constant(valid, BOOL)
        cond = self.b.emit("broadcast", mask, shape=blocked.shape, axes=(AXIS, blocked.rank - 1))
        return self.b.map("where", cond, blocked, self.b.scalar_like(0, blocked))

    def pack(self, value: Value, axis: int) -> Value:
        """pack of a new value; of a constant at once."""
        array = self.constant(value)
        if array is None:
            return self.b.emit("pack", value, axis=axis, block=self.block)
        return self.b.constant(pack_array(array, axis, self.block))

    def constant(self, new: Value) -> np.ndarray | None:
        """The array of a constant of the new graph (which keeps the constants of the old one)."""
        node = self.producers.get(new)
        return node.attrs["value"] if node is not None and node.op == "constant" else None

    def scalar(self, value: Value) -> float | None:
        """The number that a value of the old graph repeats, where it is known."""
        node = self.producers.get(value)
        while node is not None and node.op == "broadcast":
            node = self.producers.get(node.inputs[0])
        known = node is not None and node.op == "constant" and node.attrs["value"].size == 1
        return float(node.attrs["value"].reshape(-1)[0]) if known else None

    def release(self, node: Node) -> None:
        """Gives back the memory that reading a node's constants took, where they are in files."""
        for value in node.inputs:
            array = self.constant(value)
            if array is not None:
                release(array)

    def _broadcast(self, node: Node) -> tuple[Value, float]:
        """A broadcast made in blocked form, from the smallest operand."""
        (source,) = node.inputs
        shape, axes = node.output.shape, node.attrs["axes"]
        wide = (*shape[:AXIS], -(-shape[AXIS] // self.block), *shape[2:], self.block)
        position = axes.index(AXIS) if AXIS in axes else None
        if position is None or source.shape[position] == 1:
            plain = self.plain(source)
            array = self.constant(plain)
            number = float(array.reshape(-1)[0]) if array is not None and array.size == 1 else math.nan
            return self.b.emit("broadcast", plain, shape=wide, axes=axes), number
        if source.shape[position] != shape[AXIS]:
            return self.pack(self.plain(node.output), AXIS), 0.0  # an extent only known at run time
        if position == AXIS and self.native(source):
            narrow, lanes = self.blocked(source), self.lanes(source)
        else:
            narrow, lanes = self.pack(self.plain(source), position), 0.0
        return self.b.emit("broadcast", narrow, shape=wide, axes=(*axes, len(shape))), lanes


def pack_array(array: np.ndarray, axis: int, block: int) -> np.ndarray:
    """The meaning of ``pack``: blocks where the axis was, lanes last, zeros after the end."""
    blocks = -(-array.shape[axis] // block)
    split = padded_to(array, axis, blocks * block).reshape(*array.shape[:axis], blocks, block, *array.shape[axis + 1 :])
    return np.ascontiguousarray(np.moveaxis(split, axis + 1, -1))


def padded(b: Builder, x: Value, node: Node, *, lanes: bool) -> Value:
    """The input with its borders: two axes before the spatial ones, and the lanes behind."""
    low, high = node.attrs["low"], node.attrs["high"]
    if all(amount == 0 for amount in (*low, *high)):
        return x
    after = (0,) if lanes else ()
    return b.emit("pad", x, b.constant(0, x.dtype), low=(0, 0, *low, *after), high=(0, 0, *high, *after), mode="constant")


def padded_to(array: np.ndarray, axis: int, extent: int) -> np.ndarray:
    """The array with zeros behind, up to an extent; itself where it has that."""
    if array.shape[axis] == extent:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, extent - array.shape[axis])
    return np.pad(array, widths)
