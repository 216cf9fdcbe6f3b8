"""Walks the steps of a plan: launches on a stream, and control flow on the host, which reads scalars from the device.

A kernel that finds something wrong (an index out of range) writes a code into its launch's status word and goes on without
storing. The words are read before the host believes a number that kernels wrote, and at the end of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tcompile.errors import ExecutionError
from tcompile.runtime.cuda_device import Device, Stream
from tcompile.runtime.cuda_memory import Block, words
from tcompile.runtime.cuda_plan import Allocate, Bind, Copy, CudaPlan, If, Launch, Loop, Require, Set, Step

DIMENSION, CANCELLED = 2, 6
_TEXTS = {
    1: "index out of range",
    2: "dimension out of its declared range",
    3: "extents that cannot be broadcast",
    4: "a shape that does not fit its tensor",
    5: "out of memory",
    6: "cancelled",
}
_GRID = (2**31 - 1, 65535, 65535)
Extents = tuple[int, int, int]


@dataclass
class Shared:
    """What all runs of a model use: the device, its code and weights. ``functions`` are the device's, by kernel."""

    device: Device
    plan: CudaPlan
    functions: Sequence[Any]
    weights: int = 0


@dataclass
class Memory:
    """The memory of one run at a time: ``growing`` blocks by buffer number, ``status`` words by launch."""

    arena: Block
    status: Block
    growing: dict[int, Block] = field(default_factory=dict)


@dataclass
class Known:
    """What the shapes of the inputs decide: symbols, and of each launch that needs no others its grid and last arguments."""

    values: dict[str, int]
    launches: dict[int, tuple[Extents, tuple[int, ...]]] = field(default_factory=dict)


def stopped(code: int, where: str, nodes: Sequence[str]) -> ExecutionError:
    """A run that ended early, with the ONNX nodes it ended at."""
    text = f"{_TEXTS.get(code, 'unknown failure')}{where}"
    return ExecutionError(f"{text}, of node {', '.join(nodes)}" if nodes else text)


class Walk:
    """One run. ``places``: addresses of inputs and outputs by buffer number. ``launched`` is told of each launch, and its
    kernel's dims, before it starts; ``cancelled`` is asked at each turn of a loop.
    """

    def __init__(
        self, shared: Shared, memory: Memory, known: Known, places: dict[int, int], stream: Stream,
        launched: Callable[[Launch, tuple[int, ...]], None] | None = None, cancelled: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.shared, self.memory, self.known, self.stream, self.launched = shared, memory, known, stream, launched
        self.device, self.plan, self.cancelled = shared.device, shared.plan, cancelled
        self.values = dict(known.values)
        self.places = dict(places)
        self.started = 0  # launches
        self.unchecked: dict[int, Launch] = {}  # launches since the last look at their status words

    def run(self) -> None:
        """All steps. Raises ExecutionError where a check stops them; work that has started ends by itself."""
        self.block(self.plan.steps)

    def block(self, steps: Sequence[Step]) -> None:
        for step in steps:
            match step:
                case Launch():
                    self._launch(step)
                case Copy():
                    self._copy(step)
                case Bind():
                    self._bind(step)
                case Set():
                    self.values[step.symbol] = step.value.value(self.values)
                case Allocate():
                    self._allocate(step.buffer)
                case If():
                    taken = self._scalar(step.condition, np.uint8)
                    self.block(step.then if taken else step.otherwise)
                case Loop():
                    self._loop(step)
                case Require():
                    self._require(step)

    def address(self, number: int) -> int:
        """Where a buffer begins."""
        if number in self.places:
            return self.places[number]
        buffer = self.plan.buffers[number]
        match buffer.role:
            case "weight":
                found = self.shared.weights + buffer.offset.value({})
            case "temp":
                found = self.memory.arena.address + buffer.offset.value(self.values)
            case "growing":
                return self.memory.growing[number].address
            case _:
                raise ExecutionError(f"the plan gives no place to the buffer {buffer.name}")
        self.places[number] = found  # both depend on what inputs decide
        return found

    # Steps --------------------------------------------------------------------------------------------

    def _launch(self, step: Launch) -> None:
        kernel = step.kernel
        known = self.known.launches.get(step.number)
        if known is None:
            known = self._extents(step)
            if step.symbols <= self.plan.entry:
                self.known.launches[step.number] = known
        grid, values = known
        if 0 in grid:
            return
        addresses = [self.address(number) for number in step.buffers]
        if step.moves is not None and addresses[0] == addresses[1] and self._equal(step):
            return
        if self.launched is not None:
            self.launched(step, values)
        status = self.memory.status.address + 4 * step.number
        self.device.launch(
            self.shared.functions[step.kernel_number], grid, kernel.block, kernel.shared, (*addresses, *values, status), self.stream
        )
        self.started += 1
        if kernel.checks:
            self.unchecked[step.number] = step

    def _extents(self, step: Launch) -> tuple[Extents, tuple[int, ...]]:
        values = tuple(expr.value(self.values) for expr in step.dims)
        own = dict(zip(step.kernel.dims, values, strict=True))
        grid = tuple(max(extent.value(own), 0) for extent in step.kernel.grid)
        if any(extent > limit for extent, limit in zip(grid, _GRID, strict=True)):
            raise ExecutionError(f"kernel {step.kernel.name} needs a grid of {grid} blocks, more than a device has")
        return grid, values

    def _equal(self, step: Launch) -> bool:
        return all(a.value(self.values) == b.value(self.values) for a, b in step.moves)

    def _copy(self, step: Copy) -> None:
        target, source, size = self.address(step.target), self.address(step.source), step.bytes.value(self.values)
        if size > 0 and target != source:
            self.device.copy(target, source, size, self.stream)

    def _bind(self, step: Bind) -> None:
        got = self._scalar(step.buffer, np.int64)
        self.values[step.symbol] = got
        if got < step.low.value(self.values) or (step.high is not None and got > step.high.value(self.values)):
            raise stopped(DIMENSION, f": {step.text} (value {got})", step.nodes)

    def _require(self, step: Require) -> None:
        got = step.value.value(self.values)
        if got < 0:
            self.check()
            raise stopped(step.status, f": {step.text} (value {got})", step.nodes)

    def _allocate(self, number: int) -> None:
        block = self.memory.growing.get(number)
        if block is None:
            block = self.memory.growing[number] = Block(self.device)
        block.hold(max(self.plan.buffers[number].size(self.values), 1), self.stream, keep=block.size)

    def _loop(self, step: Loop) -> None:
        trip = None if step.trip is None else step.trip.value(self.values)
        turn = 0
        while (trip is None or turn < trip) and (step.condition is None or self._scalar(step.condition, np.uint8)):
            if self.cancelled():
                raise stopped(CANCELLED, "", ())
            self.values[step.counter] = turn
            self.block(step.body)
            turn += 1
        self.values[step.counter] = turn

    # What the host reads ------------------------------------------------------------------------------

    def _scalar(self, number: int, dtype: type) -> int:
        """One number that kernels wrote."""
        self.check()
        found = np.empty(1, dtype)
        self.device.download(found, self.address(number), self.stream)
        return int(found[0])

    def check(self) -> None:
        """Raises ExecutionError naming the first launch whose kernel found something wrong."""
        if not self.unchecked:
            return
        found = words(self.device, self.memory.status.address, len(self.plan.launches), self.stream)
        launches, self.unchecked = self.unchecked, {}
        for step in launches.values():
            code = int(found[step.number])
            if code:
                raise stopped(code, f" in kernel {step.kernel.name}", step.nodes)
