"""What ONNX's schemas and protos say by themselves: checks of nodes, functions that define operators, free names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import onnx
import onnx.checker
import onnx.shape_inference
from onnx import AttributeProto, helper

from tcompile.errors import InvalidModelError
from tcompile.ir.graph import Value


def free_names(graph: onnx.GraphProto) -> list[str]:
    """Names that a graph uses and does not define, in order of use, those of its own subgraphs included."""
    defined = {info.name for info in graph.input} | {tensor.name for tensor in graph.initializer}
    defined |= {sparse.values.name for sparse in graph.sparse_initializer}
    found: dict[str, None] = {}
    for node in graph.node:
        found.update(dict.fromkeys(name for name in uses_of(node) if name not in defined))
        defined.update(node.output)
    found.update(dict.fromkeys(info.name for info in graph.output if info.name not in defined))
    return list(found)


def uses_of(node: onnx.NodeProto) -> list[str]:
    """The names that a node reads, those that its subgraphs take from around it included."""
    used = [name for name in node.input if name]
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs) if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) else ():
            used += free_names(inner)
    return used


def opset_table(imports: Sequence[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """Opset versions by domain. Raises InvalidModelError for a number that is no version."""
    for entry in imports:
        if not 0 <= entry.version < 2**31:
            raise InvalidModelError(f"opset {entry.version} of {entry.domain or 'ai.onnx'} is no version")
    return {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in imports}


@cache
def find_schema(op: str, opset: int, domain: str) -> onnx.defs.OpSchema | None:
    """The schema of an operator in an opset; None for one that ``onnx`` does not know."""
    try:
        return onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None


def check_node(node: onnx.NodeProto, schema: onnx.defs.OpSchema | None, attributes: Mapping[str, AttributeProto]) -> None:
    """Checks the number of operands and the attributes against the operator's schema. Raises InvalidModelError."""
    if schema is None:
        return
    if schema.deprecated:
        raise InvalidModelError(f"{node.op_type} is deprecated since opset {schema.since_version}")
    for what, count, low, high in (
        ("inputs", len(node.input), schema.min_input, schema.max_input),
        ("outputs", len(node.output), schema.min_output, schema.max_output),
    ):
        if not low <= count <= high:
            raise InvalidModelError(f"it has {count} {what}, and {node.op_type} takes {low if low == high else f'{low} to {high}'}")
    for k, formal in enumerate(schema.inputs):
        required = formal.option == onnx.defs.OpSchema.FormalParameterOption.Single
        if required and (k >= len(node.input) or not node.input[k]):
            raise InvalidModelError(f"its required input {formal.name} is missing")
    for name, declared in schema.attributes.items():
        if declared.required and name not in attributes:
            raise InvalidModelError(f"its required attribute {name} is missing")
        if name in attributes and int(attributes[name].type) != int(declared.type.value):
            got = AttributeProto.AttributeType.Name(attributes[name].type)
            raise InvalidModelError(f"its attribute {name} is a {got}, not a {declared.type.name}")


def default_attributes(schema: onnx.defs.OpSchema) -> dict[str, AttributeProto]:
    """The attributes that a node has without naming them."""
    return {name: entry.default_value for name, entry in schema.attributes.items() if entry.default_value.name}


def resolved(node: onnx.NodeProto, attributes: Mapping[str, AttributeProto]) -> onnx.NodeProto:
    """The node with plain attributes in place of references to those of a calling function."""
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    del plain.attribute[:]
    for name, attribute in attributes.items():
        plain.attribute.add().CopyFrom(attribute)
        plain.attribute[-1].name = name
    return plain


def specified_error(node: onnx.NodeProto, schema: onnx.defs.OpSchema | None, inputs: Sequence[Any]) -> InvalidModelError | None:
    """What ONNX's own inference says against a node."""
    if schema is None or any(item is not None and not isinstance(item, Value) for item in inputs):
        return None
    types = {name: _type_proto(item) for name, item in zip(node.input, inputs, strict=False) if name}
    try:
        onnx.shape_inference.infer_node_outputs(schema, node, types)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError, TypeError) as error:
        return InvalidModelError(str(error).strip())
    return None


def function_body(node: onnx.NodeProto, schema: onnx.defs.OpSchema | None, opset: int, inputs: Sequence[Any]) -> onnx.FunctionProto | None:
    """The function by which ONNX defines an operator, for this node's operands; None where it has none, or none for them."""
    if schema is None:
        return None
    if schema.has_function:
        versions = [version for version in schema.function_opset_versions if version <= opset]
        return _parsed_function(schema.get_function_with_opset_version(max(versions))) if versions else None
    versions = [version for version in schema.context_dependent_function_opset_versions if version <= opset]
    if not versions:
        return None
    types = [_type_proto(item).SerializeToString() for item in inputs]
    found = _parsed_function(schema.get_context_dependent_function_with_opset_version(max(versions), node.SerializeToString(), types))
    return found if found.output else None


def _parsed_function(data: bytes) -> onnx.FunctionProto:
    function = onnx.FunctionProto()
    function.ParseFromString(data)
    return function


def _type_proto(item: Any) -> onnx.TypeProto:
    if not isinstance(item, Value):
        return onnx.TypeProto()
    return helper.make_tensor_type_proto(item.dtype.onnx, [extent if isinstance(extent, int) else str(extent) for extent in item.shape])
