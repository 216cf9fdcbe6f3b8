"""Runs plans, and captures those in which the host takes no decision: from the second run of the same shapes and addresses on,
all launches are one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tcompile.runtime.cuda_device import Graph, Stream
from tcompile.runtime.cuda_plan import Copy, CudaPlan, Launch, Loop, Require, Step
from tcompile.runtime.cuda_plan import Set as SetStep
from tcompile.runtime.cuda_walk import Known, Memory, Shared, Walk

_GRAPHS = 8  # kept for one shape: addresses that come again
_NODES = 20000  # launches that one graph may hold


@dataclass
class Captured:
    """A graph, what its walk left behind, and the launches whose status words are to be read after it."""

    graph: Graph
    walk: Walk
    unchecked: dict[int, Launch]


@dataclass
class Prepared:
    """Everything that the shapes of inputs decide. ``graphs``: by addresses; None for addresses seen once."""

    known: Known
    output_shapes: Sequence[tuple[int, ...]]
    arena: int
    graphs: dict[tuple[int, ...], Captured | None] = field(default_factory=dict)


def is_static(plan: CudaPlan) -> bool:
    """Whether input shapes decide every launch, so that nothing is read from the device before the end."""
    return _only_launches(plan.steps) and all(plan.buffers[number].role != "growing" for number in plan.outputs)


def _only_launches(steps: Sequence[Step]) -> bool:
    return all(
        isinstance(step, Launch | Copy | SetStep | Require)
        or (isinstance(step, Loop) and step.condition is None and _only_launches(step.body))
        for step in steps
    )


class Replay:
    """Runs the launches of one session."""

    def __init__(self, shared: Shared, memory: Memory, stream: Stream, cancelled: Callable[[], bool]) -> None:
        self._shared, self._memory, self._stream, self._cancelled = shared, memory, stream, cancelled
        self._captures = shared.device.captures and is_static(shared.plan)
        self._checks = any(launch.kernel.checks for launch in shared.plan.launches)
        self._status_bytes = 4 * max(len(shared.plan.launches), 1)
        memory.status.hold(self._status_bytes, stream)

    def run(self, prepared: Prepared, places: dict[int, int], stream: Stream) -> Walk:
        """Starts all launches. Raises ExecutionError for a run that a check on the host stops."""
        if not self._captures:
            return self.walk(prepared, places, stream)
        key = (self._memory.arena.address, *places.values())
        if key not in prepared.graphs:
            walk = self.walk(prepared, places, stream)
            if 0 < walk.started <= _NODES:
                while len(prepared.graphs) >= _GRAPHS:
                    self._shared.device.synchronize(stream)  # it may still run
                    prepared.graphs.pop(next(iter(prepared.graphs)))
                prepared.graphs[key] = None
            return walk
        captured = prepared.graphs[key] or self._capture(prepared, places)
        prepared.graphs[key] = captured
        captured.graph.launch(stream)
        captured.walk.stream, captured.walk.unchecked = stream, dict(captured.unchecked)
        return captured.walk

    def walk(
        self, prepared: Prepared, places: dict[int, int], stream: Stream, launched: Callable[[Launch, tuple[int, ...]], None] | None = None
    ) -> Walk:
        """Starts all launches one by one."""
        walk = Walk(self._shared, self._memory, prepared.known, places, stream, launched, self._cancelled)
        if self._checks:
            self._shared.device.fill(self._memory.status.address, 0, self._status_bytes, stream)
        walk.run()
        return walk

    def _capture(self, prepared: Prepared, places: dict[int, int]) -> Captured:
        device = self._shared.device
        device.begin_capture(self._stream)
        try:
            walk = self.walk(prepared, places, self._stream)
        finally:
            graph = device.end_capture(self._stream)
        return Captured(graph, walk, dict(walk.unchecked))
