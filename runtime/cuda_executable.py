"""A model that is ready to run on a CUDA device."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np

from tcompile.errors import Error, InputError
from tcompile.runtime.arrays import as_input
from tcompile.runtime.cuda_arrays import DeviceArray, as_device_array, on_device
from tcompile.runtime.cuda_device import Device, Stream
from tcompile.runtime.cuda_devices import open_device
from tcompile.runtime.cuda_model import CudaModel
from tcompile.runtime.cuda_plan import Launch
from tcompile.runtime.cuda_report import cuda_report
from tcompile.runtime.cuda_session import CudaSession, Measured
from tcompile.runtime.cuda_transfer import Array, Request
from tcompile.runtime.executable import Memory
from tcompile.runtime.loader import Archive, Source
from tcompile.runtime.measure import CallProfile, Profile
from tcompile.runtime.names import NamedTensors
from tcompile.runtime.saving import save_whole
from tcompile.runtime.specs import SiteSpec, TensorSpec

Inputs = Mapping[str, Any] | Sequence[Any]


class CudaExecutable(NamedTensors):
    """A loaded model, used like an ``Executable``. Its code and weights are on the device once; several threads may run it at once,
    each with a session: a stream and an arena, which are kept for the next run.
    """

    def __init__(self, source: Source | Archive, *, device: str | Device = "cuda:0") -> None:
        """Opens a path or an artifact's bytes on a device: ``cuda:N``, or one that is open. See ``load``."""
        archive = source if isinstance(source, Archive) else Archive(source)
        self._place = device if isinstance(device, str) else None
        self._model: CudaModel | None = CudaModel(archive, open_device(device))
        plan = self._model.plan
        self.name, self.target = plan.name, plan.target
        self.inputs: tuple[TensorSpec, ...] = plan.input_specs()
        self.outputs: tuple[TensorSpec, ...] = plan.output_specs()
        self._output_names = [spec.name for spec in self.outputs]
        self._lock = Lock()
        self._free: list[CudaSession] = []  # not in a run
        self._sessions: list[CudaSession] = []

    def run(
        self,
        inputs: Inputs,
        outputs: Iterable[str] | None = None,
        *,
        out: Mapping[str, Any] | None = None,
        donate: Iterable[str] = (),
        on_device: bool | None = None,
        stream: Stream | Any | None = None,
    ) -> dict[str, Array]:
        """Runs the model: arrays by name, or in order. Gives the outputs by name, in arrays that the caller owns.

        An input is a NumPy array, which is copied to the device, or a device array (``DeviceArray``, or anything with
        ``__dlpack__`` or ``__cuda_array_interface__`` on this device), which is read where it is. ``outputs``: the names
        wanted, all by default. They are NumPy arrays, or ``DeviceArray`` where ``on_device`` is true or, by default, any
        input is a device array. ``out``: arrays to write outputs to, of their exact shapes, on the host or on the device.
        ``donate``: inputs whose device arrays the run may overwrite, as of ``Executable.run``; those of host arrays stay.

        ``stream``: a stream of the caller's to run on, as a number or an object with ``cuda_stream`` (PyTorch), ``ptr`` (CuPy)
        or ``handle`` (PyCUDA). With device arrays only, the run may then still be in progress on it when this returns; it has
        ended for models that check indices or read sizes on the way, and for results on the host. Without it the run has ended.

        Raises InputError for inputs that do not fit (before anything runs), ExecutionError for a run that stopped, OutOfMemory.
        """
        with self._session() as session:
            wanted = self._output_names if outputs is None else self._known(outputs, "output")
            given = dict(out or {})
            self._known(given, "out array")
            handle = None if stream is None else stream_handle(stream)
            request = Request(wanted, {}, self._positions(donate), on_device, handle)
            place = session.stream_of(request)
            arrays = self._arrays(inputs, place)
            if handle is not None:
                _lend(arrays, handle)
            targets = {name: self._target(name, value, place) for name, value in given.items()}
            results = session.run(arrays, Request(wanted, targets, request.donated, on_device, handle))
            return {name: given.get(name, result) for name, result in results.items()}

    def output_shapes(self, inputs: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """The outputs' shapes for inputs of these shapes; -1 where only a run knows."""
        with self._session() as session:
            return dict(zip(self._output_names, session.output_shapes(inputs[spec.name] for spec in self.inputs), strict=True))

    @property
    def device(self) -> Device:
        """The device that the model is on."""
        return self._opened().device

    @property
    def shares(self) -> dict[str, tuple[str, ...]]:
        """The outputs that may be written over a donated input, and over which."""
        found = self._opened().plan.shares
        return {self.outputs[k].name: tuple(self.inputs[i].name for i in inputs) for k, inputs in found.items()}

    @property
    def threads(self) -> int:
        """The threads of the host that a run uses: the caller's."""
        return 1

    @property
    def calls(self) -> tuple[SiteSpec, ...]:
        """Every kernel launch, with the ONNX nodes it computes."""
        return self._opened().plan.sites()

    @property
    def notes(self) -> dict[str, str]:
        """What the compiler wrote down about the model."""
        return dict(self._opened().plan.notes)

    def profile(self, inputs: Inputs, *, runs: int = 10) -> Profile:
        """Runs the model once, then ``runs`` times measured by events around each launch, which are then not one graph."""
        plan = self._opened().plan
        with self._session() as session:
            arrays = self._arrays(inputs, session.stream_of(Request(())))
            measured = session.profile(arrays, runs)
        whole = [one.seconds for one in measured]
        return Profile(statistics.median(whole), min(whole), tuple(_profiled(launch, measured) for launch in plan.launches))

    def seconds(self, inputs: Inputs, *, runs: int = 100) -> float:
        """The mean time of a run as a caller on the device sees it: between two events around ``runs`` runs of device arrays."""
        with self._session() as session:
            stream = session.stream_of(Request(()))
            device = self._opened().device
            arrays = self._arrays(inputs, stream)
            request = Request(self._output_names, on_device=True, stream=stream)
            for _ in range(3):  # the second run captures the graph
                session.run(arrays, request)
            begin, end = device.new_event(), device.new_event()
            device.record(begin, stream)
            for _ in range(runs):
                session.run(arrays, request)
            device.record(end, stream)
            return device.elapsed(begin, end) / runs

    def memory(self) -> Memory:
        """Bytes on the device held now, by sessions that are not in a run. ``scratch`` counts copies of inputs and outputs."""
        model, held = self._opened(), [session.memory() for session in tuple(self._free)]
        arena, staged, growing = (sum(one[name] for one in held) for name in ("arena", "staged", "growing"))
        return Memory(
            code=model.code_bytes(),
            weights=model.plan.weights_bytes,
            arena=arena,
            scratch=staged,
            growing=growing,
            outputs=0,
            peak=arena + staged + growing,
            sessions=len(held),
            allocations=sum(one["allocations"] for one in held),
        )

    def report(self) -> dict[str, object]:
        """What is in the artifact, as JSON can hold it; see ``runtime/cuda_report.py``."""
        return cuda_report(self._opened().archive)

    def verify_weights(self) -> None:
        """Hashes the weights. Raises ArtifactError where they are not those that the model was compiled with."""
        self._opened().verify_weights()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the artifact: whole, into a file beside it, then renamed."""
        save_whole(path, memoryview(self._opened().archive.bytes))

    def cancel(self) -> None:
        """Stops runs in progress at the next turn of a loop, from any thread: they raise ExecutionError."""
        for session in tuple(self._sessions):
            session.cancel()

    def close(self) -> None:
        """Gives back the model's memory on the device, that of runs in progress at their end. Closing twice is fine."""
        with self._lock:
            model, self._model = self._model, None
            free, self._free = self._free, []
            self._sessions.clear()
        if model is not None:
            with model.device.active():
                for session in free:
                    session.close()

    def __enter__(self) -> CudaExecutable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        if self._place is None:
            raise Error(f"the model {self.name} is on a device that cannot be named", hint="load it by a name: device='cuda:0'")
        archive = self._opened().archive
        return _reload, (archive.path or archive.bytes.tobytes(), self._place)

    def __repr__(self) -> str:
        return f"<CudaExecutable {self.name}: {', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}>"

    def _opened(self) -> CudaModel:
        if self._model is None:
            raise Error(f"the model {self.name} is closed", hint="load it again")
        return self._model

    @contextmanager
    def _session(self) -> Iterator[CudaSession]:
        """A session for one run, while the device is the thread's."""
        model = self._opened()
        with model.device.active():
            with self._lock:
                session = self._free.pop() if self._free else None
            if session is None:
                session = CudaSession(model.shared)
                self._sessions.append(session)
            try:
                yield session
            finally:
                self._give_back(session)

    def _give_back(self, session: CudaSession) -> None:
        with self._lock:
            closed = self._model is None
            if not closed:
                self._free.append(session)
        if closed:
            session.close()

    def _arrays(self, inputs: Inputs, stream: Stream) -> list[Array]:
        """The inputs in order, on the host or on the device."""
        if not isinstance(inputs, Mapping):
            inputs = self._by_name(inputs)
        if len(inputs) != len(self.inputs) or any(spec.name not in inputs for spec in self.inputs):
            self._refuse_names(inputs)
        return [self._array(inputs[spec.name], spec, stream) for spec in self.inputs]

    def _array(self, value: Any, spec: TensorSpec, stream: Stream) -> Array:
        if not on_device(value):
            return as_input(value, spec)
        array = as_device_array(value, spec.element, self._opened().device, stream, f"input '{spec.name}'")
        if array.ndim != len(spec.shape):
            shape = ", ".join(map(str, spec.shape))
            raise InputError(f"input '{spec.name}' has shape {array.shape}, expected {len(spec.shape)} dimensions: [{shape}]")
        return array

    def _target(self, name: str, value: Any, stream: Stream) -> Array:
        if isinstance(value, np.ndarray) or not on_device(value):
            return value
        spec = self.outputs[self._output_names.index(name)]
        return as_device_array(value, spec.element, self._opened().device, stream, f"out['{name}']")


def _profiled(launch: Launch, runs: Sequence[Measured]) -> CallProfile:
    seconds, last, number = [one.launches.get(launch.number, 0.0) for one in runs], runs[-1], launch.number
    kernel = launch.kernel
    return CallProfile(
        kernel.name, launch.nodes, statistics.median(seconds), min(seconds), last.turns.get(number, 0),
        last.flops.get(number) or None, last.bytes.get(number), None, dict(kernel.record),
    )  # fmt: skip


def _lend(arrays: Iterable[Array], stream: Stream) -> None:
    """Marks device arrays that a run on the caller's stream reads, but that belong to other ones."""
    for array in arrays:
        if isinstance(array, DeviceArray) and array.stream != stream:
            array.lend()


def stream_handle(stream: Any) -> Stream:
    """The driver's number of a stream, of whatever library it is. Raises InputError for what is none."""
    for name in ("cuda_stream", "ptr", "handle"):
        found = getattr(stream, name, None)
        if isinstance(found, int):
            return found
    if isinstance(stream, int):
        return stream
    raise InputError(f"stream is a {type(stream).__name__}, expected a CUDA stream", hint="torch.cuda.current_stream(), or its number")


def _reload(source: Source, device: str) -> CudaExecutable:
    return CudaExecutable(source, device=device)
