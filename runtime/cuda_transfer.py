"""Where the tensors of one run are: inputs from the host are copied into blocks that stay, device arrays are read and written where
they are, and what the caller wants on the host is copied back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from tcompile.errors import InputError
from tcompile.runtime.cuda_arrays import DeviceArray, row_major
from tcompile.runtime.cuda_device import Device, Stream
from tcompile.runtime.cuda_memory import Block, Results
from tcompile.runtime.cuda_plan import CudaPlan
from tcompile.runtime.cuda_walk import Walk
from tcompile.runtime.pitch import Rows, choose_rows, empty, lies_in
from tcompile.runtime.placement import Placement, check_out
from tcompile.runtime.specs import TensorSpec

Array = np.ndarray | DeviceArray
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """What a caller wants of a run: names of outputs, arrays for them, positions of inputs given away, where results belong (None:
    where any input is), and the stream; None is the session's own, whose work has ended when the run returns.
    """

    wanted: Sequence[str]
    out: Mapping[str, Any] = field(default_factory=dict)
    donated: Set[int] = frozenset()
    on_device: bool | None = None
    stream: Stream | None = None


@dataclass(eq=False)
class Room:
    """The memory of a session's tensors: blocks by buffer number for what is copied, and arrays that callers get."""

    plan: CudaPlan
    device: Device
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    results: Results
    blocks: dict[int, Block] = field(default_factory=dict)

    def stage(self, number: int, size: int, stream: Stream) -> int:
        """The address of a block for a buffer."""
        if number not in self.blocks:
            self.blocks[number] = Block(self.device)
        return self.blocks[number].hold(max(size, 1), stream)


class Transfer:
    """One run's tensors. ``places`` holds addresses by buffer number; ``rows`` the rows of pitches that are longer than a tensor."""

    def __init__(self, room: Room, arrays: Sequence[Array], request: Request, stream: Stream) -> None:
        self.room, self.arrays, self.request, self.stream = room, arrays, request, stream
        self.places: dict[int, int] = {}
        self.rows = self._rows()
        self.targets: list[DeviceArray | None] = []
        somewhere = any(isinstance(array, DeviceArray) for array in arrays)
        self._on_device = somewhere if request.on_device is None else request.on_device

    def place_inputs(self) -> None:
        """Copies what is on the host to the device. Raises InputError for device arrays with gaps."""
        for array, spec, number in zip(self.arrays, self.room.inputs, self.room.plan.inputs, strict=True):
            if isinstance(array, DeviceArray):
                if not lies_in(array, spec, self.rows):
                    message = f"input '{spec.name}' has gaps between its elements, of strides {array.strides}"
                    raise InputError(message, hint="give a contiguous array; caches that grow must have room for equally many rows")
                self.places[number] = array.address
                continue
            whole = array if self._whole(spec, array.shape) == array.shape else self._with_gaps(array, spec)
            self.places[number] = self.room.stage(number, whole.nbytes, self.stream)
            if whole.size:
                self.room.device.upload(self.places[number], np.ascontiguousarray(whole), self.stream)

    def place_outputs(self, shapes: Sequence[Shape]) -> None:
        """Finds memory for the outputs whose shapes are known: the caller's, that of a donated input, or of its own."""
        given = {name: array for name, array in self.request.out.items() if isinstance(array, DeviceArray)}
        donated = frozenset(i for i in self.request.donated if isinstance(self.arrays[i], DeviceArray))
        room = self.room
        inputs = [
            array if isinstance(array, DeviceArray) else DeviceArray(room.device, self.places[number], array.shape, spec.element, None)
            for array, spec, number in zip(self.arrays, room.inputs, room.plan.inputs, strict=True)
        ]
        placement = Placement(inputs, given, donated, room.plan.shares, room.inputs, self.rows, DeviceArray, self._new)
        for k, (spec, number, shape) in enumerate(zip(room.outputs, room.plan.outputs, shapes, strict=True)):
            target = None
            if not spec.growing:
                if spec.name in self.request.wanted and self.stays(spec.name):
                    target = placement.choose(k, spec, (shape, spec.dtype))
                    target.stream = self.stream  # readers wait for this run
                    self.places[number] = target.address
                else:
                    size = prod(self._whole(spec, shape)) * spec.dtype.itemsize
                    self.places[number] = room.stage(number, size, self.stream)
            self.targets.append(target)

    def stays(self, name: str) -> bool:
        """Whether an output is wanted on the device: where ``out`` has its array, else as the caller says."""
        return isinstance(self.request.out[name], DeviceArray) if name in self.request.out else self._on_device

    def result(self, k: int, walk: Walk) -> Array:
        """Output k after the launches have started."""
        spec, number = self.room.outputs[k], self.room.plan.outputs[k]
        given, target = self.request.out.get(spec.name), self.targets[k]
        if target is None and self.stays(spec.name):
            target = self._kept(spec, number, walk)
        if target is not None:
            return target if given is None or given is target else self._copied(spec, target, given)
        shape = self.room.plan.buffers[number].extents(walk.values)
        result = empty(shape, spec.dtype, spec, self.rows)
        if result.size:
            self.room.device.download(result if result.base is None else result.base, walk.address(number), self.stream)
        if given is None:
            return result
        check_out(spec, given, shape)
        given[...] = result
        return given

    # Memory with gaps -----------------------------------------------------------------------------------

    def _rows(self) -> Rows:
        """Those of device arrays. What comes from the host is copied, and has no gaps there."""
        room, out = self.room, self.request.out
        pairs = [*zip(room.inputs, self.arrays, strict=True), *((spec, out[spec.name]) for spec in room.outputs if spec.name in out)]
        return choose_rows(
            (spec, array)
            for spec, array in pairs
            if spec.pitch is not None and isinstance(array, DeviceArray) and array.ndim == len(spec.shape)
        )

    def _whole(self, spec: TensorSpec, shape: Shape) -> Shape:
        """The shape of a tensor's memory with the gaps in it."""
        if spec.pitch is None or spec.pitch[1] not in self.rows:
            return shape
        axis, symbol = spec.pitch
        return (*shape[:axis], self.rows[symbol], *shape[axis + 1 :])

    def _with_gaps(self, array: np.ndarray, spec: TensorSpec) -> np.ndarray:
        view = empty(array.shape, array.dtype, spec, self.rows)
        view.base[...] = 0
        view[...] = array
        return view.base

    def _new(self, shape: Shape, dtype: np.dtype, spec: TensorSpec, rows: Rows) -> DeviceArray:
        whole = self._whole(spec, shape)
        strides = row_major(whole, dtype.itemsize) if whole != shape else None
        return self.room.results.array(shape, spec.element, self.stream, strides, prod(whole) * dtype.itemsize)

    # Results on the device ------------------------------------------------------------------------------

    def _kept(self, spec: TensorSpec, number: int, walk: Walk) -> DeviceArray:
        """A copy of a growing output, whose memory stays the session's."""
        shape = self.room.plan.buffers[number].extents(walk.values)
        result = self.room.results.array(shape, spec.element, self.stream, None, prod(shape) * spec.dtype.itemsize)
        if result.nbytes:
            self.room.device.copy(result.address, walk.address(number), result.nbytes, self.stream)
        return result

    def _copied(self, spec: TensorSpec, result: DeviceArray, given: DeviceArray) -> DeviceArray:
        """``given``, where the result could not be written at once: it overlaps what the run reads."""
        check_out(spec, given, result.shape, DeviceArray)
        if not (given.flags.c_contiguous and result.flags.c_contiguous):
            raise InputError(f"out['{spec.name}'] has gaps, and overlaps what the run reads", hint="give a contiguous array")
        if result.nbytes:
            self.room.device.copy(given.address, result.address, result.nbytes, self.stream)
        return given
