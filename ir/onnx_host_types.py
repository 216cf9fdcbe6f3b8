"""ONNX types of the values between native segments and host ops: what they are, how they join, what a node makes of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from onnx import TypeProto, helper

from tcompile.errors import InvalidModelError, UnsupportedError
from tcompile.ir.dims import DimLike
from tcompile.ir.graph import Value

_EMPTY = "tcompile: no element yet"  # the denotation of the element type of a sequence that holds none

INT64, STRING, BOOL = onnx.TensorProto.INT64, onnx.TensorProto.STRING, onnx.TensorProto.BOOL
_INFERENCE_ERRORS = (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError, TypeError)


def tensor(dtype: int, shape: Sequence[int | str | None] | None) -> TypeProto:
    """The type of a tensor; None is an extent, or a rank, that is not known."""
    return helper.make_tensor_type_proto(dtype, shape)


def sequence(element: TypeProto) -> TypeProto:
    """The type of a sequence: extents of its elements have no names, since they may differ from element to element."""
    return helper.make_sequence_type_proto(without_names(element))


def empty_sequence(dtype: int) -> TypeProto:
    """The type of a sequence without elements: it joins with any other of its element type."""
    result = helper.make_sequence_type_proto(tensor(dtype, None))
    result.sequence_type.elem_type.denotation = _EMPTY
    return result


def is_native(type_: TypeProto) -> bool:
    """Whether compiled code can hold a value of the type."""
    return type_.HasField("tensor_type") and type_.tensor_type.elem_type != STRING


def of_value(value: Value, names: Mapping[str, DimLike]) -> TypeProto:
    """The type of a native value. ``names`` are the extents that dimension names stand for; others are not known."""
    known = {extent: name for name, extent in names.items()}
    return tensor(value.dtype.onnx, [extent if isinstance(extent, int) else known.get(extent) for extent in value.shape])


def of_constant(value: onnx.TensorProto | np.ndarray) -> TypeProto:
    """The type of a constant."""
    if isinstance(value, onnx.TensorProto):
        return tensor(value.data_type, list(value.dims))
    dtype = STRING if value.dtype == object else helper.np_dtype_to_tensor_dtype(value.dtype)
    return tensor(dtype, list(value.shape))


def without_names(type_: TypeProto) -> TypeProto:
    """The type with named extents unknown."""
    result = TypeProto()
    result.CopyFrom(type_)
    inner = _inner(result)
    if inner is not None:
        inner.CopyFrom(without_names(inner))
    for dim in result.tensor_type.shape.dim if result.HasField("tensor_type") else ():
        dim.ClearField("dim_param")
    return result


def _inner(type_: TypeProto) -> TypeProto | None:
    kind = type_.WhichOneof("value")
    return getattr(type_, kind).elem_type if kind in ("sequence_type", "optional_type") else None


def join(a: TypeProto, b: TypeProto) -> TypeProto:
    """The type of a value that is either: an optional where one of them is, extents and ranks unknown where they differ."""
    for one, other in ((a, b), (b, a)):
        if one.WhichOneof("value") is None or (one.denotation == _EMPTY and _same_elements(one, other)):
            return other
    if a.HasField("optional_type") or b.HasField("optional_type"):
        a, b = (_inner(t) if t.HasField("optional_type") else t for t in (a, b))
        return helper.make_optional_type_proto(join(a, b))
    if a.WhichOneof("value") != b.WhichOneof("value"):
        raise UnsupportedError(f"a value is a {describe(a)} or a {describe(b)}")
    if a.HasField("sequence_type"):
        return helper.make_sequence_type_proto(join(_inner(a), _inner(b)))
    if not a.HasField("tensor_type"):
        return a
    if a.tensor_type.elem_type != b.tensor_type.elem_type:
        raise UnsupportedError(f"a value is {describe(a)} or {describe(b)}")
    ours, theirs = shape_of(a), shape_of(b)
    if ours is None or theirs is None or len(ours) != len(theirs):
        return tensor(a.tensor_type.elem_type, None)
    return tensor(a.tensor_type.elem_type, [x if x == y else None for x, y in zip(ours, theirs, strict=True)])


def _same_elements(a: TypeProto, b: TypeProto) -> bool:
    return a.tensor_type.elem_type == b.tensor_type.elem_type


def shape_of(type_: TypeProto) -> list[int | str | None] | None:
    """The extents of a tensor type; None where its rank is not known."""
    if not type_.tensor_type.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in type_.tensor_type.shape.dim]


def element_of(type_: TypeProto) -> TypeProto:
    """The type of a sequence's elements, through an optional. Raises InvalidModelError for what is no sequence."""
    if type_.HasField("optional_type"):
        type_ = _inner(type_)
    if not type_.HasField("sequence_type"):
        raise InvalidModelError(f"a sequence is expected, it is a {describe(type_)}")
    return _inner(type_)


def stacked(element: TypeProto) -> TypeProto:
    """The type of elements along a new axis 0."""
    shape = shape_of(element)
    return tensor(element.tensor_type.elem_type, None if shape is None else [None, *shape])


def describe(type_: TypeProto) -> str:
    """A type as messages write it: seq(f32[3, n])."""
    kind = type_.WhichOneof("value")
    if kind == "tensor_type":
        shape = shape_of(type_)
        name = onnx.TensorProto.DataType.Name(type_.tensor_type.elem_type).lower()
        return f"{name}[{'...' if shape is None else ', '.join('?' if extent is None else str(extent) for extent in shape)}]"
    inner = _inner(type_)
    return f"{(kind or 'unknown').removesuffix('_type')}{'' if inner is None else f'({describe(inner)})'}"


# What a node makes of types -----------------------------------------------------------------------------------


def infer(
    node: onnx.NodeProto,
    schema: onnx.defs.OpSchema | None,
    types: Mapping[str, TypeProto],
    constants: Mapping[str, onnx.TensorProto],
    opsets: Mapping[str, int],
) -> dict[str, TypeProto]:
    """The types of a host op's outputs by ONNX's own inference, and by the rules here where it gives no shape.

    Raises InvalidModelError where inference refuses the node.
    """
    found: dict[str, TypeProto] = {}
    if schema is not None:
        imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        try:
            found = dict(onnx.shape_inference.infer_node_outputs(schema, node, dict(types), dict(constants), opset_imports=imports))
        except _INFERENCE_ERRORS as error:
            raise InvalidModelError(str(error).strip()) from error
    if schema is None:
        return {}
    if node.op_type == "SequenceEmpty":
        return {node.output[0]: empty_sequence(found[node.output[0]].sequence_type.elem_type.tensor_type.elem_type)}
    if node.op_type == "SequenceInsert":
        return {node.output[0]: sequence(join(element_of(types[node.input[0]]), types[node.input[1]]))}
    return {**found, **_completed(node, types, found)}


def _completed(node: onnx.NodeProto, types: Mapping[str, TypeProto], found: Mapping[str, TypeProto]) -> dict[str, TypeProto]:
    """Types that ONNX's inference leaves open, for operators that keep or extend the shape of their first operand."""
    if node.op_type not in _SHAPES or not node.input or node.input[0] not in types:
        return {}
    shape = _SHAPES[node.op_type](shape_of(types[node.input[0]]))
    result = {}
    for name in node.output[:1]:
        given = found.get(name, TypeProto())
        dtype = given.tensor_type.elem_type or _DTYPES.get(node.op_type, 0)
        if dtype and shape_of(given) is None:
            result[name] = tensor(dtype, shape)
    return result


_SHAPES: Mapping[str, Any] = {
    "LabelEncoder": lambda shape: shape,
    "CategoryMapper": lambda shape: shape,
    "DictVectorizer": lambda shape: [1, None],
    "CastMap": lambda shape: [1, None],
    "Tokenizer": lambda shape: None if shape is None else [*shape, None],
}
_DTYPES = {"Tokenizer": STRING}


def named_extents(type_: TypeProto) -> Collection[str]:
    """The dimension names in a tensor's type."""
    return {extent for extent in shape_of(type_) or () if isinstance(extent, str)}
