"""The steps of a model with host ops, as its artifact holds them, and how they run.

A block is a list of steps over named values. A step runs a native segment, one host op (``host_ops``), or control flow
around blocks. ``ir/host.py`` writes this form.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcompile.errors import ArtifactError, Error, ExecutionError
from tcompile.runtime.dtypes import element
from tcompile.runtime.host_ops import HostNode, Implementation, implementation, objects
from tcompile.runtime.host_types import Bounds, HostSpec, read_type

FORMAT = 1
Values = dict[str, Any]
Segment = Callable[[list[np.ndarray]], list[np.ndarray]]
_FAILURES = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True)
class Block:
    """Steps in order, between formal inputs and outputs."""

    inputs: tuple[str, ...]
    steps: tuple[Any, ...]
    outputs: tuple[str, ...]

    def run(self, given: Sequence[Any], around: Values, segments: Sequence[Segment]) -> list[Any]:
        """The outputs for inputs in order; ``around`` are the values that the block sees."""
        values = {**around, **dict(zip(self.inputs, given, strict=True))}
        for step in self.steps:
            step.run(values, segments)
        return [values[name] for name in self.outputs]


@dataclass(frozen=True)
class NativeStep:
    """Runs a segment."""

    segment: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def run(self, values: Values, segments: Sequence[Segment]) -> None:
        """Adds the outputs to the values."""
        results = segments[self.segment]([np.asarray(values[name]) for name in self.inputs])
        values.update(zip(self.outputs, results, strict=True))


@dataclass(frozen=True)
class HostStep:
    """Runs a host op; ``name`` is what messages and reports call it."""

    name: str
    function: Implementation
    node: HostNode
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]

    def run(self, values: Values, segments: Sequence[Segment]) -> None:
        """Adds the outputs to the values. Raises ExecutionError naming the node."""
        operands = [None if name is None else values[name] for name in self.inputs]
        try:
            result = self.function(operands, self.node)
        except Error as error:
            raise ExecutionError(f"{self.name}: {error}") from error
        except _FAILURES as error:
            raise ExecutionError(f"{self.name}: {type(error).__name__}: {error}") from error
        results = result if isinstance(result, tuple) else (result,)
        values.update((name, item) for name, item in zip(self.outputs, results, strict=False) if name is not None)


@dataclass(frozen=True, eq=False)
class ConstantStep:
    """Names a constant."""

    name: str
    value: Any

    def run(self, values: Values, segments: Sequence[Segment]) -> None:
        """Adds it to the values."""
        values[self.name] = self.value


@dataclass(frozen=True)
class IfStep:
    """Runs one of two blocks."""

    name: str
    condition: str
    then: Block
    otherwise: Block
    outputs: tuple[str | None, ...]

    def run(self, values: Values, segments: Sequence[Segment]) -> None:
        """Adds the block's outputs to the values."""
        block = self.then if bool(np.asarray(values[self.condition]).reshape(())) else self.otherwise
        _add(values, self.outputs, block.run((), values, segments))


@dataclass(frozen=True)
class LoopStep:
    """Runs a block turn by turn: ONNX Loop."""

    name: str
    trip: str | None
    condition: str | None
    carried: tuple[str, ...]
    body: Block
    outputs: tuple[str | None, ...]

    def run(self, values: Values, segments: Sequence[Segment]) -> None:
        """Adds the carried values and the stacks of scan elements to the values."""
        limit = None if self.trip is None else int(np.asarray(values[self.trip]).reshape(()))
        going = True if self.condition is None else _truth(values[self.condition])
        carried, stacks = [values[name] for name in self.carried], [[] for _ in self.outputs[len(self.carried) :]]
        turn = 0
        while going and (limit is None or turn < limit):
            given = [np.array(turn, np.int64), np.array(True), *carried]
            again, *results = self.body.run(given, values, segments)
            carried, elements = results[: len(carried)], results[len(carried) :]
            for stack, item in zip(stacks, elements, strict=False):
                stack.append(item)
            going = self.condition is None or _truth(again)
            turn += 1
        _add(values, self.outputs, [*carried, *map(self._stacked, stacks)])

    def _stacked(self, elements: list[np.ndarray]) -> np.ndarray:
        if not elements:
            raise ExecutionError(f"{self.name}: it ran no turn, so nothing tells the shape of its scan outputs")
        return np.stack(elements)


@dataclass(frozen=True)
class MapStep:
    """Runs a block for each element of the first operand: ONNX SequenceMap."""

    name: str
    inputs: tuple[str, ...]
    body: Block
    outputs: tuple[str | None, ...]

    def run(self, values: Values, segments: Sequence[Segment]) -> None:
        """Adds one list per output to the values."""
        operands = [values[name] for name in self.inputs]
        columns: list[list[Any]] = [[] for _ in self.body.outputs]
        for k in range(len(operands[0])):
            row = [operand[k] if isinstance(operand, list) else operand for operand in operands]
            for column, item in zip(columns, self.body.run(row, values, segments), strict=True):
                column.append(item)
        _add(values, self.outputs, columns)


def _truth(value: Any) -> bool:
    return bool(np.asarray(value).reshape(()))


def _add(values: Values, names: Sequence[str | None], items: Sequence[Any]) -> None:
    values.update((name, item) for name, item in zip(names, items, strict=False) if name is not None)


@dataclass(frozen=True)
class Plan:
    """All of a model but its native segments, of which there are ``segments``."""

    name: str
    inputs: tuple[HostSpec, ...]
    outputs: tuple[HostSpec, ...]
    block: Block
    segments: int

    def host_calls(self) -> list[str]:
        """What Python runs, by operator and node."""
        return [step.name for step in _named(self.block)]


def _named(block: Block) -> Iterator[Any]:
    for step in block.steps:
        if hasattr(step, "name") and not isinstance(step, ConstantStep):
            yield step
        for inner in (getattr(step, part, None) for part in ("then", "otherwise", "body")):
            if inner is not None:
                yield from _named(inner)


# Reading ------------------------------------------------------------------------------------------------------


def read_plan(data: bytes) -> Plan:
    """The plan in an artifact. Raises ArtifactError for another version, or for a host op that this runtime does not have."""
    try:
        content = json.loads(data)
        if content["format"] != FORMAT:
            message = f"the model's host steps have format version {content['format']}, this runtime reads version {FORMAT}"
            raise ArtifactError(message, hint="compile the model again with this version of tcompile")
        ranges: dict[str, Bounds] = {name: tuple(bounds) for name, bounds in content["symbols"].items()}
        inputs, outputs = (tuple(_spec(entry, ranges) for entry in content[role]) for role in ("inputs", "outputs"))
        return Plan(content["name"], inputs, outputs, _block(content["block"]), content["segments"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"the model's host steps are damaged: {error}", hint="compile the model again") from error


def _spec(content: Mapping[str, Any], ranges: Mapping[str, Bounds]) -> HostSpec:
    type_ = read_type(content["type"])
    return HostSpec(content["name"], type_, {name: ranges[name] for name in type_.shape or () if name in ranges})


def _block(content: Mapping[str, Any]) -> Block:
    return Block(tuple(content["inputs"]), tuple(map(_step, content["steps"])), tuple(content["outputs"]))


def _step(content: Mapping[str, Any]) -> Any:
    match content["step"]:
        case "native":
            return NativeStep(content["segment"], tuple(content["inputs"]), tuple(content["outputs"]))
        case "constant":
            return ConstantStep(content["name"], read_value(content["value"]))
        case "host":
            return _host_step(content)
        case "if":
            name, outputs = f"If ({content['node']})", tuple(content["outputs"])
            return IfStep(name, content["condition"], _block(content["then"]), _block(content["else"]), outputs)
        case "loop":
            head = (f"Loop ({content['node']})", content["trip"], content["condition"], tuple(content["carried"]))
            return LoopStep(*head, _block(content["body"]), tuple(content["outputs"]))
        case "map":
            name = f"SequenceMap ({content['node']})"
            return MapStep(name, tuple(content["inputs"]), _block(content["body"]), tuple(content["outputs"]))
    raise ArtifactError(f"the model has a step of the kind {content['step']!r}, which this runtime does not know")


def _host_step(content: Mapping[str, Any]) -> HostStep:
    domain, op, outputs = content["domain"], content["op"], tuple(content["outputs"])
    attributes = {name: read_value(value) for name, value in content["attributes"].items()}
    name = f"{f'{domain}.' if domain else ''}{op} ({content['node']})"
    node = HostNode(content["opset"], len(outputs), attributes)
    return HostStep(name, implementation(domain, op), node, tuple(content["inputs"]), outputs)


def read_value(value: Any) -> Any:
    """An attribute or constant: arrays stand as an object with their shape."""
    if not isinstance(value, dict):
        return value
    shape = tuple(value["shape"])
    if "strings" in value:
        return objects(value["strings"], shape)
    return np.frombuffer(base64.b64decode(value["data"]), element(value["dtype"]).numpy).reshape(shape)
