"""Handing what a native segment gives to the host: tensors as outputs, and steps that put sequences and strings together.

The importer resolves sequences and optionals while it reads a model, and knows strings as positions in tables. Where such an
item leaves a segment, its tensors become outputs of the segment, and host calls make of them what ONNX says it is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
from onnx import TypeProto

from tcompile.errors import UnsupportedError
from tcompile.ir.graph import Value
from tcompile.ir.host import Constant, HostCall
from tcompile.ir.onnx_context import CodedStrings, HostConstant, OptionalValue, SequenceValue, StackedSequence
from tcompile.ir.onnx_host_names import Names
from tcompile.ir.onnx_host_types import STRING, empty_sequence, join, of_value, sequence
from tcompile.ir.onnx_part import ImportedPart

OURS = "tcompile"  # the domain of host ops that no ONNX operator is: Lookup, Unstack


@dataclass(eq=False)
class Delivery:
    """``tensors`` are the outputs of a segment by name; ``after`` are the steps that follow it."""

    imported: ImportedPart
    names: Names
    tensors: dict[str, Value] = field(default_factory=dict)
    after: list[HostCall | Constant] = field(default_factory=list)

    def take(self, name: str, item: Any) -> None:
        """Makes an item of the importer a value of the host. Raises UnsupportedError for one that only a loop body has."""
        match item:
            case Value():
                self._tensor(name, item)
            case SequenceValue():
                self._sequence(name, item)
            case StackedSequence():
                element = replace(item.stack, type=replace(item.stack.type, shape=item.stack.shape[1:]))
                self.tensors[f"{name}[]"] = item.stack
                self._call("Unstack", [f"{name}[]"], name, OURS)
                self.names.types[name] = sequence(of_value(element, self.imported.dims))
            case CodedStrings():
                self._strings(name, item)
            case HostConstant():
                self.names.constants[name] = item.array
            case OptionalValue():
                self._optional(name, item)
            case _:
                raise UnsupportedError(f"the value {name} is of a kind that no other segment can take")

    def _call(self, op: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> None:
        self.after.append(HostCall(op, tuple(inputs), (output,), output, domain, 1, attributes))

    def _tensor(self, name: str, value: Value) -> None:
        constant = self.imported.scope.builder.constant_of(value)
        if constant is not None:
            self.names.constants[name] = constant
        else:
            self.tensors[name], self.names.types[name] = value, of_value(value, self.imported.dims)

    def _sequence(self, name: str, item: SequenceValue) -> None:
        parts = [f"{name}[{k}]" for k in range(len(item.elements))]
        for part, element in zip(parts, item.elements, strict=True):
            self.take(part, element)
            self.after += self.names.missing_constant(part, self.imported.state.files)
        self._call("SequenceConstruct", parts, name)
        number = onnx.TensorProto.FLOAT if item.dtype is None else item.dtype.onnx
        types = [self.names.type_of(part) for part in parts]
        self.names.types[name] = sequence(functools.reduce(join, types)) if types else empty_sequence(number)

    def _strings(self, name: str, item: CodedStrings) -> None:
        self.tensors[f"{name}.codes"] = item.codes
        self._call("Lookup", [f"{name}.codes"], name, OURS, table=list(item.table))
        self.names.types[name] = of_value(item.codes, self.imported.dims)
        self.names.types[name].tensor_type.elem_type = STRING

    def _optional(self, name: str, item: OptionalValue) -> None:
        """At run time an optional is its element, or None."""
        optional = TypeProto()
        if item.element is not None:
            self.take(name, item.element)
            optional.optional_type.elem_type.CopyFrom(self.names.type_of(name))
        else:
            self._call("Optional", [], name)
            optional.optional_type.elem_type.CopyFrom(TypeProto())  # nothing tells it
        self.names.types[name] = optional
