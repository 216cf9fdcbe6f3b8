"""Pointwise convolutions of plain images that stay plain, as products of a matrix with each image, where that is faster.

    conv(x, w)  -->  conv_pointwise(x, w')

A blocked convolution of a plain image packs it, and unpacks its result where that is read plain: passes over memory that take
half as long as the convolution itself where channels are few. What follows decides: the users that are convolutions of more
than one element read blocks, and other pointwise ones what they get.
"""

from __future__ import annotations

from enum import Flag, auto

import numpy as np

from tcompile.ir.access import ELEMENTWISE
from tcompile.ir.dims import product
from tcompile.ir.dtypes import F32
from tcompile.ir.graph import Node, Value
from tcompile.ir.ops_pointwise import pack_tiles
from tcompile.ir.pointwise import Pointwise, pointwise_tile, stays_plain
from tcompile.ir.tiles import accumulator_type
from tcompile.passes.layout_forms import AXIS, Forms


class Wanted(Flag):
    """The forms that a value is read in."""

    NEITHER = 0
    PLAIN = auto()
    BLOCKED = auto()


def assign_pointwise(node: Node, weights: np.ndarray, forms: Forms) -> bool:
    """Computes a convolution with weights [O, I/g, 1..] plain, where that is faster; tells whether it did."""
    x, groups = node.inputs[0], node.attrs["groups"]
    if forms.native(x) or not _fits(node) or 0 in weights.shape:
        return False
    (outputs, terms), b = weights.shape[:2], forms.b
    dtype = accumulator_type(x.dtype, node.inputs[1].dtype, node.attrs["dtype"])
    positions = product(x.shape[2:])
    wanted = _wanted(node.output, forms)
    moved = _packed_channels(node, forms) + (outputs if Wanted.PLAIN in wanted else 0)
    strassen = forms.winograd and groups == 1 and dtype == F32 and _in_pairs(outputs, forms) and _in_pairs(terms, forms)
    packed = outputs if Wanted.BLOCKED in wanted else 0
    conv = Pointwise(positions, x.shape[AXIS], outputs, groups, dtype)
    if not stays_plain(forms.target, conv, forms.block, moved=moved, packed=packed, strassen=strassen):
        return False
    tile = pointwise_tile(forms.target, outputs // groups, positions, terms, dtype)
    tiles = b.constant(pack_tiles(weights.reshape(outputs, terms), groups, tile.rows))
    rows = b.reshape(forms.plain(x), (*x.shape[:2], positions))
    result = b.emit("conv_pointwise", rows, tiles, channels=outputs, dtype=node.attrs["dtype"])
    forms.set_plain(node.output, b.reshape(result, node.output.shape))
    return True


def _fits(node: Node) -> bool:
    """A kernel of one element at every position of a plain image, of floats."""
    x, w = node.inputs
    attrs = node.attrs
    single = all(extent == 1 for extent in w.shape[2:]) and all(step == 1 for step in attrs["strides"])
    inside = all(amount == 0 for amount in (*attrs["low"], *attrs["high"])) and all(d == 1 for d in attrs["lhs_dilation"])
    return x.rank >= 3 and single and inside and x.dtype.is_float and w.dtype.is_float and isinstance(x.shape[AXIS], int)


def _in_pairs(channels: int, forms: Forms) -> bool:
    """Whether two halves are whole blocks."""
    return -(-channels // forms.block) % 2 == 0


def _packed_channels(node: Node, forms: Forms) -> int:
    """The channels of the input that are packed for this convolution alone: not those that a transpose brings to axis 1 anyway."""
    x = node.inputs[0]
    others = [user for user in forms.users.get(x, ()) if user is not node]
    shared = forms.table[x].blocked is not None or any(user.op == "conv" and not _fits(user) for user in others)
    made = forms.producers.get(x)
    while made is not None and (made.op in ELEMENTWISE or _keeps_channels(made)):
        made = forms.producers.get(made.inputs[0])
    turned = made is not None and made.op == "transpose" and made.attrs["perm"][AXIS] == made.output.rank - 1
    return 0 if shared or turned else x.shape[AXIS]


def _keeps_channels(node: Node) -> bool:
    """Whether a node only changes how positions are counted."""
    return node.op == "reshape" and node.output.rank > AXIS and node.output.shape[: AXIS + 1] == node.inputs[0].shape[: AXIS + 1]


def _wanted(value: Value, forms: Forms) -> Wanted:
    """The forms that a value is read in, behind elementwise work; NEITHER by pointwise convolutions, which take both, and by what
    brings the channels to the last axis from either."""
    found, pending, seen = Wanted.NEITHER, [value], set[Value]()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        found |= Wanted.PLAIN if value in forms.returned else Wanted.NEITHER
        for user in forms.users.get(value, ()):
            if _keeps_channels(user) or (user.op in ELEMENTWISE and not _meets_blocks(user, forms)):
                pending += user.outputs
            else:
                found |= _read_by(user, value)
    return found


def _meets_blocks(node: Node, forms: Forms) -> bool:
    """Whether another operand is blocked, and so will be the result."""
    return any(value in forms.table and forms.native(value) for value in node.inputs)


def _read_by(user: Node, value: Value) -> Wanted:
    if (user.op == "conv" and user.inputs[0] is value and _fits(user)) or (user.op == "transpose" and user.attrs["perm"][-1] == AXIS):
        return Wanted.NEITHER
    return Wanted.BLOCKED if user.op in ELEMENTWISE or user.op in ("reduce_window", "conv") else Wanted.PLAIN
