"""The core op of integer convolutions and matrix products on bytes, for machines that add products of bytes in pairs, in 16 bits.

``pmaddubsw`` multiplies unsigned bytes by signed ones and adds two products into an i16, which saturates. Weights are constants, so
it is known which sums fit: all of the ``size`` entries that stand in one *group* are added in 16 bits, and only their sum takes a
step to 32. An entry holds weights of one output for four neighbouring terms; a weight too large is the sum of two entries'.
``passes/byte_entries.py`` finds groups whose sums fit for any codes of 0..255.

    y[o] = offsets[o] + sum over passes and entries e of o:  entries[e] . codes[4 * places[e] / POSITIONS : + 4]

The terms of a position lie block by block of the input, in it kernel position by kernel position, in it the A channels of the block.
"""

from __future__ import annotations

import math

import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.graph import TensorType
from tcompile.ir.ops_layout import output_extents
from tcompile.ir.opspec import Arrays, Attrs, Env, OpSpec, Types, need, register

MOST_SIZE = 4  # entries of a group
POSITIONS = 64  # of a tile: a place is where the first of a word's codes lies, in words
MOST_WORDS = 256  # of a pass


def _infer(types: Types, attrs: Attrs, regions: object) -> Types:
    x, entries, places, starts, offsets = types
    axes, depth = len(attrs["kernel"]), attrs["depth"]
    need(x.dtype == dtypes.I16 and x.rank == axes + 3, f"x [N, I/A, {axes} axes, A] in i16", x)
    need(isinstance(x.shape[1], int) and isinstance(x.shape[-1], int) and x.shape[-1] % 4 == 0, "input blocks of a multiple of 4", x)
    need(entries.dtype == dtypes.I8 and entries.rank == 2 and entries.shape[1] == 4, "entries [E, 4] in i8", entries)
    need(places.dtype == dtypes.U16 and places.shape == entries.shape[:1], "a place of each entry in u16", places)
    need(offsets.dtype == dtypes.I32 and offsets.rank == 2, "offsets [O/B, B] in i32", offsets)
    words = x.shape[1] * math.prod(attrs["kernel"]) * x.shape[-1] // 4
    need(abs(attrs["low"]) <= 255, "codes from -255 to 255 on", attrs["low"])
    need(1 <= attrs["size"] <= MOST_SIZE, f"groups of 1 to {MOST_SIZE} entries", attrs["size"])
    need(1 <= depth <= MOST_WORDS, f"passes of 1 to {MOST_WORDS} words", depth)
    need(words <= x.shape[-1] // 4 or depth % (x.shape[-1] // 4) == 0, "passes over whole input blocks", depth)
    shape = (-(-words // depth), math.prod(offsets.shape), 2)
    need(starts.dtype == dtypes.I32 and starts.shape == shape, f"starts i32[{', '.join(map(str, shape))}]", starts)
    spatial = output_extents(x.shape[2:-1], attrs["kernel"], attrs)
    return (TensorType(dtypes.I32, (x.shape[0], offsets.shape[0], *spatial, offsets.shape[1])),)


def _evaluate(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    x, entries, places, starts, offsets = arrays
    codes, depth = _codes(x, attrs), attrs["depth"]
    sums = np.zeros((*codes.shape[:-2], offsets.size), np.int64)
    for number, outputs in enumerate(starts):
        part = codes[..., number * depth : (number + 1) * depth, :]
        weights = np.zeros((offsets.size, part.shape[-2], 4), np.int64)
        for output, (start, groups) in enumerate(outputs):
            rows = slice(start, start + groups * attrs["size"])
            np.add.at(weights[output], places[rows] // POSITIONS, entries[rows])
        sums += np.einsum("...kj,okj->...o", part, weights)
    sums = sums.reshape(*sums.shape[:-1], *offsets.shape) + offsets
    return (np.moveaxis(sums, -2, 1).astype(np.int32),)


def _codes(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    """The unsigned codes under the kernel of each output position: [N, spatial, terms / 4, 4]."""
    spatial = output_extents(x.shape[2:-1], attrs["kernel"], attrs)
    found = []
    for block in range(x.shape[1]):
        for tap in np.ndindex(*attrs["kernel"]):
            cut = tuple(
                slice(k * d, k * d + (n - 1) * s + 1 if n else 0, s)
                for k, d, s, n in zip(tap, attrs["dilation"], attrs["strides"], spatial, strict=True)
            )
            found.append(x[(slice(None), block, *cut)])
    codes = (np.stack(found, axis=-2).astype(np.int64) - attrs["low"]) & 255
    return codes.reshape(*codes.shape[:-2], len(found) * x.shape[-1] // 4, 4)


register(
    OpSpec(
        "conv_bytes",
        "conv_bytes(x, entries, places, starts, offsets) {kernel, strides, dilation, low, depth, size}: x [N, I/A, spatial, A] (padded), "
        "of numbers from low to low + 255; entries [E, 4]; places [E]; starts [passes, outputs, (first entry, groups of size entries)]; "
        "offsets [O/B, B]; passes over depth words of 4 terms; in i32.",
        operands=(5, 5),
        attrs={"kernel": "ints", "strides": "ints", "dilation": "ints", "low": "int", "depth": "int", "size": "int"},
        infer=_infer,
        evaluate=_evaluate,
    )
)
