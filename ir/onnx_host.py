"""ONNX -> a Graph where compiled code can do it all, or a HostProgram where Python must do a part of it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TypeProto

from tcompile.errors import Error, UnsupportedError
from tcompile.ir.graph import Graph, Value
from tcompile.ir.host import HostProgram
from tcompile.ir.onnx_builder import ImportBuilder
from tcompile.ir.onnx_host_block import cut
from tcompile.ir.onnx_host_names import HostImport, outermost
from tcompile.ir.onnx_host_ops import able, always
from tcompile.ir.onnx_host_types import tensor, without_names
from tcompile.ir.onnx_import import checked_opsets, import_model, model_state, raise_problems
from tcompile.ir.onnx_inputs import InputDims, Shapes, declared_inputs, require_names
from tcompile.ir.onnx_model import ModelFiles, ModelLike, load_model
from tcompile.ir.onnx_part import import_part, whole
from tcompile.ir.onnx_scope import FAILED, ModelState, Problem


def import_program(model: ModelLike, shapes: Shapes | None = None) -> Graph | HostProgram:
    """The Graph of a model; a HostProgram where it has strings, maps, images, sequences or optionals that no Graph holds.

    ``shapes`` and the errors are those of ``import_model``. A sequence or optional input whose structure ``shapes`` gives
    is resolved when compiling, and the model must be one Graph then.
    """
    proto, files = load_model(model)
    if _gives_structure(proto, shapes or {}):
        return import_model(model, shapes)
    program, state = _import(proto, files, shapes or {})
    raise_problems(state)
    assert program is not None
    return program


def check_program(model: ModelLike, shapes: Shapes | None = None) -> tuple[list[Problem], list[str]]:
    """All problems of a model, and what Python would run of it; both are empty for a model that is all native."""
    proto, files = load_model(model)
    if _gives_structure(proto, shapes or {}):
        from tcompile.ir.onnx_import import check_model

        return check_model(model, shapes), []
    program, state = _import(proto, files, shapes or {})
    return state.problems, program.host_calls() if isinstance(program, HostProgram) else []


def _gives_structure(proto: onnx.ModelProto, shapes: Shapes) -> bool:
    """Whether the caller says how long a sequence is, or that an optional is not there."""
    return any(info.name in shapes and not info.type.HasField("tensor_type") for info in proto.graph.input)


def _import(proto: onnx.ModelProto, files: ModelFiles, shapes: Shapes) -> tuple[Graph | HostProgram | None, ModelState]:
    opsets = checked_opsets(proto)
    if not _surely_host(proto):
        state = model_state(proto, files)
        imported = import_part(whole(proto.graph), state, opsets, shapes)
        items = {info.name: imported.scope.env.get(info.name) for info in proto.graph.output}
        if not state.problems and all(isinstance(item, Value) for item in items.values()):
            return imported.graph(list(items.items())), state
        failed = [imported.part.nodes[k][1] for k in imported.failed_first()]
        hopeless = [node for node in failed if not able(node, imported.scope.domain_of(node), on_host_values=False)]
        invalid = any(problem.invalid for problem in state.problems)
        undefined = any(item is None for item in items.values())
        if invalid or undefined or (hopeless and len(hopeless) == len(failed) and not proto.functions) or FAILED in _inputs(imported):
            return _with_undefined(imported, proto, state), state
    return _cut(proto, files, opsets, shapes)


def _inputs(imported) -> list[object]:
    return [imported.scope.env.get(info.name) for info in declared_inputs(imported.part)]


def _with_undefined(imported, proto: onnx.ModelProto, state: ModelState) -> None:
    """Notes outputs that nothing defines."""
    for info in proto.graph.output:
        try:
            imported.scope.lookup(info.name)
        except Error as error:
            imported.scope.note(onnx.NodeProto(op_type="output"), info.name, (), error)


def _surely_host(proto: onnx.ModelProto) -> bool:
    """Whether an input is no tensor of numbers, or an operator is one that always runs on the host."""
    strings = (info.type.tensor_type.elem_type == onnx.TensorProto.STRING for info in declared_inputs(proto.graph))
    other = (not info.type.HasField("tensor_type") for info in declared_inputs(proto.graph))
    return any(strings) or any(other) or any(_has_host_op(graph) for graph in (proto.graph, *proto.functions))


def _has_host_op(graph: onnx.GraphProto | onnx.FunctionProto) -> bool:
    for node in graph.node:
        if always(node, "" if node.domain == "ai.onnx" else node.domain):
            return True
        if any(_has_host_op(inner) for attribute in node.attribute for inner in (attribute.g, *attribute.graphs)):
            return True
    return False


def _cut(proto: onnx.ModelProto, files: ModelFiles, opsets: dict[str, int], shapes: Shapes) -> tuple[HostProgram | None, ModelState]:
    if proto.functions:
        from onnx.inliner import inline_local_functions

        proto = inline_local_functions(proto)
    graph, state = proto.graph, ModelState(files, {})
    shared = HostImport(graph.name or "graph", opsets, files)
    inputs = _input_types(shared, graph, shapes, state)
    if not state.problems:
        block, types = cut(shared, graph, outermost(), dict(inputs))
        state.problems += shared.problems
    if state.problems:
        state.causes += [UnsupportedError(str(problem)) for problem in state.problems]
        return None, state
    outputs = [(info.name, type_) for info, type_ in zip(graph.output, types, strict=True)]
    return HostProgram(shared.name, tuple(inputs), tuple(outputs), block, tuple(shared.segments), shared.ranges), state


def _input_types(shared: HostImport, graph: onnx.GraphProto, shapes: Shapes, state: ModelState) -> Sequence[tuple[str, TypeProto]]:
    """The types of the inputs, with the extents that the caller gives; notes the ranges of named extents."""
    builder = ImportBuilder(shared.name)
    scope = shared.scope()
    table = InputDims(builder)
    infos = declared_inputs(graph)
    require_names(shapes, infos)
    for info in infos:
        if shapes.get(info.name) is not None and info.type.HasField("tensor_type"):
            table.override(info.name, info.type.tensor_type, shapes[info.name])
    found = []
    for info in infos:
        try:
            found.append((info.name, _input_type(table, info, shapes)))
        except Error as error:
            scope.note(onnx.NodeProto(op_type="input"), info.name, (), error)
    state.problems += scope.state.problems
    shared.ranges = builder.symbols
    return found


def _input_type(table: InputDims, info: onnx.ValueInfoProto, shapes: Shapes) -> TypeProto:
    if not info.type.HasField("tensor_type"):
        return without_names(info.type)
    tensor_ = info.type.tensor_type
    if not tensor_.HasField("shape") and info.name not in shapes:
        return info.type  # the rank is of no matter to what the host does with it
    extents = table.shape(info.name, tensor_, shapes.get(info.name))
    return tensor(tensor_.elem_type, [extent if isinstance(extent, int) else str(extent) for extent in extents])
