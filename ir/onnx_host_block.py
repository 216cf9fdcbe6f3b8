"""Cutting a graph into native segments and host steps.

Nodes are walked in order. Those that compiled code can run are put off; a node that the host must run makes first a
segment of all that it needs of them, and whatever is left at the end is the last segment. So a model has few segments, and
each holds as much as can be fused.

A node runs on the host where its operator always does, where a string, sequence or optional goes into it, and where the
importer cannot resolve it: then the graph is cut anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import onnx
from onnx import TypeProto

from tcompile.errors import Error, InvalidModelError, UnsupportedError
from tcompile.ir.dims import Range
from tcompile.ir.host import Block, HostCall, NativeCall, Step
from tcompile.ir.onnx_host_deliver import Delivery
from tcompile.ir.onnx_host_names import HostImport, Names, Place, as_proto, constant_of
from tcompile.ir.onnx_host_ops import able, always
from tcompile.ir.onnx_host_types import describe, infer, is_native, named_extents, shape_of, tensor
from tcompile.ir.onnx_part import GraphPart, ImportedPart, import_part, labelled
from tcompile.ir.onnx_schema import default_attributes, uses_of
from tcompile.ir.onnx_scope import ModelState

_SMALL = 1024  # elements of a constant that type inference may read


class _MovedToHost(Exception):
    """Nodes that the importer could not resolve go to the host."""


def cut(shared: HostImport, graph: onnx.GraphProto, names: Names, inputs: Mapping[str, TypeProto], place: Place = ()) -> tuple[Block, list]:
    """The steps of a graph, and the types of its outputs (None for one that failed: then there are problems)."""
    while True:
        segments, problems, failed = len(shared.segments), len(shared.problems), set(shared.failed)
        block = _Cut(shared, graph, names.inside(), place)
        try:
            return block.run(inputs)
        except _MovedToHost:
            del shared.segments[segments:], shared.problems[problems:]
            shared.failed = failed


class _Cut:
    """One graph on its way to a block."""

    def __init__(self, shared: HostImport, graph: onnx.GraphProto, names: Names, place: Place) -> None:
        self.shared, self.graph, self.names, self.place = shared, graph, names, place
        self.scope = shared.scope()
        self.nodes = [] if not graph.node else labelled(graph.node)
        self.readers: dict[str, set[int]] = {}
        for index, (_, node) in enumerate(self.nodes):
            for name in uses_of(node):
                self.readers.setdefault(name, set()).add(index)
        self.results = [info.name for info in graph.output]
        self.declared = {info.name: info.type for info in (*graph.value_info, *graph.output)}
        self.pending: dict[int, tuple[str, onnx.NodeProto]] = {}
        self.makers: dict[str, int] = {}  # name -> the pending node that gives it
        self.steps: list[Step] = []

    def run(self, inputs: Mapping[str, TypeProto]) -> tuple[Block, list[TypeProto | None]]:
        self.names.types.update(inputs)
        self._take_constants()
        live = self._live()
        for index, (label, node) in enumerate(self.nodes):
            if index not in live:
                continue
            if self._is_constant(node):
                self.names.constants[node.output[0]] = constant_of(node)
            elif self._belongs_to_host(index, node):
                self._run_on_host(index, label, node)
            else:
                self.pending[index] = (label, node)
                self.makers.update(dict.fromkeys((name for name in node.output if name), index))
        self.need(self.results)
        self._require_results()
        block = Block(tuple(inputs), tuple(self.steps), tuple(self.results))
        return block, [self.names.type_of(name) for name in self.results]

    def _require_results(self) -> None:
        for name in self.results:
            try:
                self._are_there([name])
            except InvalidModelError as error:
                self._note(onnx.NodeProto(op_type="output"), name, error)

    # Reading the graph --------------------------------------------------------------------------------

    def _take_constants(self) -> None:
        for tensor_ in self.graph.initializer:
            self.names.constants.setdefault(tensor_.name, tensor_)
        for sparse in self.graph.sparse_initializer:
            self.scope.define_initializers(onnx.GraphProto(sparse_initializer=[sparse]))
            self.names.constants[sparse.values.name] = self.scope.builder.constant_of(self.scope.env[sparse.values.name])

    def _live(self) -> set[int]:
        """The nodes that an output depends on."""
        makers = {name: index for index, (_, node) in enumerate(self.nodes) for name in node.output if name}
        found: set[int] = set()
        todo = [makers[name] for name in self.results if name in makers]
        while todo:
            index = todo.pop()
            if index not in found:
                found.add(index)
                todo += [makers[name] for name in uses_of(self.nodes[index][1]) if name in makers]
        return found

    def _is_constant(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "Constant" and not self.scope.domain_of(node) and constant_of(node) is not None

    def _belongs_to_host(self, index: int, node: onnx.NodeProto) -> bool:
        if (*self.place, index) in self.shared.forced or always(node, self.scope.domain_of(node)):
            return True
        return self._takes_host_values(node)

    def _takes_host_values(self, node: onnx.NodeProto) -> bool:
        return any(name in self.names.types and not is_native(self.names.types[name]) for name in uses_of(node))

    # Native segments ----------------------------------------------------------------------------------

    def need(self, names: Iterable[str]) -> None:
        """Sees that a step before the next one gives these values."""
        wanted = [name for name in names if name]
        todo, chosen = [self.makers[name] for name in wanted if name in self.makers], set()
        while todo:
            index = todo.pop()
            if index not in chosen:
                chosen.add(index)
                todo += [self.makers[name] for name in uses_of(self.pending[index][1]) if name in self.makers]
        if chosen:
            self._segment(sorted(chosen), set(wanted))
        for name in wanted:
            self.steps += self.names.missing_constant(name, self.shared.files)

    def _segment(self, chosen: Sequence[int], wanted: set[str]) -> None:
        nodes = [self.pending.pop(index) for index in chosen]
        given = [name for _, node in nodes for name in node.output if name]
        for name in given:
            del self.makers[name]
        within = set(chosen)
        outputs = [name for name in given if name in wanted or name in self.results or self.readers.get(name, set()) - within]
        part = self._part(nodes, set(given))
        shapes = {info.name: entries for info in part.input if (entries := self._ranged(info.type)) is not None}
        imported = import_part(part, ModelState(self.shared.files, {}), self.shared.opsets, shapes)
        if imported.state.problems:
            self._reconsider(imported, chosen)
            self.shared.failed.update(given)
            return
        self._deliver(imported, outputs)

    def _part(self, nodes: Sequence[tuple[str, onnx.NodeProto]], given: set[str]) -> GraphPart:
        used = dict.fromkeys(name for _, node in nodes for name in uses_of(node) if name not in given)
        types = self.names.types
        infos = [onnx.ValueInfoProto(name=name, type=types[name]) for name in used if name in types]
        constants = [as_proto(name, self.names.constants[name]) for name in used if name not in types and name in self.names.constants]
        return GraphPart(f"{self.shared.name}.{len(self.shared.segments)}", infos, nodes, constants)

    def _ranged(self, type_: TypeProto) -> list[int | str | None] | None:
        """What is known of the extents of an input that have names: ``n=1..64``."""
        ranges = self.shared.ranges
        if not any(ranges.get(name, Range()) != Range() for name in named_extents(type_)):
            return None
        entries: list[int | str | None] = []
        for dim in type_.tensor_type.shape.dim:
            known = ranges.get(dim.dim_param, Range())
            text = f"{dim.dim_param}={known.lo}..{'' if known.hi is None else known.hi}"
            entries.append(dim.dim_value if dim.HasField("dim_value") else text if dim.dim_param else None)
        return entries

    def _reconsider(self, imported: ImportedPart, chosen: Sequence[int]) -> None:
        """Moves to the host what it can run of the nodes that failed; else these are problems of the model."""
        moved = set()
        for position in imported.failed_first():
            node = imported.part.nodes[position][1]
            place = (*self.place, chosen[position])
            if able(node, self.scope.domain_of(node), on_host_values=False) and place not in self.shared.forced:
                moved.add(place)
        if moved and not any(problem.invalid for problem in imported.state.problems):
            self.shared.forced |= moved
            raise _MovedToHost
        self.shared.problems += [problem for problem in imported.state.problems if problem not in self.shared.problems]

    def _deliver(self, imported: ImportedPart, names: Sequence[str]) -> None:
        """Appends the call of a segment, and what makes its outputs the values of these names."""
        delivery = Delivery(imported, self.names)
        for name in names:
            delivery.take(name, imported.scope.lookup(name))
        if delivery.tensors:
            graph = imported.graph(list(delivery.tensors.items()))
            inputs = tuple(value.name for value in graph.inputs)
            self.steps.append(NativeCall(len(self.shared.segments), inputs, tuple(delivery.tensors)))
            self.shared.segments.append(graph)
        self.steps += delivery.after

    # Host steps ---------------------------------------------------------------------------------------

    def _run_on_host(self, index: int, label: str, node: onnx.NodeProto) -> None:
        from tcompile.ir.onnx_host_control import control_step

        used = uses_of(node)
        self.need(used)
        try:
            if not self._are_there(used):
                self.shared.failed.update(node.output)
                return
            if not able(node, self.scope.domain_of(node), on_host_values=self._takes_host_values(node)):
                raise UnsupportedError(f"the operator is not supported on {self._operands(node)}")
            step, types = control_step(self.shared, node, label, self.names, (*self.place, index)) or self._call(label, node)
        except Error as error:
            self._note(node, label, error)
            return
        if step is None:
            self.shared.failed.update(node.output)
        else:
            self.steps.append(step)
            self.names.types.update(types)

    def _are_there(self, names: Iterable[str]) -> bool:
        """Whether values are there; else what gives them has failed. Raises InvalidModelError for a name that nothing defines."""
        missing = [name for name in names if self.names.type_of(name) is None]
        for name in missing:
            if name not in self.shared.failed:
                raise InvalidModelError(f"the value {name!r} is used before a node defines it", hint="nodes must be in topological order")
        return not missing

    def _operands(self, node: onnx.NodeProto) -> str:
        return ", ".join(describe(self.names.type_of(name)) for name in node.input if name)

    def _call(self, label: str, node: onnx.NodeProto) -> tuple[HostCall, dict[str, TypeProto]]:
        schema = self.scope.schema_of(node)
        given = {**(default_attributes(schema) if schema else {}), **self.scope.attributes_of(node)}
        attributes = {name: self.scope.attribute_value(value) for name, value in given.items()}
        operands = {name: self.names.type_of(name) for name in node.input if name}
        constants = {name: as_proto(name, self.names.constants[name]) for name in operands if self._is_small_constant(name)}
        types = infer(node, schema, operands, constants, self.shared.opsets)
        outputs = tuple(name or None for name in node.output)
        for name in filter(None, outputs):
            types[name] = self._with_declared_rank(name, types.get(name))
        inputs = tuple(name or None for name in node.input)
        call = HostCall(node.op_type, inputs, outputs, label, self.scope.domain_of(node), self.scope.opset_of(node), attributes)
        return call, {name: types[name] for name in outputs if name}

    def _is_small_constant(self, name: str) -> bool:
        """Whether a name is a constant that inference may read: a shape, an axis."""
        value = self.names.constants.get(name)
        if isinstance(value, onnx.TensorProto):
            return value.data_location != onnx.TensorProto.EXTERNAL and math.prod(value.dims) <= _SMALL
        return value is not None and value.size <= _SMALL

    def _with_declared_rank(self, name: str, type_: TypeProto | None) -> TypeProto:
        """The type with the shape that the file declares, where inference gives none: the run checks it."""
        declared = self.declared.get(name)
        if type_ is None:
            if declared is None:
                raise UnsupportedError(f"nothing tells the type of {name}")
            return declared
        tensor_ = type_.tensor_type
        if type_.HasField("tensor_type") and not tensor_.HasField("shape") and declared is not None:
            return tensor(tensor_.elem_type, shape_of(declared))
        return type_

    def _note(self, node: onnx.NodeProto, label: str, error: Error) -> None:
        self.shared.failed.update(node.output)
        self.scope.state.problems.clear()
        self.scope.note(node, label, (), error)
        self.shared.problems += [problem for problem in self.scope.state.problems if problem not in self.shared.problems]
