"""One native session: the memory of one run at a time, and the shortest way from arrays to compiled code."""

from __future__ import annotations

import ctypes
import struct
import weakref
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from math import prod
from typing import NoReturn

import numpy as np

from tcompile.errors import ExecutionError, InputError
from tcompile.runtime import abi
from tcompile.runtime.loader import Module
from tcompile.runtime.outputs import OutputMemory
from tcompile.runtime.pitch import Rows, choose_rows, empty, placed
from tcompile.runtime.placement import Placement, check_out
from tcompile.runtime.pool import Pool
from tcompile.runtime.specs import TensorSpec

Shapes = list[tuple[int, ...]]
Fast = Callable[[object], dict[str, np.ndarray] | None]


@dataclass(frozen=True)
class Measured:
    """What one kernel call took: nanoseconds and turns, since the counters began.

    ``busy``: nanoseconds of its shared parts on all threads together; ``span``: on the thread with the most of them. 0: one thread.
    """

    nanoseconds: int
    turns: int
    busy: int
    span: int


@dataclass(frozen=True)
class Work:
    """What one turn of a kernel call has to do; None where that is not known.

    ``flops``: floating-point operations. ``bytes``: of its tensors, each counted once. ``cycles``: what the cost model expects
    the arithmetic to take on one core.
    """

    flops: int | None
    bytes: int | None
    cycles: int | None


def _unprepared(inputs: object) -> None:
    """What ``Session.fast`` is before shapes are known."""


class Session:
    """Runs one call at a time. Keeps the shapes of its last run prepared."""

    def __init__(self, module: Module, pool: Pool, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self._module, self._pool, self._inputs, self._outputs = module, pool, inputs, outputs
        self._handle: int = abi.native.tc_session_new(module.handle, pool.handle if pool.threads > 1 else None)
        if not self._handle:
            raise MemoryError("no memory for a session")
        weakref.finalize(self, abi.native.tc_session_free, self._handle).atexit = False
        abi.native.tc_session_set_hooks(self._handle, ctypes.addressof(abi.hooks))
        self._names = [spec.name for spec in outputs]
        ranks = [len(spec.shape) for spec in outputs]
        self._extents = [(ctypes.c_int64 * rank, ctypes.sizeof(ctypes.c_int64) * sum(ranks[:k])) for k, rank in enumerate(ranks)]
        self._shapes: Shapes | None = None
        self._rows: Rows = {}
        self._pitches = {spec.pitch[1] for spec in (*inputs, *outputs) if spec.pitch is not None}
        self._results: list[tuple[tuple[int, ...], np.dtype] | None] = []  # of outputs; None: growing
        self._memory = OutputMemory()
        self.fast: Fast = _unprepared  # all outputs of a dict of arrays, in one call; None where these are not as prepared
        self._pointers = (ctypes.c_uint64 * (len(inputs) + len(outputs) + 1))()
        self._pack = struct.Struct(f"={len(inputs) + len(outputs)}Q").pack_into
        self._run = abi.native.tc_session_run
        self._arguments = (
            ctypes.c_void_p(self._handle),
            ctypes.c_void_p(ctypes.addressof(self._pointers)),
            ctypes.c_void_p(ctypes.addressof(self._pointers) + 8 * len(inputs)),
        )

    def run_all(self, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs in new arrays. ``arrays``: the inputs in order, row-major and of their types."""
        shapes = [array.shape for array in arrays]
        if shapes != self._shapes or self._rows:
            self._prepare(shapes)
        made = [None if result is None else self._memory.empty(*result) for result in self._results]
        self._pack(self._pointers, 0, *map(abi.reference, arrays), *(0 if array is None else abi.reference(array) for array in made))
        status = self._run(*self._arguments)
        if status:
            raise self._failure(status)
        return {name: self._fetch(k) if made[k] is None else made[k] for k, name in enumerate(self._names)}

    def run(
        self, arrays: list[np.ndarray], wanted: Sequence[str], out: Mapping[str, np.ndarray], donated: Set[int] = frozenset()
    ) -> dict[str, np.ndarray]:
        """The ``wanted`` outputs, in ``out``'s arrays where it names them; inputs at ``donated`` positions may be overwritten."""
        rows = self._choose_rows(arrays, out) if self._pitches else {}
        if self._pitches:
            arrays = [placed(array, spec, rows) for array, spec in zip(arrays, self._inputs, strict=True)]
        shapes = [array.shape for array in arrays]
        if shapes != self._shapes or rows != self._rows:
            self._prepare(shapes, rows)
        placement = Placement(arrays, out, donated, self._module.shares, self._inputs, rows, make=self._make)
        targets = [self._target(k, spec, wanted, placement) for k, spec in enumerate(self._outputs)]
        places = (0 if target is None else abi.reference(target) for target in targets)
        self._pack(self._pointers, 0, *map(abi.reference, arrays), *places)
        status = self._run(*self._arguments)
        if status:
            raise self._failure(status)
        return {name: self._result(self._names.index(name), targets, out) for name in wanted}

    def prepared_shapes(self, shapes: Shapes) -> Shapes:
        """The outputs' shapes for inputs of these shapes; -1 where only a run knows."""
        if shapes != self._shapes or self._rows:
            self._prepare(shapes)
        return self._output_shapes()

    def cancel(self) -> None:
        """Stops the run in progress, from any thread."""
        abi.native.tc_session_cancel(self._handle)

    def profile(self, clock: str | None) -> None:
        """Measures each call from the next run on, from zero, by a clock of ``abi.CLOCKS``; None ends that."""
        if abi.native.tc_session_profile(self._handle, 0 if clock is None else abi.CLOCKS[clock]):
            raise MemoryError("no memory for a profile")

    def measured(self) -> list[Measured]:
        """What each call took since ``profile``."""
        count, native, handle = self._module.info.call_count, abi.native, self._handle
        times, turns = native.tc_session_times(handle), native.tc_session_counts(handle)
        shared = ((native.tc_session_busy(handle, i), native.tc_session_span(handle, i)) for i in range(count))
        return [Measured(times[i], turns[i], *parts) for i, parts in enumerate(shared)]

    def work(self) -> list[Work]:
        """What each call has to do under the last run's sizes."""
        info = self._module.info
        return [
            Work(self._extent(site.flops), self._extent(site.bytes), self._extent(site.cycles) or None)
            for site in info.calls[: info.call_count]
        ]

    def _extent(self, extent: abi.Extent) -> int | None:
        value = abi.native.tc_session_extent(self._handle, extent)
        return None if value < 0 else value

    def memory(self) -> abi.Memory:
        """Bytes that the session holds."""
        memory = abi.Memory()
        abi.native.tc_session_memory(self._handle, memory)
        return memory

    @property
    def output_bytes(self) -> int:
        """Bytes of earlier outputs that the next may take, those included that the caller still holds."""
        return self._memory.bytes

    def _choose_rows(self, arrays: list[np.ndarray], out: Mapping[str, np.ndarray]) -> Rows:
        inputs = [(spec, array) for spec, array in zip(self._inputs, arrays, strict=True) if spec.pitch]
        outputs = [(spec, out[spec.name]) for spec in self._outputs if spec.pitch and spec.name in out]
        ranked = [(spec, array) for spec, array in outputs if isinstance(array, np.ndarray) and array.ndim == len(spec.shape)]
        return choose_rows((*inputs, *ranked))

    def _prepare(self, shapes: Shapes, rows: Rows | None = None) -> None:
        self._shapes, self._rows, self.fast = None, rows or {}, _unprepared
        for symbol in self._pitches:
            if abi.native.tc_session_set_pitch(self._handle, symbol, self._rows.get(symbol, 0)):
                raise self._failure(abi.INPUT)
        rows = [(ctypes.c_int64 * (len(shape) + 1))(*shape) for shape in shapes]
        native = (abi.Shape * (len(shapes) + 1))()
        for i, (row, shape, spec) in enumerate(zip(rows, shapes, self._inputs, strict=True)):
            native[i] = abi.Shape(ctypes.addressof(row), len(shape), spec.element.onnx)
        status = abi.native.tc_session_prepare(self._handle, ctypes.addressof(native))
        if status:
            raise self._failure(status)
        found = zip(self._output_shapes(), self._outputs, strict=True)
        self._results = [None if spec.growing else (shape, spec.dtype) for shape, spec in found]
        self._memory.prepare([prod(shape) * dtype.itemsize for shape, dtype in filter(None, self._results)])
        self._shapes = shapes
        if abi.Runner is not None and None not in self._results and not self._pitches:
            self.fast = self._runner(shapes)

    def _runner(self, shapes: Shapes) -> Fast:
        inputs = tuple((spec.name, spec.dtype, tuple(shape)) for spec, shape in zip(self._inputs, shapes, strict=True))
        outputs = tuple((name, dtype, shape) for name, (shape, dtype) in zip(self._names, self._results, strict=True))
        session = weakref.proxy(self)  # which owns what is made here
        return abi.Runner(self._handle, np.ndarray, self._memory.maker, lambda status: session.fail(status), inputs, outputs).run

    def _output_shapes(self) -> Shapes:
        return [self._output_shape(k) for k in range(len(self._outputs))]

    def _output_shape(self, k: int) -> tuple[int, ...]:
        extents, offset = self._extents[k]
        return tuple(extents.from_address(abi.native.tc_session_output_shapes(self._handle) + offset))

    def _make(self, shape: tuple[int, ...], dtype: np.dtype, spec: TensorSpec, rows: Rows) -> np.ndarray:
        return empty(shape, dtype, spec, rows, self._memory.empty)

    def _target(self, k: int, spec: TensorSpec, wanted: Sequence[str], placement: Placement) -> np.ndarray | None:
        """The array that compiled code writes output k to; None leaves it in the session."""
        result = self._results[k]
        return None if result is None or spec.name not in wanted else placement.choose(k, spec, result)

    def _result(self, k: int, targets: list[np.ndarray | None], out: Mapping[str, np.ndarray]) -> np.ndarray:
        result = self._fetch(k) if targets[k] is None else targets[k]
        given = out.get(self._names[k])
        if given is None or given is result:
            return result
        check_out(self._outputs[k], given, result.shape)
        given[...] = result
        return given

    def _fetch(self, k: int) -> np.ndarray:
        """A copy of a growing output, whose memory stays the session's."""
        result = np.empty(self._output_shape(k), self._outputs[k].dtype)
        ctypes.memmove(result.ctypes.data, self._pointers[len(self._inputs) + k], result.nbytes)
        return result

    def fail(self, status: int) -> NoReturn:
        """Raises what a run's status stands for."""
        raise self._failure(status)

    def _failure(self, status: int) -> Exception:
        text = abi.native.tc_session_error(self._handle).decode(errors="replace")
        hint = abi.native.tc_session_hint(self._handle).decode(errors="replace")
        return InputError(text, hint=hint) if status == abi.INPUT else ExecutionError(text, hint=hint)
