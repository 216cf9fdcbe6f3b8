"""Which element types that ONNX's schemas allow an importer refuses: found by changing the types of ONNX's own node cases."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import onnx
from onnx import TensorProto

from tcompile.errors import Error
from tcompile.ir.dtypes import from_onnx
from tcompile.ir.onnx_host import check_program

_ALLOWED = re.compile(r"tensor\((\w+)\)")
_NUMBERS = {name.lower(): number for name, number in TensorProto.DataType.items()} | {"float": TensorProto.FLOAT}
_OTHERS = frozenset({TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128, TensorProto.UNDEFINED})
_NO_TYPE_OF_THE_CASE = ("InferenceError", "BitCast")  # ONNX refuses the case with the type too: widths or attributes do not fit


def refused_types(models: Iterable[onnx.ModelProto]) -> dict[tuple[str, str], dict[str, str]]:
    """By operator, the types of some operand that every case's model is refused with, and why."""
    refused: dict[tuple[str, str], dict[str, str]] = {}
    accepted: dict[tuple[str, str], set[str]] = {}
    for model in models:
        (node,) = model.graph.node
        if any(attribute.HasField("g") for attribute in node.attribute):
            continue  # its body has types of its own
        key = (node.domain, node.op_type)
        for name, variant in variants(model):
            if name in accepted.setdefault(key, set()):
                continue
            reason = _refusal(variant)
            if any(sign in reason for sign in _NO_TYPE_OF_THE_CASE):
                continue
            if reason:
                refused.setdefault(key, {}).setdefault(name, reason)
            else:
                accepted[key].add(name)
    return {key: {name: why for name, why in sorted(found.items()) if name not in accepted[key]} for key, found in refused.items()}


def variants(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The model with each type variable of its only node in each type that the schema allows: (``T=f16``, model)."""
    (node,) = model.graph.node
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = next(entry.version for entry in model.opset_import if entry.domain in (domain, node.domain))
    schema = onnx.defs.get_schema(node.op_type, version, domain)
    for constraint in schema.type_constraints:
        operands = set(_operands(node, schema, constraint.type_param_str))
        if not operands:
            continue
        for allowed in constraint.allowed_type_strs:
            number = _number(allowed)
            if number is not None and number not in _OTHERS:
                variant = _retyped(model, operands, number)
                if variant is not None:
                    yield f"{constraint.type_param_str}={_name(number)}", variant


def _number(allowed: str) -> int | None:
    found = _ALLOWED.fullmatch(allowed)
    return None if found is None else _NUMBERS.get(found[1])


def _name(number: int) -> str:
    """The type's name here, or ONNX's where it is none of ours."""
    try:
        return str(from_onnx(number))
    except Error:
        return TensorProto.DataType.Name(number).lower()


def _operands(node: onnx.NodeProto, schema: onnx.defs.OpSchema, variable: str) -> Iterator[str]:
    """The names of the operands whose type a variable stands for."""
    for k, name in enumerate(node.input):
        formal = schema.inputs[min(k, len(schema.inputs) - 1)]
        if name and formal.type_str == variable:
            yield name


def _retyped(model: onnx.ModelProto, operands: set[str], number: int) -> onnx.ModelProto | None:
    """The model with other types of its inputs; None where an operand is no tensor."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for info in made.graph.input:
        if info.name in operands:
            if not info.type.HasField("tensor_type"):
                return None
            info.type.tensor_type.elem_type = number
    for info in made.graph.output:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.ClearField("elem_type")
    return made


def _refusal(model: onnx.ModelProto) -> str:
    """Why a model is refused; empty where it is not."""
    try:
        problems, _ = check_program(model)
    except Error as error:
        return _line(str(error))
    return _line(str(problems[0])) if problems else ""


def _line(text: str) -> str:
    return " ".join(text.split("\n  hint:")[0].split())


def section(models: Iterable[onnx.ModelProto]) -> str:
    """The part of the page that lists them."""
    lines = ["## Element types that are refused", "", *_explained(), ""]
    refused: Mapping[tuple[str, str], dict[str, str]] = refused_types(models)
    for (domain, op), found in sorted(refused.items()):
        if found:
            lines.append(f"- {f'{domain}.' if domain else ''}{op}: {', '.join(found)}")
    return "\n".join(lines)


def _explained() -> list[str]:
    return [
        "What ONNX's schemas allow and the importer refuses, by type variable; every other type that a schema names is accepted, but for",
        "strings (*host* operators) and complex numbers. Found by changing the types of ONNX's own cases.",
    ]
