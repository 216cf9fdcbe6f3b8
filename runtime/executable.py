"""A model that is ready to run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tcompile.errors import Error
from tcompile.runtime.abi import ModuleInfo
from tcompile.runtime.arrays import as_input
from tcompile.runtime.loader import Archive, Module, Source
from tcompile.runtime.measure import Profile, measured_profile
from tcompile.runtime.names import NamedTensors, tensor_report
from tcompile.runtime.pool import Pool, shared_pool
from tcompile.runtime.saving import save_whole
from tcompile.runtime.session import Session
from tcompile.runtime.specs import SiteSpec, TensorSpec, call_specs, features, growing_specs, notes, symbol_bounds, tensor_specs

_SCRATCH_ALIGN = 64  # of each thread's scratch
Inputs = Mapping[str, np.ndarray] | Sequence[np.ndarray]


@dataclass(frozen=True)
class Memory:
    """Bytes that an executable holds.

    ``outputs``: of earlier outputs, for the next to take; those included that the caller still holds. ``peak``: the largest that
    its sessions held at a time, weights, code and outputs not counted.
    """

    code: int
    weights: int
    arena: int
    scratch: int
    growing: int
    outputs: int
    peak: int
    sessions: int
    allocations: int


class Executable(NamedTensors):
    """A loaded model. Several threads may run it at once; each run takes a session, which keeps its memory for the next.

    ``inputs`` and ``outputs`` tell names, types and shapes. A context manager: ``with load(path) as exe``.
    """

    def __init__(self, source: Source | Archive, *, threads: int | Pool | None = None) -> None:
        """Opens a path or an artifact's bytes; see ``load``."""
        self._module: Module | None = Module(source)
        self._requested = None if isinstance(threads, Pool) else threads
        self._pool = shared_pool(threads)
        info = self._module.info
        self.name: str = info.name.decode(errors="replace")
        self.target: str = info.target.decode(errors="replace")
        self.inputs: tuple[TensorSpec, ...] = tensor_specs(info.inputs, info.input_count, info)
        self.outputs: tuple[TensorSpec, ...] = tensor_specs(info.outputs, info.output_count, info)
        self._checks = [(spec.name, spec.dtype, len(spec.shape), spec) for spec in self.inputs]
        self._pitched = [i for i, spec in enumerate(self.inputs) if spec.pitch is not None]
        self._output_names = [spec.name for spec in self.outputs]
        self._free: list[Session] = []  # not in a run
        self._sessions: list[Session] = []

    def run(
        self,
        inputs: Inputs,
        outputs: Iterable[str] | None = None,
        *,
        out: Mapping[str, np.ndarray] | None = None,
        donate: Iterable[str] = (),
    ) -> dict[str, np.ndarray]:
        """Runs the model: arrays by name, or in order. Gives the outputs by name, in arrays that the caller owns;
        the memory of large ones serves a later run once nothing refers to it.

        ``outputs``: the names wanted, all by default. ``out``: arrays to write outputs to, of their exact shapes;
        one that overlaps an input gets a copy. Nothing is cast; a non-contiguous input is copied.

        ``donate``: inputs whose arrays the run may overwrite. An output that may take an input's place (``shares``) is
        then written there without a copy: into ``out``'s array where that begins at the input's address, say
        ``past = cache[:, :, :t]`` and ``out={"present": cache[:, :, : t + 1]}``, else into the input's array where it fits,
        and is returned as a view of it. Where the program does not allow it, outputs have their own memory as ever.

        Raises InputError for inputs that do not fit (before anything runs), ExecutionError for a run that stopped, and
        what a signal handler raises: Ctrl-C stops a run between two kernels.
        """
        session = self._take()
        try:
            whole = outputs is None and not out and not donate
            if whole and (made := session.fast(inputs)) is not None:
                return made
            arrays = self._arrays(inputs)
            if whole and all(arrays[i].flags.c_contiguous for i in self._pitched):
                return session.run_all(arrays)
            wanted = self._output_names if outputs is None else self._known(outputs, "output")
            given = dict(out or {})
            self._known(given, "out array")
            return session.run(arrays, wanted, given, self._positions(donate))
        finally:
            self._give_back(session)

    def output_shapes(self, inputs: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """The outputs' shapes for inputs of these shapes; -1 where only a run knows."""
        session = self._take()
        try:
            shapes = session.prepared_shapes([tuple(inputs[spec.name]) for spec in self.inputs])
            return dict(zip(self._output_names, shapes, strict=True))
        finally:
            self._give_back(session)

    @property
    def shares(self) -> dict[str, tuple[str, ...]]:
        """The outputs that may be written over a donated input, and over which."""
        found = self._opened().shares
        return {self.outputs[k].name: tuple(self.inputs[i].name for i in inputs) for k, inputs in found.items()}

    @property
    def threads(self) -> int:
        """How many threads a run may use."""
        return self._pool.threads

    @property
    def calls(self) -> tuple[SiteSpec, ...]:
        """Every kernel call, with the ONNX nodes it computes."""
        return call_specs(self._opened().info)

    @property
    def notes(self) -> dict[str, str]:
        """What the compiler wrote down about the model."""
        return notes(self._opened().info)

    def profile(self, inputs: Inputs, *, runs: int = 10, clock: str = "wall", before: Callable[[], object] | None = None) -> Profile:
        """Runs the model once, then ``runs`` times measured. Measuring takes a clock reading for each call.

        ``clock``: "cpu" counts a thread's own work, which a busy machine does not disturb.
        ``before`` is called ahead of each measured run, say to empty caches.
        """
        arrays, session = [np.ascontiguousarray(array) for array in self._arrays(inputs)], self._take()
        try:
            return measured_profile(session, arrays, self.calls, runs, clock, before)
        finally:
            self._give_back(session)

    def memory(self) -> Memory:
        """Bytes held now, by sessions that are not in a run."""
        info, free = self._opened().info, tuple(self._free)
        held = [session.memory() for session in free]
        return Memory(
            code=info.code_bytes,
            weights=info.weights_bytes,
            arena=sum(one.arena_bytes for one in held),
            scratch=sum(one.scratch_bytes for one in held),
            growing=sum(one.growing_bytes + one.spare_bytes for one in held),
            outputs=sum(session.output_bytes for session in free),
            peak=sum(one.peak_bytes for one in held),
            sessions=len(held),
            allocations=sum(one.allocations for one in held),
        )

    def report(self) -> dict[str, object]:
        """What is in the artifact, as JSON can hold it: signature, target, sizes in bytes, calls. None: not bounded.

        ``peak_bytes`` is what one run at a time holds at most, the caller's tensors, ``growing`` buffers and outputs
        nobody asked for not counted: code, weights, arena, and scratch for each thread.
        """
        info = self._opened().info
        return {
            "name": self.name,
            "target": self.target,
            "arch": info.arch.decode(errors="replace"),
            "features": features(info),
            "inputs": [tensor_report(spec) for spec in self.inputs],
            "outputs": [tensor_report(spec) for spec in self.outputs],
            "symbols": {name: list(bounds) for name, bounds in symbol_bounds(info).items()},
            "growing": [{"name": site.kernel, "nodes": list(site.nodes)} for site in growing_specs(info)],
            "shares": {output: list(inputs) for output, inputs in self.shares.items()},
            "code_bytes": info.code_bytes,
            "weights_bytes": info.weights_bytes,
            "arena_bytes": None if info.arena_bytes < 0 else info.arena_bytes,
            "scratch_bytes": None if info.scratch_bytes < 0 else info.scratch_bytes,
            "threads": self.threads,
            "peak_bytes": self._peak(info),
            "calls": [{"kernel": call.kernel, "nodes": list(call.nodes), "record": call.record} for call in self.calls],
            "notes": self.notes,
        }

    def _peak(self, info: ModuleInfo) -> int | None:
        if info.arena_bytes < 0 or info.scratch_bytes < 0:
            return None
        scratch = -(-info.scratch_bytes // _SCRATCH_ALIGN) * _SCRATCH_ALIGN
        return info.code_bytes + info.weights_bytes + info.arena_bytes + scratch * self.threads

    def verify_weights(self) -> None:
        """Hashes the weights. Raises ArtifactError where they are not those that the model was compiled with."""
        self._opened().verify_weights()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the artifact: whole, into a file beside it, then renamed."""
        save_whole(path, self._opened().artifact())

    def cancel(self) -> None:
        """Stops the runs in progress, from any thread: they raise ExecutionError."""
        for session in tuple(self._sessions):
            session.cancel()

    def close(self) -> None:
        """Gives back the model's memory; a run in progress ends first. Closing twice is fine."""
        self._module = None
        self._free.clear()
        self._sessions.clear()

    def __enter__(self) -> Executable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        module = self._opened()
        return _reload, (module.path or bytes(module.artifact()), self._requested)

    def __repr__(self) -> str:
        return f"<Executable {self.name}: {', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}>"

    def _opened(self) -> Module:
        if self._module is None:
            raise Error(f"the model {self.name} is closed", hint="load it again")
        return self._module

    def _take(self) -> Session:
        try:
            return self._free.pop()
        except IndexError:
            session = Session(self._opened(), self._pool, self.inputs, self.outputs)
            self._sessions.append(session)
            return session

    def _give_back(self, session: Session) -> None:
        if self._module is not None:
            self._free.append(session)

    def _arrays(self, inputs: Inputs) -> list[np.ndarray]:
        """The inputs in order, in the form that compiled code reads."""
        if not isinstance(inputs, Mapping):
            inputs = self._by_name(inputs)
        if len(inputs) != len(self._checks):
            self._refuse_names(inputs)
        arrays = []
        for name, dtype, rank, spec in self._checks:
            try:
                value = inputs[name]
            except KeyError:
                self._refuse_names(inputs)
            if type(value) is not np.ndarray or value.dtype != dtype or not value.flags.carray or value.ndim != rank:
                value = as_input(value, spec)
            arrays.append(value)
        return arrays


def _reload(source: Source, threads: int | None) -> Executable:
    return Executable(source, threads=threads)
