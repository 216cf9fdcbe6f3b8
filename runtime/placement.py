"""Where each output of a run is written: a new array, the caller's, or the memory of an input that the caller gave away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from math import prod

import numpy as np

from tcompile.errors import InputError
from tcompile.runtime.specs import TensorSpec

Result = tuple[tuple[int, ...], np.dtype]
Span = tuple[int, int]


def spans(array: np.ndarray) -> Span:
    """The addresses from the first byte of an array to past its last; one that is not row-major counts with its gaps."""
    if array.flags.c_contiguous:
        start = array.__array_interface__["data"][0]
        return start, start + array.nbytes
    return np.lib.array_utils.byte_bounds(array) if hasattr(np.lib, "array_utils") else np.byte_bounds(array)


def _meet(a: Span, b: Span) -> bool:
    return a[0] < b[1] and b[0] < a[1]


@dataclass
class Placement:
    """Chooses the array of each output.

    ``arrays``: the inputs, row-major. ``out``: the caller's arrays by output name. ``donated``: positions of inputs that
    may be overwritten. ``shares``: for each output, the inputs whose memory the program lets it have.
    """

    arrays: Sequence[np.ndarray]
    out: Mapping[str, np.ndarray]
    donated: Set[int] = frozenset()
    shares: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._inputs = [spans(array) for array in self.arrays] if self.out or self.donated else []
        self._given = [spans(array) for array in self.out.values() if isinstance(array, np.ndarray)]
        self._taken: list[Span] = []

    def choose(self, k: int, spec: TensorSpec, result: Result) -> np.ndarray:
        """The array that compiled code writes output k to. It overlaps nothing that the run reads, or that it writes."""
        shape, dtype = result
        given = self.out.get(spec.name)
        if given is not None:
            check_out(spec, given, shape)
            chosen = given if given.flags.carray and self._may_write(k, spans(given)) else None
        else:
            chosen = self._donated_array(k, shape)
        if chosen is None:
            return np.empty(shape, dtype)
        self._taken.append(spans(chosen))
        return chosen

    def _donated_array(self, k: int, shape: tuple[int, ...]) -> np.ndarray | None:
        for i in self.shares.get(k, ()) if self.donated else ():
            array, size = self.arrays[i], prod(shape)
            if i not in self.donated or not array.flags.writeable or size > array.size:
                continue
            if any(_meet(self._inputs[i], given) for given in self._given) or not self._may_write(k, self._inputs[i]):
                continue
            return array if array.shape == shape else array.reshape(-1)[:size].reshape(shape)
        return None

    def _may_write(self, k: int, place: Span) -> bool:
        """Whether the place meets no output, and no input but donated ones that begin there and that output k may share."""
        if any(_meet(place, taken) for taken in self._taken):
            return False
        met = [i for i, span in enumerate(self._inputs) if _meet(place, span)]
        allowed = self.shares.get(k, ())
        return all(i in self.donated and i in allowed and self._inputs[i][0] == place[0] for i in met)


def check_out(spec: TensorSpec, given: object, shape: tuple[int, ...]) -> None:
    """Raises InputError for an ``out`` array that an output of this shape cannot be written to."""
    if not isinstance(given, np.ndarray):
        raise InputError(f"out['{spec.name}'] is a {type(given).__name__}, expected an array", hint=f"np.empty({shape}, '{spec.dtype}')")
    if not given.flags.writeable:
        raise InputError(f"out['{spec.name}'] is read-only")
    if given.dtype != spec.dtype or given.shape != shape:
        raise InputError(
            f"out['{spec.name}'] is {given.dtype} of shape {given.shape}, the output is {spec.dtype} of shape {shape}",
            hint=f"np.empty({shape}, '{spec.dtype}')",
        )
