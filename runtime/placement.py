"""Where each output of a run is written: a new array, the caller's, or the memory of an input that the caller gave away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from math import prod

import numpy as np

from tcompile.errors import InputError
from tcompile.runtime.pitch import empty, is_flat, lies_in
from tcompile.runtime.specs import TensorSpec

Result = tuple[tuple[int, ...], np.dtype]
Span = tuple[int, int]


def spans(array: np.ndarray) -> Span:
    """The addresses from the first byte of an array to past its last, with its gaps."""
    start = array.__array_interface__["data"][0] if isinstance(array, np.ndarray) else array.address
    if array.flags.c_contiguous:
        return start, start + array.nbytes
    reach = [(extent - 1) * stride for extent, stride in zip(array.shape, array.strides, strict=True)]
    return start + sum(step for step in reach if step < 0), start + sum(step for step in reach if step > 0) + array.itemsize


def _meet(a: Span, b: Span) -> bool:
    return a[0] < b[1] and b[0] < a[1]


@dataclass
class Placement:
    """Chooses the array of each output.

    ``arrays``: the inputs, as compiled code reads them. ``out``: the caller's arrays by output name. ``donated``: positions
    of inputs that may be overwritten. ``shares``: for each output, the inputs whose memory the program lets it have;
    ``inputs`` their specs, where some have pitches, and ``rows`` the rows of pitches. Arrays are ``kind``'s, new ones ``make``'s:
    NumPy's, or those of a device.
    """

    arrays: Sequence[np.ndarray]
    out: Mapping[str, np.ndarray]
    donated: Set[int] = frozenset()
    shares: Mapping[int, Sequence[int]] = field(default_factory=dict)
    inputs: Sequence[TensorSpec] = ()
    rows: Mapping[int, int] = field(default_factory=dict)
    kind: type = np.ndarray
    make: Callable[..., np.ndarray] = empty

    def __post_init__(self) -> None:
        self._inputs = [spans(array) for array in self.arrays] if self.out or self.donated else []
        self._given = [spans(array) for array in self.out.values() if isinstance(array, self.kind)]
        self._taken: list[Span] = []

    def choose(self, k: int, spec: TensorSpec, result: Result) -> np.ndarray:
        """The array that compiled code writes output k to. It overlaps nothing that the run reads, or that it writes."""
        shape, dtype = result
        given = self.out.get(spec.name)
        if given is not None:
            check_out(spec, given, shape, self.kind)
            chosen = given if lies_in(given, spec, self.rows) and self._may_write(k, spec, shape, spans(given)) else None
        else:
            chosen = self._donated_array(k, spec, shape)
        if chosen is None:
            return self.make(shape, dtype, spec, self.rows)
        self._taken.append(spans(chosen))
        return chosen

    def _donated_array(self, k: int, spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray | None:
        for i in self.shares.get(k, ()) if self.donated else ():
            array, size, place = self.arrays[i], prod(shape), self._inputs[i]
            if i not in self.donated or not array.flags.carray or size > array.size or not lies_in(array, spec, self.rows):
                continue
            if any(_meet(place, given) for given in self._given) or not self._may_write(k, spec, shape, place):
                continue
            return array if array.shape == shape else array.reshape(-1)[:size].reshape(shape)
        return None

    def _may_write(self, k: int, spec: TensorSpec, shape: tuple[int, ...], place: Span) -> bool:
        """Whether the place meets no output, and no input but donated ones that begin there and that output k may share."""
        if any(_meet(place, taken) for taken in self._taken):
            return False
        met = [i for i, span in enumerate(self._inputs) if _meet(place, span)]
        return all(i in self.donated and self._inputs[i][0] == place[0] and self._may_share(k, spec, shape, i) for i in met)

    def _may_share(self, k: int, spec: TensorSpec, shape: tuple[int, ...], i: int) -> bool:
        """Whether the program lets output k begin where input i does; tensors with pitches must have the same."""
        if i not in self.shares.get(k, ()):
            return False
        other = self.inputs[i].pitch if self.inputs else None
        if spec.pitch is None or other is None:
            return True
        mine, theirs = shape[spec.pitch[0]], self.arrays[i].shape[other[0]]
        if is_flat(shape, spec.pitch[0]) and is_flat(self.arrays[i].shape, other[0]):
            return True
        return self.rows.get(spec.pitch[1], mine) == self.rows.get(other[1], theirs)


def check_out(spec: TensorSpec, given: object, shape: tuple[int, ...], kind: type = np.ndarray) -> None:
    """Raises InputError for an ``out`` array that an output of this shape cannot be written to."""
    if not isinstance(given, kind):
        raise InputError(f"out['{spec.name}'] is a {type(given).__name__}, expected an array", hint=f"np.empty({shape}, '{spec.dtype}')")
    if not given.flags.writeable:
        raise InputError(f"out['{spec.name}'] is read-only")
    if given.dtype != spec.dtype or given.shape != shape:
        raise InputError(
            f"out['{spec.name}'] is {given.dtype} of shape {given.shape}, the output is {spec.dtype} of shape {shape}",
            hint=f"np.empty({shape}, '{spec.dtype}')",
        )
