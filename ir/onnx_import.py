"""ONNX -> Graph IR.

``import_model`` reads a model of opset 6 to the newest that the installed ``onnx`` knows. Operators are
decomposed into core ops by handlers (``onnx_*.py``, registered with ``onnx_op``); functions of the model, and
operators that ONNX itself defines by a function, are inlined. Shapes are computed here, from the inputs: what the
file says of intermediate shapes is not trusted. All problems of a model are collected and reported at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from tcompile.errors import Error, InvalidModelError, UnsupportedError
from tcompile.ir.graph import Graph, Value
from tcompile.ir.onnx_context import HostConstant, Item, OpContext, OptionalValue, Region, SequenceValue, StackedSequence
from tcompile.ir.onnx_inputs import Shapes
from tcompile.ir.onnx_model import ModelFiles, ModelLike, load_model
from tcompile.ir.onnx_part import import_part, whole
from tcompile.ir.onnx_registry import load_families, onnx_op
from tcompile.ir.onnx_schema import opset_table
from tcompile.ir.onnx_scope import FAILED, ModelState, Problem, Scope

__all__ = [
    "HostConstant", "Item", "OpContext", "OptionalValue", "Problem", "Region", "SequenceValue", "check_model", "import_model", "onnx_op",
]  # fmt: skip


def import_model(model: ModelLike, shapes: Shapes | None = None) -> Graph:
    """The Graph of an ONNX model: a path, the bytes of a file, or a ModelProto.

    ``shapes`` fixes or bounds dimensions of inputs: an int, ``"1..64"`` (a range), ``"batch"`` (a symbol) or
    ``"batch=1..64"`` per axis (see ``onnx_inputs`` for sequences and optionals). Raises UnsupportedError or
    InvalidModelError naming every node that cannot be imported, InputError for shapes that do not fit the model.
    """
    graph, state = _import(model, shapes)
    raise_problems(state)
    assert graph is not None
    return graph


def check_model(model: ModelLike, shapes: Shapes | None = None) -> list[Problem]:
    """All problems of a model; an empty list where it can be imported. Raises as ``import_model`` for what is no model."""
    return _import(model, shapes)[1].problems


def raise_problems(state: ModelState) -> None:
    """Raises UnsupportedError or InvalidModelError where an import found problems."""
    if state.problems:
        kind = InvalidModelError if any(problem.invalid for problem in state.problems) else UnsupportedError
        raise kind(_report(state.problems)) from state.causes[0]


def _report(problems: Sequence[Problem]) -> str:
    count = f"{len(problems)} node{'s' * (len(problems) != 1)}"
    return "\n".join((f"the model cannot be compiled because of {count}:", *(f"  - {problem}" for problem in problems)))


def _import(model: ModelLike, shapes: Shapes | None) -> tuple[Graph | None, ModelState]:
    proto, files = load_model(model)
    opsets = checked_opsets(proto)
    state = model_state(proto, files)
    imported = import_part(whole(proto.graph), state, opsets, shapes)
    outputs = _outputs(imported.scope, proto.graph)
    return (None if state.problems else imported.graph(outputs)), state


def model_state(proto: onnx.ModelProto, files: ModelFiles) -> ModelState:
    """What the scopes of an import share, at its start."""
    load_families()
    functions = {(_plain(function.domain), function.name, function.overload): function for function in proto.functions}
    return ModelState(files, functions)


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def checked_opsets(proto: onnx.ModelProto) -> dict[str, int]:
    """The model's opsets by domain. Raises UnsupportedError for one that is newer than the installed ``onnx`` knows."""
    opsets = opset_table(proto.opset_import)
    newest = {"": onnx.defs.onnx_opset_version(), "ai.onnx.ml": onnx.defs.onnx_ml_opset_version()}
    for domain, version in opsets.items():
        if version > newest.get(domain, version):
            raise UnsupportedError(
                f"opset {version} of {domain or 'ai.onnx'} is newer than {newest[domain]}, the newest known",
                hint="install a newer onnx package",
            )
    return opsets


# Outputs ----------------------------------------------------------------------------------------------


def _outputs(scope: Scope, graph: onnx.GraphProto) -> list[tuple[str, Value]]:
    """Public names and values; a sequence becomes one output per element, ``name[0]``, ``name[1]``..."""
    found: list[tuple[str, Value]] = []
    for info in graph.output:
        try:
            item = scope.lookup(info.name)
            if item is not FAILED:
                found += _flattened(info.name, item)
        except Error as error:
            scope.note(onnx.NodeProto(op_type="output"), info.name, (), error)
    return found


def _flattened(name: str, item: Item | None) -> list[tuple[str, Value]]:
    if isinstance(item, OptionalValue):
        item = item.element
    if isinstance(item, SequenceValue):
        return [pair for k, element in enumerate(item.elements) for pair in _flattened(f"{name}[{k}]", element)]
    if isinstance(item, StackedSequence):
        raise UnsupportedError("a sequence whose length only the run knows cannot be an output", hint="output a tensor instead")
    if not isinstance(item, Value):
        raise UnsupportedError("a string tensor or an absent optional cannot be an output")
    return [(name, item)]
