"""How a core op is declared: one ``OpSpec`` with its type rule, its NumPy meaning and its tolerance.

``ir/ops_*.py`` declare the ops by subject; ``ir/ops.py`` is the registry that everybody else reads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from tcompile.errors import InvalidModelError
from tcompile.ir import dims
from tcompile.ir.dims import Dim, DimLike, Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Graph, TensorType

Env = dict[str, int]  # the value of every symbol bound so far
Types = tuple[TensorType, ...]
Attrs = Mapping[str, Any]
Regions = tuple[Graph, ...]
Arrays = tuple[np.ndarray, ...]
Infer = Callable[[Types, Attrs, Regions], Types]
Evaluate = Callable[[Arrays, Attrs, Regions, Env], Arrays]


class RuleError(Exception):
    """A type rule that does not hold; ``ops.infer`` adds the op's name and raises InvalidModelError."""

    def __init__(self, expected: object, got: object) -> None:
        super().__init__(f"expected {expected}, got {got}")


@dataclass(frozen=True)
class Tolerance:
    """The error a backend may have against ``evaluate``: units in the last place of the result's dtype.

    ``grows``: the error of an accumulation grows with the square root of the number of terms, relative to the sum
    of the terms' magnitudes.
    """

    ulp: float = 0.0
    grows: bool = False

    def relative(self, dtype: DType, terms: int = 1) -> float:
        """The relative error allowed; 0 for integers and bools."""
        if not dtype.is_float:
            return 0.0
        eps = float(ml_dtypes.finfo(dtype.numpy).eps)
        return self.ulp * eps * (math.sqrt(max(terms, 1)) if self.grows else 1.0)


EXACT = Tolerance()


@dataclass(frozen=True)
class OpSpec:
    """The one declaration of a core op.

    ``operands`` is the fewest and the most operands (None: any number). ``attrs`` maps each attribute to its
    kind (a key of ``KINDS``); ``defaults`` gives those that may be absent. ``infer`` gets operand types, complete
    attrs and regions and raises RuleError; ``evaluate`` gets arrays instead of types, and the environment of
    symbol values, in which it also binds the symbols the op defines.
    """

    name: str
    doc: str
    operands: tuple[int, int | None]
    infer: Infer
    evaluate: Evaluate
    attrs: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    regions: int = 0
    tolerance: Tolerance = EXACT

    def complete(self, attrs: Attrs) -> Attrs:
        """The attributes with defaults filled in."""
        return {**self.defaults, **attrs} if self.defaults else attrs


REGISTRY: dict[str, OpSpec] = {}


def register(spec: OpSpec) -> OpSpec:
    """Adds an op; a name is declared once."""
    if spec.name in REGISTRY:
        raise InvalidModelError(f"the op {spec.name} is declared twice")
    REGISTRY[spec.name] = spec
    return spec


# Attribute kinds --------------------------------------------------------------------------------------------


def _is_int(value: Any) -> bool:
    return type(value) is int


def _is_dim(value: Any) -> bool:
    return type(value) is int or isinstance(value, Dim)


def _all(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and all(map(check, value))


KINDS: dict[str, Callable[[Any], bool]] = {
    "int": _is_int,
    "ints": _all(_is_int),
    "int pairs": _all(_all(_is_int)),
    "dim": _is_dim,
    "dim or none": lambda value: value is None or _is_dim(value),
    "dims": _all(_is_dim),
    "str": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "dtype": lambda value: isinstance(value, DType),
    "array": lambda value: isinstance(value, np.ndarray),
    "tuples": _all(lambda value: isinstance(value, tuple)),
}


# What type rules say ----------------------------------------------------------------------------------------


def need(holds: bool, expected: object, got: object) -> None:
    """Raises RuleError unless the rule holds. ``expected`` and ``got`` are formatted only then."""
    if not holds:
        raise RuleError(expected, got)


def need_axis(axis: int, rank: int) -> None:
    """An axis of a tensor of a rank; negative axes never appear in the IR."""
    need(0 <= axis < rank, f"an axis in [0, {rank})", axis)


def need_axes(axes: Sequence[int], rank: int) -> None:
    """Strictly increasing axes of a tensor of a rank."""
    ordered = all(0 <= axis < rank for axis in axes) and all(a < b for a, b in itertools.pairwise(axes))
    need(ordered, f"strictly increasing axes in [0, {rank})", axes)


def need_choice(value: str, choices: Sequence[str]) -> None:
    """One of a few words."""
    need(value in choices, f"one of {', '.join(choices)}", value)


def need_length(name: str, value: Sequence[Any], length: int) -> None:
    """An attribute with one entry per axis."""
    if len(value) != length:
        raise RuleError(f"{name} with {length} entries", value)


def need_scalar(type_: TensorType, dtype: DType, what: str) -> None:
    """A rank-0 operand of a dtype."""
    if type_.dtype != dtype or type_.shape:
        raise RuleError(f"{what}: a scalar {dtype}", type_)


def differ(a: DimLike, b: DimLike) -> bool:
    """Whether two extents can never be equal."""
    if a is b or a == b:
        return False
    gap = a - b
    return isinstance(gap, int) and gap != 0


def shapes_differ(a: Shape, b: Shape) -> bool:
    """Whether two shapes can never be equal."""
    return len(a) != len(b) or any(map(differ, a, b))


# What evaluations use ---------------------------------------------------------------------------------------


def concrete(shape: Sequence[DimLike], env: Env) -> tuple[int, ...]:
    """The extents under the environment."""
    return tuple(extent if isinstance(extent, int) else dims.evaluate(extent, env) for extent in shape)


def need_extents(extents: Shape) -> None:
    """Extents of a tensor: no constant below 0."""
    if any(isinstance(extent, int) and extent < 0 for extent in extents):
        raise RuleError("extents of at least 0", extents)
