"""Draws random well-typed ONNX graphs, and tracks how exact each value is.

Inputs are small multiples of 1/4, so that sums, products and comparisons of them are exact in floating point as long as
they stay small: then results must be equal bit for bit. A value that is ``Tracked`` knows

    bound   no element is larger in magnitude
    grain   the elements are multiples of 2**-grain, exactly; None: they are rounded, and off by up to ``noise``

An operation that is not continuous (floor, comparison, argmax, cast to an integer) takes exact values only; the noise of
all others follows from their derivative. ``Reject`` tells the generator to try another operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
EXTENTS = (1, 1, 2, 3, 4, 5, 7, 9, 16, 17)
MOST_ELEMENTS = 20_000
ROUNDINGS = 16  # units in the last place that one operation may err

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
INTEGERS = (TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8, TensorProto.INT8)
_PRECISION = {TensorProto.FLOAT: 24, TensorProto.DOUBLE: 53, TensorProto.FLOAT16: 11}
_LIMITS = {TensorProto.INT64: 2.0**62, TensorProto.INT32: 2.0**30, TensorProto.UINT8: 255.0, TensorProto.INT8: 127.0}
_LARGEST = {TensorProto.FLOAT: 1e6, TensorProto.DOUBLE: 1e9, TensorProto.FLOAT16: 1e3}


class Reject(Exception):
    """This operation does not fit the values at hand."""


def need(holds: object) -> None:
    """Rejects unless it holds."""
    if not holds:
        raise Reject


@dataclass(frozen=True)
class Tracked:
    """One value of the graph. ``shape`` is that of the first run; ``free`` says that another run may have another."""

    name: str
    kind: int  # TensorProto.DataType
    shape: tuple[int, ...]
    bound: float
    grain: int | None = 0
    noise: float = 0.0
    free: bool = False
    low: float | None = None  # no element is smaller; None: -bound

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        return self.kind in FLOATS

    @property
    def exact(self) -> bool:
        return self.grain is not None


@dataclass
class GraphDraw:
    """A graph under construction; operations choose with ``draw`` and friends, and add nodes with ``emit``."""

    data: st.DataObject
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[tuple[Tracked, tuple[int | str, ...]]] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    values: list[Tracked] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    sizes: dict[str, int] = field(default_factory=dict)
    count: int = 0

    # Choices ------------------------------------------------------------------------------------------

    def pick(self, options: Sequence[Any]) -> Any:
        """One of them; rejects where there is none."""
        need(len(options))
        return self.data.draw(st.sampled_from(list(options)))

    def integer(self, low: int, high: int) -> int:
        """A number in [low, high]."""
        return self.data.draw(st.integers(low, high))

    def flag(self) -> bool:
        """True or False."""
        return self.data.draw(st.booleans())

    def value(self, where: Callable[[Tracked], bool] = lambda value: True) -> Tracked:
        """A value of the graph; recent ones first."""
        fitting = [value for value in self.values if where(value)]
        need(fitting)
        return fitting[-1 - self.integer(0, len(fitting) - 1)]

    def extents(self, rank: int) -> tuple[int, ...]:
        """A shape of a rank."""
        shape = tuple(self.pick(EXTENTS) for _ in range(rank))
        need(math.prod(shape) <= MOST_ELEMENTS)
        return shape

    def array(self, kind: int, shape: Sequence[int]) -> np.ndarray:
        """Small exact values from a drawn seed."""
        return small_values(np.random.default_rng(self.integer(0, 2**16)), kind, shape)

    # Values -------------------------------------------------------------------------------------------

    def fresh(self) -> str:
        """A name."""
        self.count += 1
        return f"v{self.count}"

    def input(self, kind: int, rank: int) -> Tracked:
        """A new input; some of its extents are symbols, shared with other inputs."""
        shape, declared = [], []
        for extent in self.extents(rank):
            symbol = self.pick((None, None, "n", "m", "k"))
            shape.append(extent if symbol is None else self.sizes.setdefault(symbol, extent))
            declared.append(extent if symbol is None else symbol)
        need(math.prod(shape) <= MOST_ELEMENTS)
        free = any(isinstance(extent, str) for extent in declared)
        made = _tracked_input(self.fresh(), kind, tuple(shape), free)
        self.inputs.append((made, tuple(declared)))
        self.values.append(made)
        return made

    def constant(self, array: np.ndarray) -> str:
        """A new initializer; its name."""
        name = self.fresh()
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weights(self, kind: int, shape: Sequence[int]) -> Tracked:
        """A constant of small exact values."""
        array = self.array(kind, shape)
        return _tracked_input(self.constant(array), kind, tuple(shape), free=False)

    def ints(self, numbers: Sequence[int]) -> str:
        """A constant vector of i64; its name."""
        return self.constant(np.array(numbers, np.int64))

    # Nodes --------------------------------------------------------------------------------------------

    def node(self, op: str, inputs: Sequence[Tracked | str], outputs: int = 1, **attrs: Any) -> list[str]:
        """Adds a node; returns its outputs' names."""
        names = [item.name if isinstance(item, Tracked) else item for item in inputs]
        results = [self.fresh() for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, names, results, name=f"{op}_{len(self.nodes)}", **attrs))
        self.used.update(names)
        return results

    def emit(self, op: str, inputs: Sequence[Tracked | str], like: Tracked, shape: Sequence[int] | None = None, **attrs: Any) -> Tracked:
        """Adds a node whose one output is tracked as ``like``, under a shape."""
        made = _checked(renamed(like, "?", shape))  # before the node: what is rejected leaves nothing behind
        (name,) = self.node(op, inputs, **attrs)
        return self.keep(renamed(made, name))

    def keep(self, value: Tracked) -> Tracked:
        """Adds a value that a node gave."""
        self.values.append(_checked(value))
        return value

    # The end ------------------------------------------------------------------------------------------

    def model(self) -> onnx.ModelProto:
        """The model: what no node reads is an output."""
        graph = helper.make_graph(
            self.nodes,
            "fuzz",
            [helper.make_tensor_value_info(value.name, value.kind, declared) for value, declared in self.inputs],
            [helper.make_tensor_value_info(value.name, value.kind, [None] * value.rank) for value in self.outputs()],
            self.initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)

    def outputs(self) -> list[Tracked]:
        """The values that no node reads, and the last one."""
        given = {value.name for value, _ in self.inputs}
        return [value for value in self.values if value.name not in self.used and value.name not in given]


def small_values(rng: np.random.Generator, kind: int, shape: Sequence[int]) -> np.ndarray:
    """Multiples of 1/4 in [-4, 4], integers in [-4, 4] or [0, 4], or booleans."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    if kind == TensorProto.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if kind in FLOATS:
        return np.asarray(rng.integers(-16, 17, shape) / 4).astype(dtype)
    return np.asarray(rng.integers(0 if kind == TensorProto.UINT8 else -4, 5, shape)).astype(dtype)


def stays_exact(value: Tracked, growth: float) -> bool:
    """Whether an exact value is exact too where the axes that were summed over, squares at the most, are so many times longer."""
    if value.kind not in FLOATS or not value.exact:
        return value.exact
    return value.bound * growth**2 * 2.0**value.grain < 2.0 ** _PRECISION[value.kind]


def _tracked_input(name: str, kind: int, shape: tuple[int, ...], free: bool) -> Tracked:
    low = 0.0 if kind in (TensorProto.BOOL, TensorProto.UINT8) else None
    return Tracked(name, kind, shape, 1.0 if kind == TensorProto.BOOL else 4.0, 2 if kind in FLOATS else 0, free=free, low=low)


def renamed(value: Tracked, name: str, shape: Sequence[int] | None = None) -> Tracked:
    """The same under another name and shape."""
    shape = value.shape if shape is None else tuple(shape)
    return Tracked(name, value.kind, shape, value.bound, value.grain, value.noise, value.free, value.low)


def combined(kind: int, shape: Sequence[int], parts: Sequence[Tracked], bound: float, grain: int | None, noise: float = 0.0) -> Tracked:
    """What an operation gives: exact where all parts are and ``grain`` is one, else rounded a few times more."""
    free = any(part.free for part in parts)
    if kind not in FLOATS:
        return Tracked("?", kind, tuple(shape), bound, 0, 0.0, free)
    exact = grain is not None and all(part.exact for part in parts) and bound * 2.0**grain < 2.0 ** _PRECISION[kind]
    rounding = ROUNDINGS * bound * 2.0 ** -_PRECISION[kind]
    return Tracked("?", kind, tuple(shape), bound, grain if exact else None, 0.0 if exact else noise + rounding, free)


def _checked(value: Tracked) -> Tracked:
    """Rejects what grows out of its type, drowns in noise, or is too large to run."""
    need(value.size <= MOST_ELEMENTS and value.bound <= _LARGEST.get(value.kind, _LIMITS.get(value.kind, 1.0)))
    need(value.noise <= 0.02 * max(value.bound, 1e-3))
    return value
