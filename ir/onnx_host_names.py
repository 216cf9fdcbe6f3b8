"""What is known of names while a model with host ops is cut: their types, and the constants among them."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TypeProto, numpy_helper

from tcompile.ir.dims import Range
from tcompile.ir.graph import Graph
from tcompile.ir.host import Constant
from tcompile.ir.onnx_builder import ImportBuilder
from tcompile.ir.onnx_host_types import of_constant
from tcompile.ir.onnx_model import ModelFiles, read_tensor
from tcompile.ir.onnx_scope import ModelState, Problem, Scope

Known = onnx.TensorProto | np.ndarray
Place = tuple[Any, ...]  # where a node stands: its position in its graph, after the place of the node around that


@dataclass(eq=False)
class HostImport:
    """What all blocks of one import share."""

    name: str
    opsets: Mapping[str, int]
    files: ModelFiles
    ranges: Mapping[str, Range] = field(default_factory=dict)
    segments: list[Graph] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    forced: set[Place] = field(default_factory=set)  # nodes that the importer could not resolve
    failed: set[str] = field(default_factory=set)  # values that a node with a problem was to give

    def scope(self) -> Scope:
        """A scope to ask for schemas and attributes."""
        return Scope(ModelState(self.files, {}), ImportBuilder(self.name), self.opsets)


@dataclass(eq=False)
class Names:
    """What is known of the names in sight: types of run-time values, constants, and which of them a step has made."""

    types: MutableMapping[str, TypeProto]
    constants: MutableMapping[str, Known]
    made: MutableMapping[str, bool]

    def inside(self) -> Names:
        """The names as a block inside sees them."""
        return Names(*(ChainMap({}, *table.maps) for table in (self.types, self.constants, self.made)))

    def type_of(self, name: str) -> TypeProto | None:
        """The type of a run-time value or constant; None for a name that is not there, or failed."""
        if name in self.types:
            return self.types[name]
        return of_constant(self.constants[name]) if name in self.constants else None

    def missing_constant(self, name: str, files: ModelFiles) -> list[Constant]:
        """The step that makes a constant a run-time value, where a name is one and no step has done so yet."""
        if name not in self.constants or name in self.made:
            return []
        self.made[name] = True
        return [Constant(name, as_array(self.constants[name], files))]


def outermost() -> Names:
    """No names yet."""
    return Names(ChainMap({}), ChainMap({}), ChainMap({}))


def constant_of(node: onnx.NodeProto) -> Known | None:
    """The tensor of a Constant node; None where only the importer reads it (sparse tensors, references)."""
    (attribute,) = node.attribute if len(node.attribute) == 1 else (onnx.AttributeProto(),)
    if attribute.ref_attr_name:
        return None
    match attribute.name:
        case "value":
            return attribute.t
        case "value_float" | "value_floats":
            return np.array(attribute.f if attribute.name == "value_float" else list(attribute.floats), np.float32)
        case "value_int" | "value_ints":
            return np.array(attribute.i if attribute.name == "value_int" else list(attribute.ints), np.int64)
        case "value_string" | "value_strings":
            texts = attribute.s.decode("utf-8", "replace") if attribute.name == "value_string" else [s.decode() for s in attribute.strings]
            return np.array(texts, object)
    return None


def as_proto(name: str, value: Known) -> onnx.TensorProto:
    """A constant as an initializer of that name."""
    if isinstance(value, onnx.TensorProto) and value.name == name:
        return value
    if isinstance(value, onnx.TensorProto):
        named = onnx.TensorProto()
        named.CopyFrom(value)
        named.name = name
        return named
    return numpy_helper.from_array(value, name)


def as_array(value: Known, files: ModelFiles) -> np.ndarray:
    """A constant as an array; strings as objects."""
    if isinstance(value, np.ndarray):
        return value
    return np.asarray(read_tensor(value, files))
