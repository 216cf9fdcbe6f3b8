"""What a model with host ops takes and gives: tensors, strings, sequences, optionals and maps, checked at entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcompile.errors import InputError
from tcompile.runtime.arrays import as_input
from tcompile.runtime.dtypes import Element, element
from tcompile.runtime.host_ops import STRING, strings
from tcompile.runtime.specs import TensorSpec

Bounds = tuple[int, int | None]
_STRINGS = Element("string", STRING, np.dtype(object))


@dataclass(frozen=True)
class HostType:
    """``kind``: tensor, sequence, optional or map. A shape of None is of any rank, an extent of None any number."""

    kind: str
    element: Element | None = None
    shape: tuple[int | str | None, ...] | None = None
    of: HostType | None = None

    def __str__(self) -> str:
        if self.kind != "tensor":
            return f"{self.kind}({self.of})"
        extents = "..." if self.shape is None else ", ".join("?" if extent is None else str(extent) for extent in self.shape)
        return f"{self.element}[{extents}]"


@dataclass(frozen=True)
class HostSpec:
    """An input or output of a model with host ops. ``ranges``: for each named extent the least and greatest value."""

    name: str
    type: HostType
    ranges: Mapping[str, Bounds]
    growing: bool = True

    @property
    def element(self) -> Element | None:
        """The element type of a tensor; None for others."""
        return self.type.element

    @property
    def dtype(self) -> np.dtype | None:
        """The NumPy type of a tensor's arrays: object for strings."""
        return None if self.type.element is None else self.type.element.numpy

    @property
    def optional(self) -> bool:
        """Whether the input may be left out."""
        return self.type.kind == "optional"

    @property
    def shape(self) -> tuple[int | str | None, ...] | None:
        """The shape of a tensor; None for others, and where the rank is not known."""
        return self.type.shape

    def __str__(self) -> str:
        return f"{self.name}: {self.type}"


def read_type(content: Mapping[str, Any]) -> HostType:
    """A type as the artifact holds it."""
    if content["kind"] == "tensor":
        shape = content["shape"]
        number = content["dtype"]
        found = _STRINGS if number == STRING else element(number) if number else None
        return HostType("tensor", found, None if shape is None else tuple(shape))
    return HostType(content["kind"], of=read_type(content["of"]))


def checked(value: Any, spec: HostSpec, extents: dict[str, int]) -> Any:
    """A value in the form that host ops take. ``extents`` collects what named extents are. Raises InputError for one that does not fit."""
    return _checked(value, spec.name, spec.type, spec.ranges, extents)


def _checked(value: Any, name: str, type_: HostType, ranges: Mapping[str, Bounds], extents: dict[str, int]) -> Any:
    match type_.kind:
        case "optional":
            return None if value is None else _checked(value, name, type_.of, ranges, extents)
        case "sequence":
            if not isinstance(value, list | tuple):
                raise InputError(f"input '{name}' is a {type(value).__name__}, expected a list: {type_}")
            return [_checked(item, f"{name}[{k}]", type_.of, ranges, {}) for k, item in enumerate(value)]
        case "map":
            if not isinstance(value, Mapping):
                raise InputError(f"input '{name}' is a {type(value).__name__}, expected a dict")
            return dict(value)
    return _tensor(value, name, type_, ranges, extents)


def _tensor(value: Any, name: str, type_: HostType, ranges: Mapping[str, Bounds], extents: dict[str, int]) -> np.ndarray:
    if type_.element is _STRINGS:
        array = strings(value)
    elif type(value) is np.ndarray and type_.element is not None and value.dtype == type_.element.numpy and value.flags.carray:
        array = value
    else:
        rank = np.ndim(value) if type_.shape is None else len(type_.shape)
        array = as_input(value, TensorSpec(name, type_.element, ("?",) * rank, {}))
    if type_.shape is None:
        return array
    if array.ndim != len(type_.shape):
        raise InputError(f"input '{name}' has shape {array.shape}, expected {type_}")
    for got, extent in zip(array.shape, type_.shape, strict=True):
        wanted = extents.setdefault(extent, got) if isinstance(extent, str) else extent
        low, high = ranges.get(extent, (0, None)) if isinstance(extent, str) else (0, None)
        if wanted not in (None, got) or got < low or (high is not None and got > high):
            raise InputError(f"input '{name}' has shape {array.shape}, expected {type_}" + _range(extent, wanted, low, high))
    return array


def _range(extent: int | str | None, wanted: int | None, low: int, high: int | None) -> str:
    if not isinstance(extent, str):
        return ""
    return (
        f" with {extent} = {wanted}"
        if wanted is not None and (high is None or wanted <= high) and wanted >= low
        else (f" with {extent} in {low}..{'' if high is None else high}")
    )
