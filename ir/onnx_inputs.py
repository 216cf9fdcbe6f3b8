"""The inputs of an ONNX model: their dimensions, as the model declares them and the caller narrows them.

A sequence input needs to be told how long it is: ``shapes={"x": [[2, 3], [4, 3]]}`` makes it the inputs ``x[0]`` and
``x[1]``. An optional input is there, unless ``shapes={"x": None}`` says that it is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from tcompile.errors import InputError, InvalidModelError, UnsupportedError
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range
from tcompile.ir.dtypes import from_onnx
from tcompile.ir.onnx_builder import ImportBuilder
from tcompile.ir.onnx_context import Item, OptionalValue, SequenceValue
from tcompile.ir.onnx_scope import FAILED, Scope

Shapes = Mapping[str, Sequence[int | str] | Sequence[Sequence[int | str]] | None]


def declare_inputs(scope: Scope, graph: Any, shapes: Shapes) -> Mapping[str, DimLike]:
    """Defines the inputs of a graph (or part of one) that are no initializers; returns the extents of dimension names.

    Raises InputError for shapes that do not fit it.
    """
    infos = declared_inputs(graph)
    require_names(shapes, infos)
    table = InputDims(scope.builder)
    for info in infos:
        if shapes.get(info.name) is not None and info.type.HasField("tensor_type"):
            table.override(info.name, info.type.tensor_type, shapes[info.name])
    for info in infos:
        try:
            scope.define(info.name, _declare(scope.builder, table, info, shapes))
        except (InvalidModelError, UnsupportedError) as error:
            scope.env[info.name] = FAILED
            scope.note(onnx.NodeProto(op_type="input"), info.name, (), error)
    scope.state.names.update((value, value.name) for value in scope.builder.inputs)  # elements of sequences keep theirs too
    return table.names


def require_names(shapes: Shapes, infos: Sequence[onnx.ValueInfoProto]) -> None:
    """Raises InputError where shapes are given for what is no input."""
    unknown = set(shapes) - {info.name for info in infos}
    if unknown:
        raise InputError(f"the model has no input {sorted(unknown)[0]!r}", hint=f"its inputs are {', '.join(info.name for info in infos)}")


def declared_inputs(graph: Any) -> list[onnx.ValueInfoProto]:
    """The inputs of a graph that are no initializers."""
    constants = {tensor.name for tensor in graph.initializer} | {sparse.values.name for sparse in graph.sparse_initializer}
    return [info for info in graph.input if info.name not in constants]


def _declare(builder: ImportBuilder, table: InputDims, info: onnx.ValueInfoProto, shapes: Shapes) -> Item:
    name, type_, entries = info.name, info.type, shapes.get(info.name)
    optional = type_.HasField("optional_type")
    if optional:
        if name in shapes and entries is None:
            return OptionalValue(None)
        type_ = type_.optional_type.elem_type
    if type_.HasField("sequence_type"):
        item = _declare_sequence(builder, table, name, type_.sequence_type.elem_type, entries)
    else:
        item = _declare_tensor(builder, table, name, type_, entries)
    return OptionalValue(item) if optional else item


def _declare_tensor(builder: ImportBuilder, table: InputDims, name: str, type_: onnx.TypeProto, entries: Sequence | None) -> Item:
    if not type_.HasField("tensor_type"):
        kind = type_.WhichOneof("value") or "value without a type"
        raise UnsupportedError(f"the value {name!r} is a {kind.removesuffix('_type')}, not a tensor")
    tensor = type_.tensor_type
    return builder.input(name, from_onnx(tensor.elem_type), table.shape(name, tensor, entries))


def _declare_sequence(builder: ImportBuilder, table: InputDims, name: str, element: onnx.TypeProto, entries: Sequence | None) -> Item:
    if entries is None:
        hint = f"say what it holds: shapes={{{name!r}: [[2, 3], [4, 3]]}} for two tensors"
        raise UnsupportedError(f"the input {name!r} is a sequence, whose length must be known when compiling", hint=hint)
    dtype = from_onnx(element.tensor_type.elem_type)
    # dimension names of the element type are each element's own: its shape is the caller's alone
    shapes = ((f"{name}[{k}]", shape) for k, shape in enumerate(entries))
    return SequenceValue(tuple(builder.input(label, dtype, table.given(label, shape)) for label, shape in shapes), dtype)


class InputDims:
    """The dimensions of the inputs: one symbol per name that the model gives to a dimension."""

    def __init__(self, builder: ImportBuilder) -> None:
        self._builder = builder
        self._params: dict[str, DimLike] = {}

    @property
    def names(self) -> Mapping[str, DimLike]:
        """The extents of the dimension names seen."""
        return self._params

    def override(self, name: str, tensor: onnx.TypeProto.Tensor, entries: Sequence[int | str]) -> None:
        """Notes what the caller says of named dimensions, which then holds for every input that uses the name."""
        declared = _declared_dims(tensor)
        if declared is not None and len(declared) != len(entries):
            raise InputError(f"input {name!r} has rank {len(declared)}, and {len(entries)} dimensions were given: {list(entries)}")
        for extent, entry in zip(declared or (), entries, strict=False):
            if isinstance(extent, str):
                dim = self._entry(name, entry, extent)
                if self._params.setdefault(extent, dim) != dim:
                    raise InputError(f"the dimension {extent!r} is given as {self._params[extent]} and as {dim}")

    def shape(self, name: str, tensor: onnx.TypeProto.Tensor, entries: Sequence[int | str] | None) -> list[DimLike]:
        """The shape of an input. Raises UnsupportedError where not even the rank is known."""
        declared = _declared_dims(tensor)
        if declared is None and entries is None:
            raise UnsupportedError(f"the rank of input {name!r} is not declared", hint=f"give its shape: shapes={{{name!r}: [...]}}")
        declared = declared if declared is not None else [None] * len(entries)
        return [self._dim(name, k, extent, entries[k] if entries is not None else None) for k, extent in enumerate(declared)]

    def given(self, name: str, entries: Sequence[int | str]) -> list[DimLike]:
        """The shape of an input as the caller gave it, whatever the model declares."""
        return [self._entry(name, entry, f"{name}_{axis}") for axis, entry in enumerate(entries)]

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


def _declared_dims(tensor: onnx.TypeProto.Tensor) -> list[int | str | None] | None:
    """Extents, names, None for what is not declared; None where the rank is not."""
    return [_declared_dim(dim) for dim in tensor.shape.dim] if tensor.HasField("shape") else None


def _declared_dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None  # some exporters write -1 for a free dimension
    return dim.dim_param if dim.dim_param and dim.dim_param != "?" else None
