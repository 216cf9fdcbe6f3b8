"""What a handler of an ONNX operator sees: the node's inputs, attributes and subgraphs, and the builder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import onnx

from tcompile.errors import InvalidModelError, UnsupportedError
from tcompile.ir import dims, dtypes, onnx_content
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Graph, TensorType, Value
from tcompile.ir.onnx_builder import ImportBuilder

if TYPE_CHECKING:
    from tcompile.ir.onnx_import import Scope

_MISSING = object()


@dataclass(frozen=True, eq=False)
class SequenceValue:
    """An ONNX sequence whose length is known at import time. ``dtype`` is that of its elements (for an empty one)."""

    elements: tuple[Item, ...]
    dtype: DType | None = None


@dataclass(frozen=True, eq=False)
class OptionalValue:
    """An ONNX optional, known to be there or not (None)."""

    element: Item | None


@dataclass(frozen=True, eq=False)
class StackedSequence:
    """An ONNX sequence of tensors of one type whose length is an extent: ``stack`` holds them along a new axis 0."""

    stack: Value


@dataclass(frozen=True, eq=False)
class GrowingSequence:
    """A sequence that a loop under import carries and only appends to: what the present turn has appended."""

    appended: tuple[Value, ...]
    dtype: DType | None = None


@dataclass(frozen=True, eq=False)
class HostConstant:
    """A constant that no tensor type holds: strings (an object array of str)."""

    array: np.ndarray


@dataclass(frozen=True, eq=False)
class CodedStrings:
    """A string tensor computed at run time as indices into a constant table of strings."""

    table: tuple[str, ...]
    codes: Value


Item = Value | SequenceValue | StackedSequence | GrowingSequence | OptionalValue | HostConstant | CodedStrings
RegionInputs = Sequence[TensorType | SequenceValue | OptionalValue] | Callable[[ImportBuilder], Sequence[Item]]


@dataclass(eq=False)
class Region:
    """An imported subgraph, not closed yet: a handler may append conversions with ``builder`` before ``close``."""

    builder: ImportBuilder
    inputs: list[Value]
    captures: list[Value]  # the region's inputs for the captured outer values
    outputs: list[Item]

    def close(self, outputs: Sequence[Value] | None = None) -> Graph:
        """The finished region."""
        return self.builder.graph(self.outputs if outputs is None else outputs)


class OpContext:
    """One ONNX node under import. ``inputs[k]`` is the k-th operand, None where it is omitted (or absent at the end)."""

    def __init__(self, scope: Scope, node: onnx.NodeProto, inputs: Sequence[Item | None], label: str) -> None:
        self.scope = scope
        self.node = node
        self.builder: ImportBuilder = scope.builder
        self.label = label
        self._items = list(inputs)
        self._attrs = scope.attributes_of(node)

    # The node -----------------------------------------------------------------------------------------

    @property
    def op(self) -> str:
        return self.node.op_type

    @property
    def domain(self) -> str:
        return self.scope.domain_of(self.node)

    @property
    def opset(self) -> int:
        """The opset version of the node's domain."""
        return self.scope.opset_of(self.node)

    @property
    def output_count(self) -> int:
        """Number of outputs that the node names (trailing omitted ones not counted)."""
        return len(self.node.output)

    def wants(self, k: int) -> bool:
        """Whether output k is named."""
        return k < len(self.node.output) and bool(self.node.output[k])

    def attr(self, name: str, default: Any = _MISSING) -> Any:
        """The attribute: int, float, str, ndarray, GraphProto, or a list of them.

        Without it: ``default`` if given, else the default of the operator's schema, else None.
        """
        if name in self._attrs:
            return self.scope.attribute_value(self._attrs[name])
        if default is not _MISSING:
            return default
        schema = self.scope.schema_of(self.node)
        declared = schema.attributes.get(name) if schema else None
        if declared is None or not declared.default_value.name:
            return None
        return self.scope.attribute_value(declared.default_value)

    def has_attr(self, name: str) -> bool:
        """Whether the node carries the attribute itself."""
        return name in self._attrs

    def fail(self, reason: str, *, hint: str = "") -> NoReturn:
        """Refuses the node as something valid that is not supported."""
        raise UnsupportedError(reason, hint=hint)

    def invalid(self, reason: str, *, hint: str = "") -> NoReturn:
        """Refuses the node as a breach of the ONNX specification."""
        raise InvalidModelError(reason, hint=hint)

    # Operands -----------------------------------------------------------------------------------------

    @property
    def inputs(self) -> list[Any]:
        """All operands; strings are refused (see ``constant``)."""
        for item in self._items:
            if isinstance(item, HostConstant):
                self.fail("string tensors are not supported by this operator")
        return self._items

    @property
    def input_count(self) -> int:
        """Number of operands, omitted ones in the middle counted."""
        return len(self._items)

    def has(self, k: int) -> bool:
        """Whether operand k is there."""
        return k < len(self._items) and self._items[k] is not None

    def input(self, k: int) -> Value:
        """Operand k, which must be a tensor. Raises InvalidModelError where it is missing or another kind of value."""
        item = self.optional(k)
        if item is None:
            self.invalid(f"operand {k} is missing")
        return item

    def optional(self, k: int) -> Value | None:
        """Operand k as a tensor, None where it is omitted."""
        item = self._items[k] if k < len(self._items) else None
        if isinstance(item, OptionalValue) and isinstance(item.element, Value):
            item = item.element
        if isinstance(item, HostConstant | CodedStrings):
            self.fail(f"operand {k} is a string tensor, which this operator does not support here")
        if item is not None and not isinstance(item, Value):
            self.invalid(f"operand {k} is a {type(item).__name__}, not a tensor")
        return item

    def tensors(self) -> list[Value]:
        """All operands of a variadic operator."""
        return [self.input(k) for k in range(len(self._items))]

    def item(self, k: int) -> Item | None:
        """Operand k of whatever kind."""
        return self._items[k] if k < len(self._items) else None

    def sequence(self, k: int) -> list[Item]:
        """The elements of operand k, a sequence."""
        item = self.item(k)
        if isinstance(item, OptionalValue):
            item = item.element
        if not isinstance(item, SequenceValue):
            self.invalid(f"operand {k} is not a sequence")
        return list(item.elements)

    def constant(self, k: int) -> np.ndarray | None:
        """The array of operand k where it is constant (strings: an object array); None where it is omitted or computed."""
        item = self.item(k)
        if isinstance(item, HostConstant):
            return item.array
        return self.builder.constant_of(item) if isinstance(item, Value) else None

    def content(self, k: int) -> np.ndarray | None:
        """What is known of operand k: an array of ints, expressions, ratios or UNKNOWN (``onnx_content``)."""
        item = self.item(k)
        return self.builder.contents.get(item) if isinstance(item, Value) else None

    def known(self, k: int) -> DimLike | tuple[DimLike, ...] | None:
        """The content of an integer tensor of rank 0 (one expression) or 1 (a tuple); None where any element is not known."""
        content = self.content(k)
        if content is None or not onnx_content.is_known(content) or content.ndim > 1 or not self.input(k).dtype.is_integer:
            return None
        return content.item() if content.ndim == 0 else tuple(content.tolist())

    def shape_operand(self, k: int, hint: str = "d") -> list[DimLike]:
        """The elements of a 1-D (or scalar) integer tensor as expressions; unknown ones are bound as new symbols >= 0.

        Raises UnsupportedError where the tensor's length is not static.
        """
        return self.expressions(self.input(k), hint)

    def expressions(self, value: Value, hint: str = "d", *, signed: bool = False) -> list[DimLike]:
        """As ``shape_operand``, for any integer tensor of rank <= 1. Elements may be negative where ``signed``."""
        b = self.builder
        bind = b.bind_integer if signed else b.bind_dim
        if value.rank == 0:
            return [bind(b.convert(value, dtypes.I64), hint)]
        if value.rank != 1 or not isinstance(value.shape[0], int):
            self.fail(f"the shape operand {value.name} has the type {value.type}", hint="its length must be known when compiling")
        content = b.contents.get(value)
        content = onnx_content.unknown(value.shape) if content is None else content.astype(object)
        for j, item in enumerate(content):
            if item is onnx_content.UNKNOWN:
                element = b.reshape(b.slice_axis(b.convert(value, dtypes.I64), 0, j, 1), ())
                content[j] = bind(element, hint)
        b.contents[value] = content
        return list(content)

    def is_run_time(self, *exprs: DimLike) -> bool:
        """Whether an expression uses an integer that the run computes and that is no extent (``bind_integer``)."""
        return bool(dims.shape_symbols(exprs) & self.builder.integers)

    def axes_operand(self, k: int, attr: str, rank: int) -> list[int] | None:
        """Axes given by operand k or, in older opsets, by an attribute; normalised to [0, rank). None where neither is there."""
        raw: Any = self.attr(attr, None)
        if self.has(k):
            raw = self.known(k)
            if raw is None or not all(isinstance(axis, int) for axis in np.atleast_1d(np.array(raw, object))):
                self.fail(f"the {attr} are computed at run time", hint="make them a constant")
        if raw is None:
            return None
        return [self.axis(axis, rank) for axis in (raw if isinstance(raw, Sequence) else [raw])]

    def axis(self, axis: int, rank: int) -> int:
        """An axis normalised to [0, rank). Raises InvalidModelError for one outside."""
        if not -rank <= axis < rank:
            self.invalid(f"axis {axis} is outside of rank {rank}")
        return axis % rank if rank else axis

    # Subgraphs ----------------------------------------------------------------------------------------

    def captures(self, *graphs: str) -> list[Value]:
        """The outer run-time values that the graph attributes use: operands that the node needs besides its own.

        Constants and shape expressions are not among them: a region makes its own.
        """
        return self.scope.captured_values([self.attr(graph) for graph in graphs])

    def import_region(self, graph: str, inputs: RegionInputs, captures: Sequence[Value] = ()) -> Region:
        """Imports a graph attribute as a closed region.

        ``inputs`` are the types of its declared inputs (fewer leave the rest to their initializers), or a function
        that declares them with the region's builder and returns the items; ``captures`` are outer values that
        become further region inputs, in order.
        """
        return self.scope.import_region(self.attr(graph), graph, inputs, captures)

    def inline(self, graph: str, inputs: Sequence[Item]) -> list[Item]:
        """Imports a graph attribute into the current graph, its inputs bound to values; returns its outputs."""
        return self.scope.inline(self.attr(graph), inputs)

    def call(
        self, op: str, inputs: Sequence[Item | None], attrs: Mapping[str, Any] | None = None, *, outputs: int = 1, domain: str = ""
    ) -> list[Item]:
        """Imports another ONNX operator in place, at the model's opset."""
        return self.scope.call(op, inputs, attrs or {}, outputs, domain)
