"""Walking an ONNX graph: names to values, nodes to handlers, functions and subgraphs to scopes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import AttributeProto, helper

from tcompile.errors import Error, InvalidModelError, UnsupportedError
from tcompile.ir import onnx_content, onnx_model
from tcompile.ir.dims import DimError
from tcompile.ir.dtypes import from_numpy
from tcompile.ir.graph import TensorType, Value
from tcompile.ir.onnx_builder import ImportBuilder
from tcompile.ir.onnx_context import HostConstant, Item, OpContext, OptionalValue, Region, RegionInputs, SequenceValue, StackedSequence
from tcompile.ir.onnx_registry import find_handler
from tcompile.ir.onnx_schema import (
    check_node,
    default_attributes,
    find_schema,
    free_names,
    function_body,
    opset_table,
    resolved,
    specified_error,
)

OLDEST_OPSET = 6
MAX_INLINING = 64  # nested function calls; more is a cycle


@dataclass(frozen=True)
class Problem:
    """One node that cannot be imported. ``dtype`` is that of its first tensor operand, empty where there is none."""

    node: str
    op: str
    domain: str
    opset: int
    dtype: str
    reason: str
    hint: str = ""
    invalid: bool = False  # breaks the ONNX specification, rather than being unsupported

    def __str__(self) -> str:
        where = f"{self.domain}.{self.op}" if self.domain else self.op
        dtype = f" on {self.dtype}" if self.dtype else ""
        text = f"{self.node} ({where}, opset {self.opset}{dtype}): {self.reason}"
        return f"{text} [{self.hint}]" if self.hint else text


class Reported(Error):
    """Raised through a handler whose subgraph failed: the problem is already in the list."""


class _Failed:
    """The output of a node that could not be imported."""


FAILED = _Failed()


@dataclass(eq=False)
class ModelState:
    """What all scopes of one import share."""

    files: onnx_model.ModelFiles
    functions: Mapping[tuple[str, str, str], onnx.FunctionProto]
    problems: list[Problem] = field(default_factory=list)
    names: dict[Value, str] = field(default_factory=dict)  # ONNX names, given to the values at the end
    causes: list[Exception] = field(default_factory=list)


@dataclass(eq=False)
class Scope:
    """The names visible in one graph or function. A scope whose builder differs from its parent's is a region."""

    state: ModelState
    builder: ImportBuilder
    opsets: Mapping[str, int]
    parent: Scope | None = None
    attributes: Mapping[str, AttributeProto] = field(default_factory=dict)  # of the function call
    env: dict[str, Any] = field(default_factory=dict)
    captured: dict[Value, Value] = field(default_factory=dict)  # outer value -> region input
    depth: int = 0

    # Names --------------------------------------------------------------------------------------------

    def lookup(self, name: str) -> Any:
        """The item of a name, made visible in this scope's builder. Raises InvalidModelError for an undefined name."""
        if name in self.env:
            return self.env[name]
        if self.parent is None:
            raise InvalidModelError(f"the value {name!r} is used before a node defines it", hint="nodes must be in topological order")
        item = self.parent.lookup(name)
        if self.builder is not self.parent.builder:
            item = self._translate(item)
        self.env[name] = item
        return item

    def define(self, name: str, item: Any) -> None:
        """Binds a name. Raises InvalidModelError for the second definition of a name."""
        if name in self.env:
            raise InvalidModelError(f"the value {name!r} is defined twice")
        self.env[name] = item
        if isinstance(item, Value):
            self.state.names.setdefault(item, name)

    def _translate(self, item: Any) -> Any:
        """An outer item as seen inside a region: a captured value, or a copy of a known one."""
        if isinstance(item, SequenceValue):
            return SequenceValue(tuple(map(self._translate, item.elements)), item.dtype)
        if isinstance(item, OptionalValue):
            return OptionalValue(None if item.element is None else self._translate(item.element))
        if isinstance(item, StackedSequence):
            return StackedSequence(self._translate(item.stack))
        if not isinstance(item, Value):
            return item
        if item not in self.captured:
            content = self.parent.builder.contents.get(item)
            if not onnx_content.is_known(content):
                raise InvalidModelError(f"the region {self.builder.name} uses {item.name}, which it does not capture")
            self.captured[item] = self.builder.known(content, item.dtype)
        return self.captured[item]

    # Nodes --------------------------------------------------------------------------------------------

    def domain_of(self, node: onnx.NodeProto) -> str:
        return "" if node.domain == "ai.onnx" else node.domain

    def opset_of(self, node: onnx.NodeProto) -> int:
        domain = self.domain_of(node)
        return self.opsets.get(domain, 1)

    def schema_of(self, node: onnx.NodeProto) -> onnx.defs.OpSchema | None:
        return find_schema(node.op_type, self.opset_of(node), self.domain_of(node))

    def attributes_of(self, node: onnx.NodeProto) -> dict[str, AttributeProto]:
        """The node's attributes, references to attributes of the calling function resolved."""
        found = {}
        for attribute in node.attribute:
            if not attribute.ref_attr_name:
                found[attribute.name] = attribute
            elif attribute.ref_attr_name in self.attributes:
                found[attribute.name] = self.attributes[attribute.ref_attr_name]
        return found

    def attribute_value(self, attribute: AttributeProto) -> Any:
        """An attribute as a Python value; tensors as arrays, byte strings as str where they are UTF-8."""
        match attribute.type:
            case AttributeProto.TENSOR:
                return onnx_model.read_tensor(attribute.t, self.state.files)
            case AttributeProto.SPARSE_TENSOR:
                return onnx_model.read_sparse(attribute.sparse_tensor, self.state.files)
            case AttributeProto.STRING:
                return attribute.s.decode("utf-8", "replace")
            case AttributeProto.STRINGS:
                return [item.decode("utf-8", "replace") for item in attribute.strings]
            case AttributeProto.TENSORS:
                return [onnx_model.read_tensor(tensor, self.state.files) for tensor in attribute.tensors]
        value = helper.get_attribute_value(attribute)
        return list(value) if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS, AttributeProto.GRAPHS) else value

    def run(self, graph: onnx.GraphProto | onnx.FunctionProto) -> None:
        """Imports all nodes of a graph."""
        self.run_nodes((node.name or f"{node.op_type} #{index}", node) for index, node in enumerate(graph.node))

    def run_nodes(self, nodes: Iterable[tuple[str, onnx.NodeProto]]) -> None:
        """Imports nodes with their labels; a node that fails is noted and its outputs are marked as failed."""
        for label, node in nodes:
            self._import_node(node, label)

    def call(self, op: str, inputs: Sequence[Item | None], attrs: Mapping[str, Any], outputs: int, domain: str) -> list[Item]:
        """Imports a node that the model does not hold."""
        names = [f"out{k}" for k in range(outputs)]
        node = helper.make_node(op, [f"in{k}" if item is not None else "" for k, item in enumerate(inputs)], names, domain=domain, **attrs)
        return self._outputs(node, list(inputs), op)

    def _import_node(self, node: onnx.NodeProto, label: str) -> None:
        outer = self.builder.source
        self.builder.source = (*outer, label)
        inputs: list[Any] = []
        items: Sequence[Any] = ()
        try:
            inputs = [self.lookup(name) if name else None for name in node.input]
            items = self._checked_outputs(node, inputs, label)
        except Reported:
            pass
        except Error as error:
            self.note(node, label, inputs, error)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as error:
            # a malformed node that the schema check let through must not end the import of the others
            breach = specified_error(resolved(node, self.attributes_of(node)), self.schema_of(node), inputs)
            self.note(node, label, inputs, breach or error)
        finally:
            self.builder.source = outer
        self._define_outputs(node, label, inputs, items)

    def _checked_outputs(self, node: onnx.NodeProto, inputs: list[Any], label: str) -> Sequence[Any]:
        check_node(node, self.schema_of(node), self.attributes_of(node))
        if any(item is FAILED for item in inputs):
            if self._importer_of(node) is None:
                raise UnsupportedError("the operator is not supported")
            return ()
        return self._outputs(node, inputs, label)

    def _define_outputs(self, node: onnx.NodeProto, label: str, inputs: list[Any], items: Sequence[Any]) -> None:
        for k, name in enumerate(node.output):
            if not name:
                continue
            item = items[k] if k < len(items) and items[k] is not None else FAILED
            if item is FAILED and items:
                self.note(node, label, inputs, UnsupportedError(f"output {k} ({name}) is not supported"))
            try:
                self.define(name, item)
            except InvalidModelError as error:
                self.note(node, label, inputs, error)

    def _outputs(self, node: onnx.NodeProto, inputs: list[Any], label: str) -> Sequence[Any]:
        importer = self._importer_of(node)
        if importer is None:
            raise UnsupportedError("the operator is not supported")
        if isinstance(importer, onnx.FunctionProto):
            return self._inline_function(importer, node, inputs)
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        context = OpContext(self, node, inputs, label)
        result = importer(context)
        if result is NotImplemented:  # the handler leaves this case to the operator's own definition
            body = function_body(resolved(node, self.attributes_of(node)), self.schema_of(node), self.opset_of(node), inputs)
            if body is None:
                raise UnsupportedError("this form of the operator is not supported")
            return self._inline_function(body, node, inputs, default_attributes(self.schema_of(node)))
        return tuple(result) if isinstance(result, Sequence) else (result,)

    def _importer_of(self, node: onnx.NodeProto) -> Any:
        """What imports a node: a function of the model, a handler, or the function that ONNX defines the operator by."""
        domain = self.domain_of(node)
        local = self.state.functions.get((domain, node.op_type, node.overload))
        if local is not None:
            return local
        self._refuse_old_form(node)
        handler = find_handler(node.op_type, domain, self.opset_of(node))
        if handler is not None:
            return handler
        schema = self.schema_of(node)
        if schema is None or not (schema.has_function or schema.has_context_dependent_function):
            return None
        return lambda ctx: NotImplemented

    def _refuse_old_form(self, node: onnx.NodeProto) -> None:
        """Below the oldest opset, operators are taken that mean there what they mean in it."""
        if self.domain_of(node) or self.opset_of(node) >= OLDEST_OPSET:
            return
        oldest, here = find_schema(node.op_type, OLDEST_OPSET, ""), self.schema_of(node)
        if oldest is None or here is None or oldest.since_version != here.since_version:
            hint = "convert the model with onnx.version_converter"
            raise UnsupportedError(f"its form before opset {OLDEST_OPSET} is not supported", hint=hint)

    def note(self, node: onnx.NodeProto, label: str, inputs: Sequence[Any], error: Exception) -> None:
        dtype = next((str(item.dtype) for item in inputs if isinstance(item, Value)), "")
        known = isinstance(error, Error)
        reason = str(error).split("\n  hint: ")[0] if known else f"the importer failed on it: {type(error).__name__}: {error}"
        hint = getattr(error, "hint", "")
        invalid = isinstance(error, InvalidModelError | DimError)
        problem = Problem(label, node.op_type, self.domain_of(node), self.opset_of(node), dtype, reason, hint, invalid)
        if problem not in self.state.problems:
            self.state.problems.append(problem)
            self.state.causes.append(error)

    # Functions ----------------------------------------------------------------------------------------

    def _inline_function(
        self,
        function: onnx.FunctionProto,
        node: onnx.NodeProto,
        inputs: Sequence[Any],
        defaults: Mapping[str, AttributeProto] | None = None,
    ) -> list[Any]:
        if self.depth >= MAX_INLINING:
            raise InvalidModelError(f"the function {function.name} calls itself")
        attributes = {**(defaults or {}), **{attribute.name: attribute for attribute in function.attribute_proto}}
        attributes.update(self.attributes_of(node))
        opsets = {**self.opsets, **opset_table(function.opset_import)}
        scope = Scope(self.state, self.builder, opsets, None, attributes, depth=self.depth + 1)
        for k, name in enumerate(function.input):
            scope.env[name] = inputs[k] if k < len(inputs) else None
        scope.run(function)
        wanted = [k < len(node.output) and bool(node.output[k]) for k in range(len(function.output))]
        return [scope._finished(name) if want else None for name, want in zip(function.output, wanted, strict=True)]

    def _finished(self, name: str) -> Any:
        """The item of an output name. Raises Reported where its node failed."""
        item = self.lookup(name)
        if item is FAILED:
            raise Reported(f"{name} was not imported")
        return item

    # Subgraphs ----------------------------------------------------------------------------------------

    def captured_values(self, graphs: Sequence[onnx.GraphProto]) -> list[Value]:
        """The run-time values of this scope that graphs use freely, each once."""
        found: dict[Value, None] = {}
        for graph in graphs:
            for name in free_names(graph):
                for value in _values(self.lookup(name)):
                    if not onnx_content.is_known(self.builder.contents.get(value)):
                        found[value] = None
        return list(found)

    def import_region(self, graph: onnx.GraphProto, name: str, inputs: RegionInputs, captures: Sequence[Value]) -> Region:
        """See ``OpContext.import_region``."""
        builder = self.builder.region(graph.name or name)
        scope = Scope(self.state, builder, self.opsets, self, self.attributes, depth=self.depth)
        if callable(inputs):
            items = inputs(builder)
        else:
            items = [_region_input(builder, info.name, item) for info, item in zip(graph.input, inputs, strict=False)]
        explicit = list(builder.inputs)
        for value in captures:
            scope.captured[value] = inner = builder.input(value.name, value.dtype, value.shape)
            content = self.builder.contents.get(value)
            if content is not None:
                builder.contents[inner] = content
        outputs = scope._graph_outputs(graph, items)
        return Region(builder, explicit, builder.inputs[len(explicit) :], outputs)

    def inline(self, graph: onnx.GraphProto, inputs: Sequence[Item]) -> list[Item]:
        """See ``OpContext.inline``."""
        return Scope(self.state, self.builder, self.opsets, self, self.attributes, depth=self.depth)._graph_outputs(graph, inputs)

    def _graph_outputs(self, graph: onnx.GraphProto, inputs: Sequence[Item]) -> list[Item]:
        for info, item in zip(graph.input, inputs, strict=False):
            self.define(info.name, item)
        self.define_initializers(graph)
        self.run(graph)
        return [self._finished(info.name) for info in graph.output]

    def define_initializers(self, graph: Any) -> None:
        """Binds the constants of a graph or of a part of one; an input's default value gives way to the input."""
        tensors = [(tensor.name, onnx_model.read_tensor, tensor) for tensor in graph.initializer]
        tensors += [(sparse.values.name, onnx_model.read_sparse, sparse) for sparse in graph.sparse_initializer]
        for name, read, tensor in tensors:
            if name in self.env:
                continue
            try:
                self.define(name, self.constant(read(tensor, self.state.files)))
            except Error as error:
                self.define(name, FAILED)
                self.note(onnx.NodeProto(op_type="initializer"), name, (), error)

    def constant(self, array: Any) -> Item:
        """A constant item: a value, or a HostConstant for strings."""
        if array.dtype == object or array.dtype.kind in "SU":
            return HostConstant(array)
        return self.builder.known(array, from_numpy(array.dtype))


def _region_input(builder: ImportBuilder, name: str, item: Any) -> Any:
    if isinstance(item, TensorType):
        return builder.input(name, item.dtype, item.shape)
    if isinstance(item, SequenceValue):
        return SequenceValue(tuple(_region_input(builder, f"{name}.{k}", element) for k, element in enumerate(item.elements)), item.dtype)
    if isinstance(item, OptionalValue):
        return OptionalValue(None if item.element is None else _region_input(builder, name, item.element))
    return _region_input(builder, name, item.type)


def _values(item: Any) -> Iterator[Value]:
    """The tensors in an item."""
    if isinstance(item, Value):
        yield item
    elif isinstance(item, SequenceValue):
        for element in item.elements:
            yield from _values(element)
    elif isinstance(item, OptionalValue) and item.element is not None:
        yield from _values(item.element)
    elif isinstance(item, StackedSequence):
        yield item.stack
    elif item is FAILED:
        raise Reported("a captured value was not imported")
