"""A model with host ops that is ready to run: native segments, with Python's steps between them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tcompile.errors import Error, InputError
from tcompile.runtime.cuda_device import Device
from tcompile.runtime.executable import Memory
from tcompile.runtime.host_plan import HostStep, NativeStep, Plan, read_plan
from tcompile.runtime.host_types import HostSpec, checked
from tcompile.runtime.loader import Archive
from tcompile.runtime.measure import CallProfile, Profile
from tcompile.runtime.pool import Pool, shared_pool
from tcompile.runtime.reports import combined
from tcompile.runtime.saving import save_whole
from tcompile.runtime.segments import HOST_PLAN, open_native
from tcompile.runtime.specs import SiteSpec

if TYPE_CHECKING:
    from tcompile.runtime.segments import AnyExecutable

DIGEST = "host.sha256"
Inputs = Mapping[str, Any] | Sequence[Any]


class HostedExecutable:
    """A loaded model that Python runs in part; it is used like an ``Executable``.

    Strings are object arrays of str (any of NumPy's string types is taken), sequences lists, absent optionals None, maps
    dicts. ``report()["host_calls"]`` names what Python runs.
    """

    def __init__(self, archive: Archive, *, threads: int | Pool | None = None, device: str | Device | None = None) -> None:
        """Opens the plan and all segments, on a device where they are compiled for one. Raises ArtifactError for damaged ones."""
        self._archive: Archive | None = archive
        self._requested = None if isinstance(threads, Pool) else threads
        self._pool = shared_pool(threads)
        plan: Plan = read_plan(archive.checked(HOST_PLAN, DIGEST, "host steps"))
        self._plan = plan
        parts = [memoryview(archive.part(f"segments/{k}.tcm")) for k in range(plan.segments)]
        self._place = device
        self._segments: list[AnyExecutable] = [open_native(Archive(part), self._pool, device) for part in parts]
        self._runners = [_runner(segment) for segment in self._segments]
        self.name = plan.name
        self.inputs: tuple[HostSpec, ...] = plan.inputs
        self.outputs: tuple[HostSpec, ...] = plan.outputs

    def run(
        self,
        inputs: Inputs,
        outputs: Iterable[str] | None = None,
        *,
        out: Mapping[str, np.ndarray] | None = None,
        donate: Iterable[str] = (),
    ) -> dict[str, Any]:
        """Runs the model: values by name, or in order. Gives the outputs by name.

        ``outputs``: the names wanted, all by default. ``out``: arrays to copy outputs to, of their exact shapes. ``donate``:
        inputs that may be overwritten; outputs have memory of their own all the same.
        Raises InputError for inputs that do not fit, ExecutionError for a run that stopped.
        """
        if self._archive is None:
            raise Error(f"the model {self.name} is closed", hint="load it again")
        known = [spec.name for spec in self.inputs]
        for name in [donate] if isinstance(donate, str) else donate:
            if name not in known:
                raise InputError(f"the model has no input '{name}'", hint=f"it has {', '.join(known)}")
        given = self._given(inputs)
        foreign = list(_arrays(given))
        values = (_owned(value, foreign) for value in self._plan.block.run(given, {}, self._runners))
        results = dict(zip((spec.name for spec in self.outputs), values, strict=True))
        for name, array in (out or {}).items():
            self._known(name)
            if array.shape != results[name].shape or array.dtype != results[name].dtype:
                raise InputError(f"out['{name}'] is {array.dtype} of shape {array.shape}, the output is {_of(results[name])}")
            array[...] = results[name]
            results[name] = array
        if outputs is None:
            return results
        wanted = [outputs] if isinstance(outputs, str) else list(outputs)
        return {name: results[self._known(name)] for name in wanted}

    def _given(self, inputs: Inputs) -> list[Any]:
        names = [spec.name for spec in self.inputs]
        if not isinstance(inputs, Mapping):
            if isinstance(inputs, np.ndarray) or len(inputs) != len(names):
                raise InputError(f"expected {len(names)} inputs", hint=f"a dict of {', '.join(names)}, or a list")
            inputs = dict(zip(names, inputs, strict=True))
        for name in inputs:
            if name not in names:
                raise InputError(f"the model has no input '{name}'", hint=f"it has {', '.join(names)}")
        for spec in self.inputs:
            if spec.name not in inputs and not spec.optional:
                raise InputError(f"input '{spec.name}' is missing", hint=f"it is {spec}")
        extents: dict[str, int] = {}
        return [checked(inputs.get(spec.name), spec, extents) for spec in self.inputs]

    def _known(self, name: str) -> str:
        names = [spec.name for spec in self.outputs]
        if name not in names:
            raise InputError(f"the model has no output '{name}'", hint=f"it has {', '.join(names)}")
        return name

    def output_shapes(self, inputs: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
        """The tensor outputs' shapes for inputs of these shapes; -1 where only a run knows."""
        extents: dict[str, int] = {}
        for spec in self.inputs:
            extents.update(pair for pair in zip(spec.shape or (), inputs.get(spec.name, ()), strict=False) if isinstance(pair[0], str))
        shapes = {spec.name: spec.shape for spec in self.outputs if spec.shape is not None}
        return {name: tuple(d if isinstance(d, int) else extents.get(d, -1) for d in shape) for name, shape in shapes.items()}

    @property
    def shares(self) -> dict[str, tuple[str, ...]]:
        """The inputs whose memory an output may take: none."""
        return {}

    @property
    def target(self) -> str:
        """What the native segments were compiled for; empty where there is none."""
        return self._segments[0].target if self._segments else ""

    @property
    def threads(self) -> int:
        """How many threads a run may use."""
        return self._pool.threads

    @property
    def calls(self) -> tuple[SiteSpec, ...]:
        """Every kernel call of the segments, with the ONNX nodes it computes."""
        return tuple(call for segment in self._segments for call in segment.calls)

    @property
    def host_calls(self) -> list[str]:
        """What Python runs, by operator and node."""
        return self._plan.host_calls()

    @property
    def notes(self) -> dict[str, str]:
        """What the compiler wrote down about the segments: ``0.key`` is a note about segment 0."""
        return {f"{k}.{name}": text for k, segment in enumerate(self._segments) for name, text in segment.notes.items()}

    def profile(self, inputs: Inputs, *, runs: int = 10) -> Profile:
        """Runs the model once, then ``runs`` times measured: one row per step of the outermost graph."""
        given = self._given(inputs)
        self._plan.block.run(given, {}, self._runners)
        seconds = np.zeros((runs, len(self._plan.block.steps)))
        for run in range(runs):
            values = dict(zip(self._plan.block.inputs, given, strict=True))
            for k, step in enumerate(self._plan.block.steps):
                start = time.perf_counter()
                step.run(values, self._runners)
                seconds[run, k] = time.perf_counter() - start
        whole = seconds.sum(1)
        rows = tuple(self._row(step, spent) for step, spent in zip(self._plan.block.steps, seconds.T, strict=True))
        return Profile(float(np.median(whole)), float(whole.min()), rows)

    def _row(self, step: Any, seconds: np.ndarray) -> CallProfile:
        name, nodes = "host op" if isinstance(step, HostStep) else "host", (getattr(step, "name", ""),)
        if isinstance(step, NativeStep):
            name = f"segment {step.segment}"
            nodes = tuple(dict.fromkeys(node for call in self._segments[step.segment].calls for node in call.nodes))
        return CallProfile(name, nodes, float(np.median(seconds)), float(seconds.min()), 1.0, None)

    def memory(self) -> Memory:
        """Bytes that the segments hold now, by sessions that are not in a run."""
        held = [segment.memory() for segment in self._segments]
        return Memory(**{name: sum(getattr(one, name) for one in held) for name in Memory.__dataclass_fields__})

    def report(self) -> dict[str, object]:
        """What is in the artifact, as JSON can hold it: signature, host calls, and each segment's own report."""
        return hosted_report(self._plan, [segment.report() for segment in self._segments], self.threads)

    def verify_weights(self) -> None:
        """Hashes the weights of all segments. Raises ArtifactError where they are not those that were compiled."""
        for segment in self._segments:
            segment.verify_weights()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the artifact: whole, into a file beside it, then renamed."""
        if self._archive is None:
            raise Error(f"the model {self.name} is closed", hint="load it again")
        save_whole(path, memoryview(self._archive.bytes))

    def cancel(self) -> None:
        """Stops the native segments in progress, from any thread: they raise ExecutionError."""
        for segment in self._segments:
            segment.cancel()

    def close(self) -> None:
        """Gives back the model's memory. Closing twice is fine."""
        self._archive = None
        for segment in self._segments:
            segment.close()

    def __enter__(self) -> HostedExecutable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[object, ...]:
        if self._archive is None:
            raise Error(f"the model {self.name} is closed", hint="load it again")
        return _reload, (self._archive.path or self._archive.bytes.tobytes(), self._requested, self._place)

    def __repr__(self) -> str:
        return f"<HostedExecutable {self.name}: {', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}>"


def _arrays(value: Any) -> Iterator[np.ndarray]:
    """The arrays in a value."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _arrays(item)


_PLAIN = frozenset({dict, str, int, float, bool, type(None)})  # items of lists that hold no arrays


def _owned(value: Any, foreign: list[np.ndarray]) -> Any:
    """A result that is the caller's: copied where it may be a constant, or the memory of an input."""
    if isinstance(value, list):
        return list(value) if _PLAIN.issuperset(map(type, value)) else [_owned(item, foreign) for item in value]
    if not isinstance(value, np.ndarray):
        return value
    shared = not value.flags.writeable or any(np.may_share_memory(value, array) for array in foreign)
    return value.copy() if shared else value


def _runner(segment: AnyExecutable):
    """A segment as a function of arrays in order."""
    names = [spec.name for spec in segment.inputs]

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return list(segment.run(dict(zip(names, arrays, strict=True))).values())

    return run


def hosted_report(plan: Plan, segments: Sequence[Mapping[str, Any]], threads: int) -> dict[str, Any]:
    """The report of a plan and of its segments. ``copies``: the tensors that segments on a GPU take from the host and give back."""
    return {
        "name": plan.name,
        **combined(segments),
        "threads": threads,
        "inputs": [_described(spec) for spec in plan.inputs],
        "outputs": [_described(spec) for spec in plan.outputs],
        "symbols": {name: list(bounds) for spec in plan.inputs for name, bounds in spec.ranges.items()},
        "shares": {},
        "calls": [call for segment in segments for call in segment["calls"]],
        "kernels": [kernel for segment in segments for kernel in segment.get("kernels", ())],
        "host_calls": plan.host_calls(),
        "copies": [_copies(k, segment) for k, segment in enumerate(segments) if segment["arch"].startswith("sm_")],
        "segments": list(segments),
    }


def _copies(number: int, segment: Mapping[str, Any]) -> str:
    to, back = (", ".join(spec["name"] for spec in segment[role]) or "nothing" for role in ("inputs", "outputs"))
    return f"segment {number}: {to} to the device, {back} back"


def _described(spec: HostSpec) -> dict[str, object]:
    if spec.type.kind == "tensor" and spec.shape is not None:
        return {"name": spec.name, "dtype": str(spec.element), "shape": ["?" if extent is None else extent for extent in spec.shape]}
    return {"name": spec.name, "dtype": str(spec.type), "shape": []}


def _of(value: Any) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__


def _reload(source: Any, threads: int | None, device: str | None) -> Any:
    from tcompile.runtime.load import load

    return load(source, threads, device)
