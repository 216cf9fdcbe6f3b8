"""Weights as entries for sums of bytes in 16 bits (``ir/ops_bytes.py``): groups whose sums fit, whatever the codes are.

An entry has two sums of two products u * w each (u of 0..255), which are added to those of the other entries of its group. They stay
within i16 where the positive weights add up to 128 at most, and the negative ones: those are an entry's four *loads*. So groups are
bins of a packing problem, of four capacities and at most ``size`` entries:

    1. of a word of weights too large for an entry, the weights are halved and make two entries
    2. each entry, the largest first, gets into the first bin with room for it
    3. entries of zeros fill the bins

The outputs of a matrix are independent; they are packed at once. The four loads, and the room that a bin has for them, are lanes of
16 bits of one integer, so that one subtraction compares them all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tcompile.ir.ops_bytes import POSITIONS

_MOST = 128  # of a load: 255 * 128 < 2**15
_LANES = np.arange(4, dtype=np.uint64) * np.uint64(16)
_ROOM = np.uint64(_MOST * 0x0001_0001_0001_0001)
_TOPS = np.uint64(0x8000_8000_8000_8000)
_AT_ONCE = 512  # outputs: their bins lie in the cache


@dataclass(frozen=True)
class Entries:
    """The operands of a conv_bytes but the input and the offsets."""

    entries: np.ndarray  # i8 [E, 4]
    places: np.ndarray  # u16 [E]
    starts: np.ndarray  # i32 [passes, outputs, 2]
    size: int

    @property
    def groups(self) -> int:
        """Groups of all outputs and passes."""
        return int(self.starts[..., 1].sum())


def byte_entries(matrix: np.ndarray, depth: int, size: int) -> Entries:
    """Entries of a matrix of i8 [terms, outputs] in groups of ``size``, in passes over ``depth`` words of terms."""
    words = _words_of_outputs(matrix)
    parts = [_of_pass(words[:, start : start + depth], size) for start in range(0, words.shape[1], depth)]
    starts, first = [], 0
    for entries, _, groups in parts:
        counts = size * groups
        starts.append(np.stack([first + np.cumsum(counts) - counts, groups], axis=1))
        first += len(entries)
    spare = (0, -first % _step(first))
    entries, places = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    return Entries(np.pad(entries, (spare, (0, 0))), np.pad(places, spare), np.stack(starts).astype(np.int32), size)


def _step(count: int) -> int:
    """What a number of entries is rounded up to: layers of one shape then have tables of one shape, and one kernel."""
    return 1 << max(count.bit_length() - 5, 0)


def _words_of_outputs(matrix: np.ndarray) -> np.ndarray:
    """A matrix [terms, outputs] as i16 [outputs, words, 4], with zeros behind."""
    terms, outputs = matrix.shape
    words = -(-terms // 4)
    full = np.pad(matrix.T.astype(np.int16), ((0, 0), (0, 4 * words - terms)))
    return full.reshape(outputs, words, 4)


def _of_pass(words: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries and places of words [outputs, W, 4], output by output, and how many groups these have [outputs]."""
    items, source, loads = _halved(words)
    valid = loads.any(axis=-1)
    order = np.argsort(np.where(valid, -loads.max(axis=-1), 1), axis=1, kind="stable")
    joined = np.take_along_axis((loads.astype(np.uint64) << _LANES).sum(axis=-1, dtype=np.uint64), order, axis=1)
    counts = valid.sum(axis=1)
    chunks = [slice(start, start + _AT_ONCE) for start in range(0, len(words), _AT_ONCE)]
    found = np.concatenate([_grouped(joined[chunk], counts[chunk], size) for chunk in chunks])
    groups = found.max(axis=1, initial=-1) // size + 1
    counts = groups * size
    rows, at = np.nonzero(found >= 0)
    slots, item = (np.cumsum(counts) - counts)[rows] + found[rows, at], order[rows, at]
    entries, places = np.zeros((counts.sum(), 4), np.int8), np.zeros(counts.sum(), np.uint16)
    entries[slots] = items[rows, item]
    places[slots] = source[rows, item] * POSITIONS
    return entries, places, groups


def _halved(words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items [outputs, M, 4], two of half the weights for each word too large, their words [outputs, M], and their loads [outputs, M, 4]."""
    outputs, count = words.shape[:2]
    loads = _loads(words)
    large = loads.max(axis=-1) > _MOST
    each = large.sum(axis=1)
    rows, at = np.nonzero(large)
    behind = count + np.arange(len(rows)) - (np.cumsum(each) - each)[rows]
    most = count + int(each.max(initial=0))
    items, source = np.zeros((outputs, most, 4), np.int16), np.zeros((outputs, most), np.int64)
    items[:, :count], source[:, :count] = words, np.arange(count)
    half = words[rows, at] >> 1
    items[rows, at], items[rows, behind], source[rows, behind] = half, words[rows, at] - half, at
    found = np.zeros((outputs, most, 4), np.int16)
    found[:, :count] = loads
    found[rows, at], found[rows, behind] = _loads(half), _loads(items[rows, behind])
    return items, source, found


def _loads(items: np.ndarray) -> np.ndarray:
    """What weights [..., 4] add up to: [..., 4], the positive ones of each two, then the negative ones."""
    up, down = np.maximum(items, 0), np.maximum(-items, 0)
    return np.concatenate([part[..., 0::2] + part[..., 1::2] for part in (up, down)], axis=-1)


def _grouped(loads: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    """The slot of each item [outputs, M], -1 where it is none: the number of its bin times ``size``, and its place in the bin.

    ``counts`` are the items of each output, which come first. Each bin's room has its lanes' top bits set: a lane loses it where
    there is no room, so that the greatest number of all is a bin that has room for all four."""
    outputs, most = loads.shape
    found, fewest = np.full((outputs, most), -1), int(counts.min(initial=most))
    room, filled = np.full((outputs, most + 1), _ROOM | _TOPS), np.zeros((outputs, most + 1), np.int64)
    every, opened = np.arange(outputs), 1  # bins that some output uses, and one more
    for item in range(int(counts.max(initial=0))):
        some = every if item < fewest else np.flatnonzero(counts > item)
        load = loads[some, item]
        bins = room[:, :opened] if item < fewest else room[some, :opened]
        target = ((bins - load[:, None]) & _TOPS).argmax(axis=1)
        before = filled[some, target]
        found[some, item] = target * size + before
        filled[some, target] = before + 1
        # a full bin has room for nothing: every item has a load
        room[some, target] = np.where(before + 1 < size, room[some, target] - load, _TOPS)
        opened = min(max(opened, int(target.max()) + 2), most)
    return found
