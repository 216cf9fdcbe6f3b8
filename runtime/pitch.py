"""Views of larger arrays: ``cache[:, :, :t]`` is read and written where it lies, by the rows that ``cache`` has along the axis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod

import numpy as np

from tcompile.runtime.specs import TensorSpec

Rows = dict[int, int]  # by pitch symbol; symbols of tensors without gaps are left out


def rows_of(array: np.ndarray, axis: int) -> int | None:
    """The rows along ``axis`` of the row-major array that this is the beginning of; its extent where it has no gaps.

    None for an array that is no such view: another axis is cut or reversed.
    """
    shape, strides = array.shape, array.strides
    step = array.itemsize
    for k in range(len(shape) - 1, axis - 1, -1):
        if shape[k] != 1 and strides[k] != step and array.size:
            return None
        step *= shape[k] if k > axis else 1
    rows = None
    for k in range(axis - 1, -1, -1):
        if shape[k] == 1:
            continue
        if rows is None:
            rows, rest = divmod(strides[k], step * prod(shape[k + 1 : axis])) if step else (shape[axis], 0)
            if rest or rows < shape[axis]:
                return None
        elif strides[k] != rows * step * prod(shape[k + 1 : axis]) and array.size:
            return None
    return shape[axis] if rows is None else rows


def is_flat(shape: tuple[int, ...], axis: int) -> bool:
    """Whether nothing lies before an axis, so that rows lie the same in arrays of any length."""
    return prod(shape[:axis]) == 1


def choose_rows(pairs: Iterable[tuple[TensorSpec, np.ndarray]]) -> Rows:
    """The rows of each pitch symbol: those of the longest array among tensors and arrays; the others must be copied."""
    found: Rows = {}
    gaps = set()
    for spec, array in pairs:
        rows = rows_of(array, spec.pitch[0])
        if rows is not None:
            symbol = spec.pitch[1]
            found[symbol] = max(found.get(symbol, 0), rows)
            if rows > array.shape[spec.pitch[0]]:
                gaps.add(symbol)
    return {symbol: rows for symbol, rows in found.items() if symbol in gaps}


def lies_in(array: np.ndarray, spec: TensorSpec, rows: Mapping[int, int]) -> bool:
    """Whether an array's memory is as compiled code addresses it."""
    if not array.flags.aligned:
        return False
    if spec.pitch is None or spec.pitch[1] not in rows:
        return array.flags.c_contiguous
    found = rows_of(array, spec.pitch[0])
    return found == rows[spec.pitch[1]] or (found is not None and is_flat(array.shape, spec.pitch[0]))


def empty(
    shape: tuple[int, ...],
    dtype: np.dtype,
    spec: TensorSpec,
    rows: Mapping[int, int],
    make: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.empty,
) -> np.ndarray:
    """An array of a shape that ``make`` makes, with the gaps that compiled code leaves."""
    if spec.pitch is None or spec.pitch[1] not in rows:
        return make(shape, dtype)
    axis, symbol = spec.pitch
    whole = make((*shape[:axis], rows[symbol], *shape[axis + 1 :]), dtype)
    return whole[(slice(None),) * axis + (slice(shape[axis]),)]


def placed(array: np.ndarray, spec: TensorSpec, rows: Mapping[int, int]) -> np.ndarray:
    """The array, or a copy of it that lies as compiled code addresses it."""
    if lies_in(array, spec, rows):
        return array
    copy = empty(array.shape, array.dtype, spec, rows)
    copy[...] = array
    return copy
