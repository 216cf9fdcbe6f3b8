"""What a model takes and gives, as Python sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tcompile.runtime import abi
from tcompile.runtime.dtypes import Element, element

Bounds = tuple[int | str, int | str | None]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: a dimension is a number, or the text of an expression over named symbols.

    ``ranges``: for each symbol of an input's shape, the least and greatest value; None is unbounded.
    ``growing``: an output whose shape only a run knows. ``pitch``: (axis, symbol's number) where an array may be a view of one
    that is longer along the axis, and is not copied for it.
    """

    name: str
    element: Element
    shape: tuple[int | str, ...]
    ranges: dict[str, Bounds]
    growing: bool = False
    pitch: tuple[int, int] | None = None

    @property
    def dtype(self) -> np.dtype:
        """The NumPy type of arrays."""
        return self.element.numpy

    def __str__(self) -> str:
        return f"{self.name}: {self.element}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class SiteSpec:
    """A kernel call, the ONNX nodes it computes, and the choices of its schedule: template, tile, algorithm."""

    kernel: str
    nodes: tuple[str, ...]
    record: dict[str, str]


def tensor_specs(tensors: object, count: int, info: abi.ModuleInfo) -> tuple[TensorSpec, ...]:
    """The specs of a model's inputs or outputs."""
    bounds = symbol_bounds(info)
    return tuple(_tensor(tensors[i], bounds) for i in range(count))


def symbol_bounds(info: abi.ModuleInfo) -> dict[str, Bounds]:
    """The range of every symbol."""
    return {_text(symbol.name): _bounds(symbol) for symbol in info.symbols[: info.symbol_count]}


def features(info: abi.ModuleInfo) -> list[str]:
    """The CPU features that the code needs."""
    return [_text(name) for name in info.features[: info.feature_count]]


def call_specs(info: abi.ModuleInfo) -> tuple[SiteSpec, ...]:
    """Every kernel call in order."""
    return tuple(_site(site) for site in info.calls[: info.call_count])


def growing_specs(info: abi.ModuleInfo) -> tuple[SiteSpec, ...]:
    """Buffers whose size only a run knows: the tensor's name in place of the kernel's, and the ONNX nodes that write it."""
    return tuple(_site(site) for site in info.growing[: info.growing_count])


def notes(info: abi.ModuleInfo) -> dict[str, str]:
    """What the compiler wrote down."""
    return {_text(note.key): _text(note.value) for note in info.notes[: info.note_count]}


def _site(site: abi.Site) -> SiteSpec:
    nodes = tuple(_text(site.sources[i]) for i in range(site.source_count))
    return SiteSpec(_text(site.name), nodes, dict(pair.split("=", 1) for pair in _text(site.record).split(";") if "=" in pair))


def _tensor(tensor: abi.Tensor, bounds: dict[str, Bounds]) -> TensorSpec:
    shape = tuple(_dimension(extent) for extent in tensor.extents[: tensor.rank])
    ranges = {extent: bounds[extent] for extent in shape if isinstance(extent, str) and extent in bounds}
    pitch = (tensor.pitch_axis, tensor.pitch_symbol) if tensor.pitch_axis >= 0 else None
    return TensorSpec(_text(tensor.name), element(tensor.dtype), shape, ranges, bool(tensor.growing), pitch)


def _dimension(extent: abi.Extent) -> int | str:
    return extent.value if extent.kind == abi.CONST else _text(extent.text)


def _bounds(symbol: abi.Symbol) -> Bounds:
    return _dimension(symbol.lo), _dimension(symbol.hi) if symbol.hi.text is not None else None


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")
