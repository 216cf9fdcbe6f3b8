"""One session on a device: the memory of one run at a time, and the way from arrays to launches and back."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tcompile.runtime.cuda_device import Stream
from tcompile.runtime.cuda_memory import Block, Results
from tcompile.runtime.cuda_plan import Launch
from tcompile.runtime.cuda_replay import Prepared, Replay
from tcompile.runtime.cuda_shapes import bind_shapes, output_shapes
from tcompile.runtime.cuda_transfer import Array, Request, Room, Transfer
from tcompile.runtime.cuda_walk import Known, Memory, Shared
from tcompile.runtime.pitch import Rows

_SHAPES = 16  # kept prepared


@dataclass
class Measured:
    """One run: its seconds; by launch its seconds, how often it ran, and the floating-point operations and bytes of all turns."""

    seconds: float = 0.0
    launches: dict[int, float] = field(default_factory=dict)
    turns: dict[int, int] = field(default_factory=dict)
    flops: dict[int, int] = field(default_factory=dict)
    bytes: dict[int, int] = field(default_factory=dict)


class CudaSession:
    """Runs one call at a time. All methods but ``cancel`` and ``memory`` are called while the device is active."""

    def __init__(self, shared: Shared) -> None:
        self._shared, self._device, self._plan = shared, shared.device, shared.plan
        self._stream = self._last = self._device.new_stream()
        self._free_stream = weakref.finalize(self, self._device.free_stream, self._stream)
        self._free_stream.atexit = False
        self._event: Any = None  # at the end of the last run, where that was on a stream of the caller's
        self._running = False
        self._memory = Memory(Block(self._device), Block(self._device))
        results = Results(self._device)
        self._room = Room(self._plan, self._device, self._plan.input_specs(), self._plan.output_specs(), results)
        self._names = [spec.name for spec in self._room.outputs]
        self._cancelled = False
        self._replay = Replay(shared, self._memory, self._stream, lambda: self._cancelled)
        self._prepared: dict[tuple[Any, ...], Prepared] = {}

    def run(self, arrays: Sequence[Array], request: Request) -> dict[str, Array]:
        """The wanted outputs of a run. ``arrays``: the inputs in order, of their types; device arrays are ready on its stream."""
        transfer, prepared = self._ready(arrays, request)
        try:
            walk = self._replay.run(prepared, transfer.places, transfer.stream)
            walk.check()
            found = {name: transfer.result(self._names.index(name), walk) for name in request.wanted}
        finally:
            self._end(request, transfer.stream)
        return found

    def stream_of(self, request: Request) -> Stream:
        """The stream that a run will use."""
        return self._stream if request.stream is None else request.stream

    def output_shapes(self, shapes: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
        """The outputs' shapes for inputs of these shapes; -1 where only a run knows."""
        return output_shapes(self._plan, bind_shapes(self._plan, [tuple(shape) for shape in shapes], {}))

    def profile(self, arrays: Sequence[Array], runs: int) -> list[Measured]:
        """Runs once, then ``runs`` times launch by launch with an event before each: gaps between launches count to the earlier."""
        request = Request(self._names)
        self.run(arrays, request)
        return [self._measured(*self._ready(arrays, request)) for _ in range(runs)]

    def cancel(self) -> None:
        """Ends a run in progress at the next turn of a loop, from any thread."""
        self._cancelled = True

    def memory(self) -> dict[str, int]:
        """Bytes on the device by what they hold, and how often blocks were allocated."""
        staged, growing = list(self._room.blocks.values()), list(self._memory.growing.values())
        return {
            "arena": self._memory.arena.size,
            "staged": sum(block.size for block in staged),
            "growing": sum(block.size for block in growing),
            "allocations": sum(block.allocations for block in (self._memory.arena, *staged, *growing)),
        }

    def close(self) -> None:
        """Gives back the memory; results that the caller has keep theirs."""
        self._settle()
        self._prepared.clear()
        for block in (self._memory.arena, self._memory.status, *self._room.blocks.values(), *self._memory.growing.values()):
            block.free(self._stream)
        self._room.results.drop()
        self._free_stream()

    def _ready(self, arrays: Sequence[Array], request: Request) -> tuple[Transfer, Prepared]:
        """Everything up to the launches."""
        self._cancelled = False
        stream = self.stream_of(request)
        if stream != self._last:  # one arena: what the last run left on its stream ends first
            self._settle()
            self._last = stream
        transfer = Transfer(self._room, arrays, request, stream)
        prepared = self._prepare([tuple(array.shape) for array in arrays], transfer.rows)
        self._memory.arena.hold(max(prepared.arena, 1), stream)
        transfer.place_inputs()
        transfer.place_outputs(prepared.output_shapes)
        return transfer, prepared

    def _end(self, request: Request, stream: Stream) -> None:
        """After the launches: waits for them, or notes their end where the caller gave the stream."""
        self._running = request.stream is not None
        if not self._running:
            self._device.synchronize(stream)
            return
        if self._event is None:
            self._event = self._device.new_event()
        self._device.record(self._event, stream)

    def _settle(self) -> None:
        """Waits for what is still running. The caller's stream may be gone; the event is the session's."""
        if self._running:
            self._device.finish(self._event)
            self._running = False

    def _prepare(self, shapes: list[tuple[int, ...]], rows: Rows) -> Prepared:
        key = (*shapes, *sorted(rows.items()))
        found = self._prepared.get(key)
        if found is None:
            values = bind_shapes(self._plan, shapes, rows)
            found = Prepared(Known(values), output_shapes(self._plan, values), self._plan.arena.value(values))
            while len(self._prepared) >= _SHAPES:
                self._settle()  # its graphs may still run
                self._prepared.pop(next(iter(self._prepared)))
            self._prepared[key] = found
        return found

    def _measured(self, transfer: Transfer, prepared: Prepared) -> Measured:
        device, stream, found = self._device, transfer.stream, Measured()
        events: list[tuple[int, Any]] = []

        def mark(launch: Launch | None, values: tuple[int, ...] = ()) -> None:
            event = device.new_event()
            device.record(event, stream)
            events.append((-1 if launch is None else launch.number, event))
            if launch is not None:
                own = dict(zip(launch.kernel.dims, values, strict=True))
                work = (found.turns, 1), (found.flops, launch.kernel.flops.value(own)), (found.bytes, launch.kernel.bytes.value(own))
                for amounts, amount in work:
                    amounts[launch.number] = amounts.get(launch.number, 0) + amount

        walk = self._replay.walk(prepared, transfer.places, stream, mark)
        mark(None)
        walk.check()
        for (number, begin), (_, end) in pairwise(events):
            found.launches[number] = found.launches.get(number, 0.0) + device.elapsed(begin, end)
        found.seconds = device.elapsed(events[0][1], events[-1][1])
        return found
