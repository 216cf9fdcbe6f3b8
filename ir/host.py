"""Programs with host ops: native graphs, and steps that Python runs before, between and after them.

Strings, maps, decoded images and sequences of a length that only the run knows are no tensors that compiled code could
hold. The importer (``onnx_host.py``) cuts a model at the nodes that need them: what lies between becomes native graphs
(``segments``), each compiled as a model of its own, and the nodes themselves become named host calls. A model that needs
none of this is one Graph, and its run is one native call.

``encode`` writes the steps as the artifact holds them; ``runtime/host_plan.py`` reads and runs them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from tcompile.ir.dims import Range
from tcompile.ir.dtypes import from_numpy
from tcompile.ir.graph import Graph

FORMAT = 1
Names = tuple[str | None, ...]  # of values; None where an operand or a result is omitted


@dataclass(frozen=True)
class HostCall:
    """One operator that Python runs. ``node`` names the ONNX node; ``attributes`` are complete."""

    op: str
    inputs: Names
    outputs: Names
    node: str
    domain: str = ""
    opset: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{f'{self.domain}.' if self.domain else ''}{self.op} ({self.node})"


@dataclass(frozen=True)
class NativeCall:
    """Runs a segment on tensors, and names its outputs in order."""

    segment: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Constant:
    """Names a constant tensor; strings are an object array of str."""

    name: str
    value: np.ndarray


@dataclass(frozen=True)
class Block:
    """A graph's steps in order. It sees the values of the blocks around it."""

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Branch:
    """ONNX If: one of two blocks."""

    node: str
    condition: str
    then: Block
    otherwise: Block
    outputs: Names


@dataclass(frozen=True)
class Repeat:
    """ONNX Loop: the body gets (turn, condition, carried...) and gives (condition, carried..., scan elements...)."""

    node: str
    trip: str | None
    condition: str | None
    carried: Names
    body: Block
    outputs: Names


@dataclass(frozen=True)
class ForEach:
    """ONNX SequenceMap: the body once per element of the first operand; operands that are no sequences go to every turn."""

    node: str
    inputs: Names
    body: Block
    outputs: Names


Step = HostCall | NativeCall | Constant | Branch | Repeat | ForEach


@dataclass(frozen=True, eq=False)
class HostProgram:
    """A model that Python runs in part. ``inputs`` and ``outputs`` have ONNX types; ``symbols`` are those of the inputs' shapes."""

    name: str
    inputs: tuple[tuple[str, onnx.TypeProto], ...]
    outputs: tuple[tuple[str, onnx.TypeProto], ...]
    block: Block
    segments: tuple[Graph, ...]
    symbols: Mapping[str, Range]

    def host_calls(self) -> list[str]:
        """What Python runs, by operator and node: host ops, and control flow around them."""
        return [str(step) if isinstance(step, HostCall) else f"{_CONTROL[type(step)]} ({step.node})" for step in _calls(self.block)]


_CONTROL = {Branch: "If", Repeat: "Loop", ForEach: "SequenceMap"}


def _calls(block: Block) -> Iterator[Any]:
    for step in block.steps:
        if not isinstance(step, NativeCall | Constant):
            yield step
        for inner in blocks_of(step):
            yield from _calls(inner)


def blocks_of(step: Step) -> tuple[Block, ...]:
    """The blocks inside a step."""
    if isinstance(step, Branch):
        return step.then, step.otherwise
    return (step.body,) if isinstance(step, Repeat | ForEach) else ()


# The written form -------------------------------------------------------------------------------------


def encode(program: HostProgram) -> bytes:
    """The steps as JSON in UTF-8: the same program gives the same bytes."""
    content = {
        "format": FORMAT,
        "name": program.name,
        "inputs": [{"name": name, "type": _type(type_)} for name, type_ in program.inputs],
        "outputs": [{"name": name, "type": _type(type_)} for name, type_ in program.outputs],
        "symbols": {name: [range_.lo, range_.hi] for name, range_ in sorted(program.symbols.items())},
        "segments": len(program.segments),
        "block": _block(program.block),
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _type(type_: onnx.TypeProto) -> dict[str, Any]:
    kind = type_.WhichOneof("value")
    if kind == "tensor_type":
        tensor = type_.tensor_type
        shape = [_extent(dim) for dim in tensor.shape.dim] if tensor.HasField("shape") else None
        return {"kind": "tensor", "dtype": tensor.elem_type, "shape": shape}
    if kind == "map_type":
        return {"kind": "map", "key": type_.map_type.key_type, "of": _type(type_.map_type.value_type)}
    if kind in ("sequence_type", "optional_type"):
        return {"kind": kind.removesuffix("_type"), "of": _type(getattr(type_, kind).elem_type)}
    return {"kind": "tensor", "dtype": 0, "shape": None}


def _extent(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


def _block(block: Block) -> dict[str, Any]:
    return {"inputs": list(block.inputs), "steps": [_step(step) for step in block.steps], "outputs": list(block.outputs)}


def _step(step: Step) -> dict[str, Any]:
    match step:
        case HostCall():
            attributes = {name: encode_value(value) for name, value in sorted(step.attributes.items())}
            head = {"step": "host", "op": step.op, "domain": step.domain, "opset": step.opset, "node": step.node}
            return {**head, "inputs": list(step.inputs), "outputs": list(step.outputs), "attributes": attributes}
        case NativeCall():
            return {"step": "native", "segment": step.segment, "inputs": list(step.inputs), "outputs": list(step.outputs)}
        case Constant():
            return {"step": "constant", "name": step.name, "value": encode_value(step.value)}
        case Branch():
            blocks = {"then": _block(step.then), "else": _block(step.otherwise)}
            return {"step": "if", "node": step.node, "condition": step.condition, **blocks, "outputs": list(step.outputs)}
        case Repeat():
            head = {"step": "loop", "node": step.node, "trip": step.trip, "condition": step.condition, "carried": list(step.carried)}
            return {**head, "body": _block(step.body), "outputs": list(step.outputs)}
        case ForEach():
            return {
                "step": "map", "node": step.node, "inputs": list(step.inputs), "body": _block(step.body), "outputs": list(step.outputs)
            }  # fmt: skip


def encode_value(value: Any) -> Any:
    """An attribute or constant: numbers, text and lists as they are, arrays with their element type and shape."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        return {"shape": list(value.shape), "strings": [str(item) for item in value.flat]}
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"shape": list(value.shape), "dtype": from_numpy(value.dtype).onnx, "data": data}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return [encode_value(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
