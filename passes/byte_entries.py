"""Weights as entries for sums of bytes in 16 bits (``ir/ops_bytes.py``): groups whose sums fit, whatever the codes are.

An entry has two sums of two products u * w each (u of 0..255), which are added to those of the other entries of its group. They stay
within i16 where the positive weights add up to 128 at most, and the negative ones: those are an entry's four *loads*. So groups are
bins of a packing problem, of four capacities and at most four entries:

    1. of an entry too large for itself, the weights are halved and make two entries
    2. each entry, the largest first, gets into the first bin with room for it
    3. a bin of one entry gets a second one of zeros

The outputs of a matrix are independent; they are packed at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tcompile.ir.ops_bytes import GROUPS

_MOST = 128  # of a load: 255 * 128 < 2**15


@dataclass(frozen=True)
class Entries:
    """The operands of a conv_bytes but the input and the offsets."""

    entries: np.ndarray  # i8 [E, 4]
    places: np.ndarray  # u8 [E]
    starts: np.ndarray  # i32 [passes, outputs, 4]

    @property
    def steps(self) -> int:
        """Multiplications for each position: of every entry, and of every sum of a group."""
        return int((self.starts[..., 1:].sum(axis=(0, 1)) * (np.array(GROUPS) + 1)).sum())


def byte_entries(matrix: np.ndarray, depth: int) -> Entries:
    """Entries of a matrix of i8 [terms, outputs], in passes over ``depth`` words of terms."""
    terms, outputs = matrix.shape
    words = -(-terms // 4)
    full = np.pad(matrix.T.astype(np.int16), ((0, 0), (0, 4 * words - terms))).reshape(outputs, words, 4)
    parts = [_of_pass(full[:, start : start + depth]) for start in range(0, words, depth)]
    starts, first = [], 0
    for entries, _, counts in parts:
        sizes = counts @ np.array(GROUPS)
        starts.append(np.concatenate([(first + np.cumsum(sizes) - sizes)[:, None], counts], axis=1))
        first += len(entries)
    return Entries(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), np.stack(starts).astype(np.int32))


def _of_pass(words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries and places of words [outputs, W, 4], output by output, and how many groups of each size these have [outputs, 3]."""
    items, valid, source = _halved(words)
    bins, filled = _packed(_loads(items), valid)
    bins, filled, items, source = _paired(bins, filled, items, source)
    sizes = np.take_along_axis(filled, np.maximum(bins, 0), axis=1)
    # output by output, the larger groups first, group by group
    keys = np.where(bins >= 0, (GROUPS[0] - sizes) * (bins.max(initial=0) + 1) + bins, np.iinfo(np.int64).max)
    order = np.argsort(keys, axis=1, kind="stable")
    used = np.take_along_axis(bins, order, axis=1) >= 0
    entries = np.take_along_axis(items, order[..., None], axis=1)[used].astype(np.int8)
    counts = np.stack([(filled == size).sum(axis=1) for size in GROUPS], axis=1)
    return entries, np.take_along_axis(source, order, axis=1)[used].astype(np.uint8), counts


def _halved(words: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items [outputs, M, 4], two of half the weights for each word too large, which of them are valid, and their words."""
    outputs, count = words.shape[:2]
    large = [np.flatnonzero(row) for row in (_loads(words) > _MOST).any(axis=-1)]
    most = count + max((len(row) for row in large), default=0)
    items, valid = np.zeros((outputs, most, 4), np.int16), np.zeros((outputs, most), bool)
    source = np.zeros((outputs, most), np.int64)
    items[:, :count], valid[:, :count], source[:, :count] = words, words.any(axis=-1), np.arange(count)
    for output, row in enumerate(large):
        behind = slice(count, count + len(row))
        items[output, row] = words[output, row] >> 1
        items[output, behind] = words[output, row] - items[output, row]
        valid[output, behind], source[output, behind] = True, row
    return items, valid, source


def _loads(items: np.ndarray) -> np.ndarray:
    """What weights [..., 4] add up to: [..., 4], the positive ones of each two, then the negative ones."""
    two = items.reshape(*items.shape[:-1], 2, 2)
    return np.concatenate([np.maximum(two, 0).sum(axis=-1), np.maximum(-two, 0).sum(axis=-1)], axis=-1)


def _packed(loads: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bin of each item [outputs, M], -1 where it is none, and how many each bin holds [outputs, bins]."""
    outputs, count = valid.shape
    order = np.argsort(np.where(valid, -loads.max(axis=-1), 1), axis=1, kind="stable")
    rows, bins = np.arange(outputs), np.full((outputs, count), -1)
    room, filled = np.full((outputs, count, 4), _MOST), np.zeros((outputs, count), np.int64)
    opened = 1  # bins that some output uses, and one more
    for item in order.T:
        some = valid[rows, item]
        if not some.any():
            break
        load = loads[rows, item]
        fits = (room[:, :opened] >= load[:, None]).all(axis=-1) & (filled[:, :opened] < GROUPS[0])
        target = fits.argmax(axis=1)
        room[rows[some], target[some]] -= load[some]
        filled[rows[some], target[some]] += 1
        bins[rows[some], item[some]] = target[some]
        opened = min(max(opened, int(target[some].max()) + 2), count)
    return bins, filled


def _paired(bins: np.ndarray, filled: np.ndarray, items: np.ndarray, source: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same with an item of zeros in every bin that holds one."""
    alone = [np.flatnonzero(row) for row in filled == 1]
    most = max((len(row) for row in alone), default=0)
    more = np.full((len(bins), most), -1)
    for output, row in enumerate(alone):
        more[output, : len(row)] = row
    wide = ((0, 0), (0, most))
    return np.concatenate([bins, more], axis=1), np.where(filled == 1, 2, filled), np.pad(items, (*wide, (0, 0))), np.pad(source, wide)
