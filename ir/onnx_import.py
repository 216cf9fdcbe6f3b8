"""ONNX -> Graph IR.

``import_model`` reads a model of opset 6 to the newest that the installed ``onnx`` knows. Operators are
decomposed into core ops by handlers (``onnx_*.py``, registered with ``onnx_op``); functions of the model, and
operators that ONNX itself defines by a function, are inlined. Shapes are computed here, from the inputs: what the
file says of intermediate shapes is not trusted. All problems of a model are collected and reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import onnx

from tcompile.errors import Error, InputError, InvalidModelError, UnsupportedError
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range
from tcompile.ir.graph import Graph, Node, Value
from tcompile.ir.onnx_builder import ImportBuilder
from tcompile.ir.onnx_context import HostConstant, Item, OpContext, OptionalValue, Region, SequenceValue
from tcompile.ir.onnx_model import ModelLike, load_model
from tcompile.ir.onnx_registry import load_families, onnx_op
from tcompile.ir.onnx_schema import element_type, opset_table
from tcompile.ir.onnx_scope import FAILED, ModelState, Problem, Scope

__all__ = [
    "HostConstant", "Item", "OpContext", "OptionalValue", "Problem", "Region", "SequenceValue", "check_model", "import_model", "onnx_op",
]  # fmt: skip

Shapes = Mapping[str, Sequence[int | str]]


def import_model(model: ModelLike, shapes: Shapes | None = None) -> Graph:
    """The Graph of an ONNX model: a path, the bytes of a file, or a ModelProto.

    ``shapes`` fixes or bounds dimensions of inputs: an int, ``"1..64"`` (a range), ``"batch"`` (a symbol) or
    ``"batch=1..64"`` per axis. Raises UnsupportedError or InvalidModelError naming every node that cannot be
    imported, InputError for shapes that do not fit the model.
    """
    graph, state = _import(model, shapes)
    if state.problems:
        kind = InvalidModelError if any(problem.invalid for problem in state.problems) else UnsupportedError
        raise kind(_report(state.problems)) from state.causes[0]
    assert graph is not None
    return graph


def check_model(model: ModelLike, shapes: Shapes | None = None) -> list[Problem]:
    """All problems of a model; an empty list where it can be imported. Raises as ``import_model`` for what is no model."""
    return _import(model, shapes)[1].problems


def _report(problems: Sequence[Problem]) -> str:
    count = f"{len(problems)} node{'s' * (len(problems) != 1)}"
    return "\n".join((f"the model cannot be compiled because of {count}:", *(f"  - {problem}" for problem in problems)))


def _import(model: ModelLike, shapes: Shapes | None) -> tuple[Graph | None, ModelState]:
    load_families()
    proto, folder = load_model(model)
    opsets = opset_table(proto.opset_import)
    _check_opsets(opsets)
    functions = {(_plain(function.domain), function.name, function.overload): function for function in proto.functions}
    state = ModelState(folder, functions)
    scope = Scope(state, ImportBuilder(proto.graph.name or "graph"), opsets)
    _declare_inputs(scope, proto.graph, shapes or {})
    scope.define_initializers(proto.graph)
    scope.run(proto.graph)
    outputs = _outputs(scope, proto.graph)
    if state.problems:
        return None, state
    graph = scope.builder.graph([value for _, value in outputs], [name for name, _ in outputs])
    return _named(graph, state.names), state


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _check_opsets(opsets: Mapping[str, int]) -> None:
    newest = {"": onnx.defs.onnx_opset_version(), "ai.onnx.ml": onnx.defs.onnx_ml_opset_version()}
    for domain, version in opsets.items():
        if version > newest.get(domain, version):
            raise UnsupportedError(
                f"opset {version} of {domain or 'ai.onnx'} is newer than {newest[domain]}, the newest known",
                hint="install a newer onnx package",
            )


# Inputs -----------------------------------------------------------------------------------------------


def _declare_inputs(scope: Scope, graph: onnx.GraphProto, shapes: Shapes) -> None:
    constants = {tensor.name for tensor in graph.initializer} | {sparse.values.name for sparse in graph.sparse_initializer}
    infos = [info for info in graph.input if info.name not in constants]
    unknown = set(shapes) - {info.name for info in infos}
    if unknown:
        raise InputError(f"the model has no input {sorted(unknown)[0]!r}", hint=f"its inputs are {', '.join(info.name for info in infos)}")
    table = _InputDims(scope.builder)
    for info in infos:
        if info.name in shapes:
            table.override(info, shapes[info.name])
    for info in infos:
        try:
            dtype = element_type(info)
            scope.define(info.name, scope.builder.input(info.name, dtype, table.shape(info, shapes.get(info.name))))
        except (InvalidModelError, UnsupportedError) as error:
            scope.env[info.name] = FAILED
            scope.note(onnx.NodeProto(op_type="input"), info.name, (), error)


class _InputDims:
    """The dimensions of the inputs: one symbol per name that the model gives to a dimension."""

    def __init__(self, builder: ImportBuilder) -> None:
        self._builder = builder
        self._params: dict[str, DimLike] = {}

    def override(self, info: onnx.ValueInfoProto, entries: Sequence[int | str]) -> None:
        """Notes what the caller says of named dimensions, which then holds for every input that uses the name."""
        declared = _declared_dims(info)
        if declared is not None and len(declared) != len(entries):
            raise InputError(f"input {info.name!r} has rank {len(declared)}, and {len(entries)} dimensions were given: {list(entries)}")
        for extent, entry in zip(declared or (), entries, strict=False):
            if isinstance(extent, str):
                dim = self._entry(info.name, entry, extent)
                if self._params.setdefault(extent, dim) != dim:
                    raise InputError(f"the dimension {extent!r} is given as {self._params[extent]} and as {dim}")

    def shape(self, info: onnx.ValueInfoProto, entries: Sequence[int | str] | None) -> list[DimLike]:
        """The shape of an input. Raises UnsupportedError where not even the rank is known."""
        declared = _declared_dims(info)
        if declared is None and entries is None:
            hint = f"give its shape: shapes={{{info.name!r}: [...]}}"
            raise UnsupportedError(f"the rank of input {info.name!r} is not declared", hint=hint)
        declared = declared if declared is not None else [None] * len(entries)
        return [self._dim(info.name, k, extent, entries[k] if entries is not None else None) for k, extent in enumerate(declared)]

    def _dim(self, name: str, axis: int, extent: int | str | None, entry: int | str | None) -> DimLike:
        if isinstance(extent, str):
            if extent not in self._params:
                self._params[extent] = self._symbol(extent, Range())
            return self._params[extent]
        hint = f"{name}_{axis}"
        if entry is not None:
            return self._entry(name, entry, hint)
        return self._symbol(hint, Range()) if extent is None else extent

    def _entry(self, name: str, entry: int | str, hint: str) -> DimLike:
        """A dimension as the caller wrote it: 8, "8", "1..64", "1..", "n", "n=1..64"."""
        text = str(entry).strip()
        if re.fullmatch(r"\d+", text):
            return int(text)
        match = re.fullmatch(r"(?:(?P<name>[A-Za-z_]\w*))?(?:(?:^|=)(?P<lo>\d+)\.\.(?P<hi>\d+)?)?", text)
        if not match or not text:
            raise InputError(f"cannot read the dimension {entry!r} of input {name!r}", hint="write a number, 1..64, a name, or name=1..64")
        range_ = Range(int(match["lo"] or 0), int(match["hi"]) if match["hi"] else None)
        if range_.hi is not None and range_.hi < range_.lo:
            raise InputError(f"the range {entry!r} of input {name!r} is empty")
        return self._symbol(match["name"] or hint, range_, named=bool(match["name"]))

    def _symbol(self, hint: str, range_: Range, *, named: bool = False) -> DimLike:
        """A symbol called like the hint; a name that the caller chose is shared by all its uses."""
        name = re.sub(r"\W", "_", hint)
        name = name if re.match(r"[A-Za-z_]", name) else f"d_{name}"
        symbols = self._builder.symbols
        if not named:
            while name in symbols:
                name += "_"
        if symbols.get(name, range_) != range_ and range_ != Range():
            raise InputError(f"the dimension {name!r} is given two ranges")
        symbols.setdefault(name, range_)
        return dims.symbol(name)


def _declared_dims(info: onnx.ValueInfoProto) -> list[int | str | None] | None:
    """Extents, names, None for what is not declared; None where the rank is not."""
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [_declared_dim(info.name, dim) for dim in tensor.shape.dim]


def _declared_dim(name: str, dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None  # some exporters write -1 for a free dimension
    return dim.dim_param if dim.dim_param and dim.dim_param != "?" else None


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
    if not isinstance(item, Value):
        raise UnsupportedError("a string tensor or an absent optional cannot be an output")
    return [(name, item)]


def _named(graph: Graph, names: Mapping[Value, str]) -> Graph:
    """The graph with values called by their ONNX names.   v17 -> "encoder/relu_output" """
    table: dict[Value, Value] = {}

    def value_of(value: Value) -> Value:
        if value not in table:
            table[value] = Value(names[value], value.type) if value in names and names[value] != value.name else value
        return table[value]

    def node_of(node: Node) -> Node:
        inputs, outputs = tuple(map(value_of, node.inputs)), tuple(map(value_of, node.outputs))
        return Node(node.op, inputs, outputs, node.attrs, tuple(map(graph_of, node.regions)), node.source)

    def graph_of(inner: Graph) -> Graph:
        inputs, outputs = tuple(map(value_of, inner.inputs)), tuple(map(value_of, inner.outputs))
        return Graph(inner.name, inputs, outputs, list(map(node_of, inner.nodes)), inner.symbols, inner.output_names)

    return graph_of(graph)
