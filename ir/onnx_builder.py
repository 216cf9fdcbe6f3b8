"""The importer's builder: evaluates at once what is known at import time, and emits it only where it is used.

A value with a known content is *deferred*: no node makes it until an op that needs the tensor reads it. An
initializer that nothing reads, or a shape chain that ends in a reshape, leaves no trace in the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tcompile.ir import dims, dtypes, onnx_content
from tcompile.ir.build import Builder
from tcompile.ir.dims import DimLike
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Graph, Node, TensorType, Value
from tcompile.ir.onnx_content import Ratio
from tcompile.ir.ops import evaluate, infer

_FAR = 2**40  # beyond every extent
_FOLD_LIMIT = 1 << 14  # elements of a constant result that is computed here; larger ones are left to the folding pass
_CODES_LIMIT = 64  # elements up to which 8-bit integers are numbers like others; more are codes of quantised weights


def _is_codes(content: np.ndarray, wide: TensorType) -> bool:
    """Whether a conversion is that of quantised weights, which passes want as integers."""
    return content.dtype.kind in "iu" and content.dtype.itemsize == 1 and wide.dtype.bits > 8 and content.size > _CODES_LIMIT


class ImportBuilder(Builder):
    """A ``Builder`` that tracks contents; ``contents[value]`` is an array of items or expressions (see ``onnx_content``)."""

    def __init__(self, name: str = "graph", parent: Builder | None = None) -> None:
        super().__init__(name, parent)
        self.contents: dict[Value, np.ndarray] = {}
        self.deferred: set[Value] = set()
        self.integers: set[str] = parent.integers if isinstance(parent, ImportBuilder) else set()  # symbols of ``bind_integer``

    def region(self, name: str) -> ImportBuilder:
        return ImportBuilder(name, parent=self)

    def graph(self, outputs: Sequence[Value], output_names: Sequence[str] = ()) -> Graph:
        for value in outputs:
            self._materialise(value)
        return super().graph(outputs, output_names)

    def emit_all(
        self, op: str, inputs: Iterable[Value], attrs: dict[str, Any] | None = None, regions: Sequence[Graph] = (), name: str = ""
    ) -> tuple[Value, ...]:
        inputs, attrs, regions = tuple(inputs), dict(attrs or {}), tuple(regions)
        types = infer(op, tuple(value.type for value in inputs), attrs, regions)
        outputs = tuple(Value(name or f"v{next(self._numbers)}", type_) for type_ in types)
        content = self._evaluate(op, inputs, attrs, types)
        if content is not None:
            self.contents[outputs[0]] = content
            if onnx_content.is_known(content):
                self.deferred.add(outputs[0])
                return outputs
        for value in inputs:
            self._materialise(value)
        self.nodes.append(Node(op, inputs, outputs, attrs, regions, self.source))
        return outputs

    def known(self, content: Any, dtype: DType) -> Value:
        """A deferred value with a known content: an array, or nested lists of ints and expressions."""
        array = content if isinstance(content, np.ndarray) else _object_array(content)
        value = Value(f"v{next(self._numbers)}", TensorType(dtype, array.shape))
        self.contents[value] = onnx_content.settle(array, dtype)
        self.deferred.add(value)
        return value

    def dim(self, exprs: Sequence[DimLike] | DimLike, dtype: DType = dtypes.I64) -> Value:
        return self.known(exprs if isinstance(exprs, Sequence) else np.array(exprs, object), dtype)

    def bind_dim(self, scalar: Value, hint: str = "d", lo: DimLike = 0, hi: DimLike | None = None) -> DimLike:
        content = self.contents.get(scalar)
        if content is not None and onnx_content.is_known(content):
            return content.item() if content.dtype != object else content[()]
        bound = super().bind_dim(scalar, hint, lo, hi)
        self.contents[scalar] = np.array(bound, object)
        return bound

    def shorten(self, expr: DimLike, hint: str, lo: DimLike = 0, hi: DimLike | None = None) -> DimLike:
        """A new symbol in place of an expression that only makes those that use it long."""
        return expr if isinstance(expr, int) else super().bind_dim(self.dim(expr), hint, lo, hi)

    def bind_integer(self, scalar: Value, hint: str = "k") -> DimLike:
        """The run-time value of an i64 scalar of any sign as an expression, kept within 2**40 of 0.

        k == max(k, 0) - max(-k, 0), so that all symbols are at least 0.
        """
        content = self.contents.get(scalar)
        if content is not None and onnx_content.is_known(content):
            return self.bind_dim(scalar)
        near = self.map("max", self.map("min", scalar, self.constant(_FAR)), self.constant(-_FAR))
        zero, parts = self.constant(np.zeros((), np.int64)), []
        for part, name in ((near, hint), (self.map("neg", near), f"{hint}_below")):
            parts.append(self.bind_dim(self.map("max", part, zero), name))
        self.integers |= dims.shape_symbols(parts)
        return parts[0] - parts[1]

    def constant_of(self, value: Value) -> np.ndarray | None:
        """The array of a value that is constant."""
        content = self.contents.get(value)
        return None if content is None or (content.dtype == object) else content

    def _evaluate(self, op: str, inputs: tuple[Value, ...], attrs: dict[str, Any], types: Sequence[TensorType]) -> np.ndarray | None:
        if op == "constant":
            return attrs["value"]
        if len(types) != 1 or op == "rng_bits":
            return None
        contents = [self.contents.get(value) for value in inputs]
        if op == "reshape" and contents[0] is not None and contents[0].dtype != object and types[0].is_static:
            return contents[0].reshape(types[0].shape)  # a view: free at any size
        if all(content is not None and content.dtype != object for content in contents):
            foldable = types[0].is_static and types[0].size <= _FOLD_LIMIT and all(content.size <= _FOLD_LIMIT for content in contents)
            foldable = foldable and not (op == "convert" and _is_codes(contents[0], types[0]))
            return _fold(op, contents, attrs, types[0]) if foldable else None
        content = onnx_content.evaluate(op, contents, [value.type for value in inputs], attrs, self.symbols)
        return None if content is None else onnx_content.settle(content, types[0].dtype)

    def _materialise(self, value: Value) -> None:
        """Emits the node of a deferred value, just before its first use."""
        if value not in self.deferred:
            return
        self.deferred.remove(value)
        content = self.contents[value]
        if content.dtype != object:
            self.nodes.append(Node("constant", (), (value,), {"value": content}, (), self.source))
        elif value.dtype.is_float:
            self._emit_ratios(value, content)
        else:
            self._emit_dims(value, tuple(content.flat))

    def _emit_dims(self, value: Value, exprs: tuple[DimLike, ...]) -> None:
        exact = Value(f"v{next(self._numbers)}", TensorType(dtypes.I64, value.shape)) if value.dtype != dtypes.I64 else value
        self.nodes.append(Node("dim", (), (exact,), {"exprs": exprs, "shape": value.shape}, (), self.source))
        if exact is not value:
            self.nodes.append(Node("convert", (exact,), (value,), {"dtype": value.dtype, "saturate": True}, (), self.source))

    def _emit_ratios(self, value: Value, content: np.ndarray) -> None:
        ratios = [item if isinstance(item, Ratio) else Ratio(*float(item).as_integer_ratio()) for item in content.flat]
        parts = []
        for exprs in ([ratio.num for ratio in ratios], [ratio.den for ratio in ratios]):
            part = Value(f"v{next(self._numbers)}", value.type)
            self._emit_dims(part, tuple(exprs))
            parts.append(part)
        self.nodes.append(Node("map", tuple(parts), (value,), {"fn": "div"}, (), self.source))


def _object_array(content: Any) -> np.ndarray:
    """Nested lists of ints and expressions as an array (NumPy must not look into expressions)."""
    if not isinstance(content, Sequence):
        return np.array(content, object)
    array = np.empty(len(content), object)
    for k, item in enumerate(content):
        array[k] = item
    return array


def _fold(op: str, arrays: list[np.ndarray], attrs: dict[str, Any], type_: TensorType) -> np.ndarray | None:
    if any(isinstance(item, dims.Dim) for attr in attrs.values() for item in (attr if isinstance(attr, tuple) else (attr,))):
        return None  # a symbolic start, say
    result = evaluate(op, tuple(arrays), attrs)
    array = result[0] if isinstance(result, tuple | list) else result
    assert array.shape == type_.shape and array.dtype == type_.dtype.numpy, (op, array.shape, array.dtype, type_)
    return array
