"""The builder: appends core ops to a graph under construction, inferring types as it goes.

Importers, passes and tests all build through it, so a node with wrong types cannot be made. Convenience
methods hide the one-op-per-call style where several core ops make one idea (``binary`` with NumPy broadcasting).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tcompile.ir import dims, dtypes
from tcompile.ir.dims import DimLike, Range, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Graph, Node, TensorType, Value
from tcompile.ir.ops import infer
from tcompile.ir.spill import kept


class Builder:
    """Appends nodes; ``region`` starts a nested graph that shares names and symbols with this one."""

    def __init__(self, name: str = "graph", parent: Builder | None = None) -> None:
        self.name = name
        self.nodes: list[Node] = []
        self.inputs: list[Value] = []
        self.symbols: dict[str, Range] = parent.symbols if parent else {}
        self.source: tuple[str, ...] = parent.source if parent else ()
        self._numbers = parent._numbers if parent else itertools.count()

    # Structure ----------------------------------------------------------------------------------------

    def input(self, name: str, dtype: DType, shape: Sequence[DimLike]) -> Value:
        """Declares the next input."""
        value = Value(name, TensorType(dtype, tuple(shape)))
        self.inputs.append(value)
        return value

    def region(self, name: str) -> Builder:
        """A builder for a closed region of a node that this builder will add."""
        return Builder(name, parent=self)

    def graph(self, outputs: Sequence[Value], output_names: Sequence[str] = ()) -> Graph:
        """The finished graph."""
        names = tuple(output_names) or tuple(value.name for value in outputs)
        return Graph(self.name, tuple(self.inputs), tuple(outputs), list(self.nodes), self.symbols, names)

    def fresh_symbol(self, hint: str = "d", lo: DimLike = 0, hi: DimLike | None = None) -> DimLike:
        """A new dimension symbol with its range."""
        name = next(text for text in (f"{hint}{k}" for k in itertools.count()) if text not in self.symbols)
        self.symbols[name] = Range(lo, hi)
        return dims.symbol(name)

    def emit_all(
        self, op: str, inputs: Iterable[Value], attrs: dict[str, Any] | None = None, regions: Sequence[Graph] = (), name: str = ""
    ) -> tuple[Value, ...]:
        """Appends any core op; returns its outputs."""
        inputs, attrs, regions = tuple(inputs), dict(attrs or {}), tuple(regions)
        types = infer(op, tuple(value.type for value in inputs), attrs, regions)
        outputs = tuple(Value(name or f"v{next(self._numbers)}", type_) for type_ in types)
        self.nodes.append(Node(op, inputs, outputs, attrs, regions, self.source))
        return outputs

    def emit(self, op: str, *inputs: Value, **attrs: Any) -> Value:
        """Appends an op with one output; returns it."""
        (output,) = self.emit_all(op, inputs, attrs)
        return output

    # Values -------------------------------------------------------------------------------------------

    def constant(self, array: Any, dtype: DType | None = None) -> Value:
        """A constant tensor; ``dtype`` converts a Python number or list."""
        array = np.asarray(array) if dtype is None else np.asarray(array).astype(dtype.numpy)
        return self.emit("constant", value=kept(array))

    def dim(self, exprs: Sequence[DimLike] | DimLike, dtype: DType = dtypes.I64) -> Value:
        """The values of dimensions as an integer tensor: rank 0 for one expression, rank 1 for a sequence."""
        scalar = not isinstance(exprs, Sequence)
        exprs = (exprs,) if scalar else tuple(exprs)
        if all(isinstance(expr, int) for expr in exprs):
            return self.constant(exprs[0] if scalar else np.array(exprs, np.int64), dtype)
        value = self.emit("dim", exprs=exprs, shape=() if scalar else (len(exprs),))
        return self.convert(value, dtype)

    def bind_dim(self, scalar: Value, hint: str = "d", lo: DimLike = 0, hi: DimLike | None = None) -> DimLike:
        """Turns the run-time value of an i64 scalar into a dimension symbol."""
        expr = self.fresh_symbol(hint, lo, hi)
        self.emit_all("bind_dim", (scalar,), {"symbol": str(expr)})
        return expr

    # Elementwise --------------------------------------------------------------------------------------

    def map(self, fn: str, *inputs: Value) -> Value:
        """An elementwise function of tensors of one shape (see ``ir/elementwise.py`` for the table)."""
        return self.emit("map", *inputs, fn=fn)

    def nary(self, fn: str, *inputs: Value) -> Value:
        """An elementwise function with NumPy broadcasting."""
        shape = self.broadcast_shape(*(value.shape for value in inputs))
        return self.map(fn, *(self.broadcast_to(value, shape) for value in inputs))

    def scalar_like(self, number: float, value: Value) -> Value:
        """A rank-0 constant of a value's dtype, broadcast to its shape."""
        return self.broadcast_to(self.constant(number, value.dtype), value.shape)

    def convert(self, value: Value, dtype: DType, *, saturate: bool = True) -> Value:
        """A cast as ONNX Cast defines it; ``saturate`` matters for f8 kinds only."""
        return value if value.dtype == dtype else self.emit("convert", value, dtype=dtype, saturate=saturate)

    # Shapes -------------------------------------------------------------------------------------------

    @staticmethod
    def broadcast_shape(*shapes: Shape) -> Shape:
        """The NumPy broadcast of shapes. Raises DimError where static extents disagree."""
        rank = max(map(len, shapes), default=0)
        result: list[DimLike] = [1] * rank
        for shape in shapes:
            for k, extent in enumerate(shape, rank - len(shape)):
                result[k] = dims.bcast(result[k], extent)
        return tuple(result)

    def broadcast_to(self, value: Value, shape: Sequence[DimLike]) -> Value:
        """NumPy broadcasting to a shape: axes align at the right."""
        shape = tuple(shape)
        axes = tuple(range(len(shape) - value.rank, len(shape)))
        return value if value.shape == shape else self.emit("broadcast", value, shape=shape, axes=axes)

    def reshape(self, value: Value, shape: Sequence[DimLike]) -> Value:
        """The same elements in row-major order under another shape (all extents given)."""
        shape = tuple(shape)
        return value if value.shape == shape else self.emit("reshape", value, shape=shape)

    def transpose(self, value: Value, perm: Sequence[int]) -> Value:
        """out.shape[k] == in.shape[perm[k]], as NumPy's."""
        perm = tuple(perm)
        return value if perm == tuple(range(value.rank)) else self.emit("transpose", value, perm=perm)

    def slice(self, value: Value, start: Sequence[DimLike], size: Sequence[DimLike], step: Sequence[int] | None = None) -> Value:
        """out[i, ...] = in[start + i * step, ...] for i < size, per axis; steps may be negative."""
        step = tuple(step) if step is not None else (1,) * value.rank
        start, size = tuple(start), tuple(size)
        if size == value.shape and all(first == 0 for first in start) and set(step) <= {1}:
            return value
        return self.emit("slice", value, start=start, size=size, step=step)

    def slice_axis(self, value: Value, axis: int, start: DimLike, size: DimLike, step: int = 1) -> Value:
        """A slice along one axis."""
        starts, sizes, steps = [0] * value.rank, list(value.shape), [1] * value.rank
        starts[axis], sizes[axis], steps[axis] = start, size, step
        return self.slice(value, starts, sizes, steps)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """Joins values along an axis."""
        return values[0] if len(values) == 1 else self.emit("concat", *values, axis=axis % values[0].rank)

    def reduce(self, fn: str, value: Value, axes: Sequence[int], *, keepdims: bool = False) -> Value:
        """Reduces axes; ``keepdims`` leaves them with extent 1."""
        axes = tuple(sorted(axis % value.rank for axis in axes))
        reduced = self.emit("reduce", value, fn=fn, axes=axes) if axes else value
        shape = tuple(1 if k in axes else extent for k, extent in enumerate(value.shape))
        return self.reshape(reduced, shape) if keepdims else reduced

    def iota(self, shape: Sequence[DimLike], axis: int = 0, dtype: DType = dtypes.I64) -> Value:
        """The index along an axis, as a tensor."""
        return self.emit("iota", shape=tuple(shape), axis=axis, dtype=dtype)
