"""The Graph IR as text: what ``print_graph`` writes, ``ir/text_parse.py`` reads back.

    graph "name" {
      symbols n in 1..64, m in 0..
      inputs %x: f32[n, 4], %c: bool[]
      %k: f32[4] = constant {value = (0.0, 1.0, 2.0, 3.0)}
      %w: f32[4, 512] = constant {value = #5be0c1d2a96f7e34}
      %y: f32[n, 512] = dot_general(%x, %w) {batch = ((), ()), contract = ((1,), (0,)), dtype = f32} from "MatMul_3"
      %r: f32[] = if(%c, %x) {shape_symbols = ()}
      region "then" {
        inputs %p: f32[n, 4]
        ...
        return %q
      }
      region "else" { ... }
      return %y as "logits", %r
    }

A constant of up to 16 elements stands in the text, one of equal elements as ``splat x``; any other is a content
hash, and ``constants`` gives the table that the parser needs. Names that the text cannot bear are quoted; names that
occur twice get a ``~number``.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.dims import Range
from tcompile.ir.graph import Graph, Node, Value
from tcompile.ir.ops import spec
from tcompile.ir.text_parse import parse_graph

__all__ = ["Names", "array_hash", "constants", "graph_lines", "is_splat", "node_lines", "parse_graph", "print_graph"]

INLINE_ELEMENTS = 16
_BARE = re.compile(r"[\w./~-]+", re.ASCII)


class Names:
    """The printed name of each value: its own name, made unique."""

    def __init__(self) -> None:
        self._texts: dict[Value, str] = {}
        self._taken: dict[str, int] = {}

    def __getitem__(self, value: Value) -> str:
        text = self._texts.get(value)
        if text is None:
            text = self._texts[value] = f"%{_name_text(self._unique(value.name))}"
        return text

    def _unique(self, name: str) -> str:
        number = self._taken.get(name)
        if number is None:
            self._taken[name] = 0
            return name
        while f"{name}~{number + 1}" in self._taken:
            number += 1
        self._taken[name] = number + 1
        return self._unique(f"{name}~{number + 1}")


def print_graph(graph: Graph) -> str:
    """The graph as text, symbols first. Equal structure and names print equal text."""
    return "\n".join(graph_lines(graph, Names())) + "\n"


def constants(graph: Graph) -> dict[str, np.ndarray]:
    """The arrays that the text refers to by hash."""
    table = {}
    for node in graph.walk():
        if node.op == "constant" and not _is_inline(node.attrs["value"]):
            table[array_hash(node.attrs["value"])] = node.attrs["value"]
    return table


def array_hash(array: np.ndarray) -> str:
    """A hash of an array's type, shape and bytes."""
    digest = hashlib.sha256(f"{dtypes.from_numpy(array.dtype)}{list(array.shape)}".encode())
    digest.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data if array.ndim else array.tobytes())
    return digest.hexdigest()[:16]


def graph_lines(graph: Graph, names: Names, keyword: str = "graph", indent: str = "") -> Iterator[str]:
    """The lines of a graph or region."""
    yield f"{indent}{keyword} {json.dumps(graph.name)} {{"
    inner = indent + "  "
    if keyword == "graph" and graph.symbols:
        yield f"{inner}symbols {', '.join(_symbol_text(name, range_) for name, range_ in graph.symbols.items())}"
    if graph.inputs:
        yield f"{inner}inputs {', '.join(_typed(value, names) for value in graph.inputs)}"
    for node in graph.nodes:
        yield from node_lines(node, names, inner)
    yield f"{inner}return {', '.join(_returns(graph, names))}".rstrip()
    yield f"{indent}}}"


def node_lines(node: Node, names: Names, indent: str = "") -> Iterator[str]:
    """The lines of a node, its regions below it."""
    outputs = ", ".join(_typed(value, names) for value in node.outputs)
    operands = ", ".join(names[value] for value in node.inputs)
    text = f"{outputs} = {node.op}" if outputs else node.op
    text += f"({operands})" if operands else ""
    if node.attrs:
        text += f" {{{', '.join(f'{name} = {attr_text(node.op, name, value)}' for name, value in node.attrs.items())}}}"
    if node.source:
        text += f" from {', '.join(map(json.dumps, node.source))}"
    yield indent + text
    for region in node.regions:
        yield from graph_lines(region, names, "region", indent)


def attr_text(op: str, name: str, value: Any) -> str:
    """An attribute value, by the kind that the op's declaration gives it."""
    return PRINTERS[spec(op).attrs[name]](value)


def _name_text(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name)


def _typed(value: Value, names: Names) -> str:
    return f"{names[value]}: {value.type}"


def _symbol_text(name: str, range_: Range) -> str:
    return f"{name} in {range_.lo}..{'' if range_.hi is None else range_.hi}"


def _returns(graph: Graph, names: Names) -> Iterator[str]:
    public = graph.output_names or tuple(value.name for value in graph.outputs)
    for value, name in zip(graph.outputs, public, strict=True):
        yield names[value] if names[value] == f"%{name}" else f"{names[value]} as {json.dumps(name)}"


# Attribute values -------------------------------------------------------------------------------------------


def _tuple_text(values: tuple[Any, ...], text: Callable[[Any], str] = str) -> str:
    return f"({', '.join(map(text, values))}{',' if len(values) == 1 else ''})"


def _nested_text(value: Any) -> str:
    return _tuple_text(value, _nested_text) if isinstance(value, tuple) else json.dumps(value)


def _is_inline(array: np.ndarray) -> bool:
    return array.size <= INLINE_ELEMENTS or is_splat(array)


def is_splat(array: np.ndarray) -> bool:
    """Whether all elements of an array have the same bits; at least one element."""
    if array.size == 0:
        return False
    flat = array.reshape(-1)
    probe = flat[:: max(1, flat.size // 8)]  # most arrays differ within a few elements
    return _same_bits(probe) and _same_bits(flat)


def _same_bits(flat: np.ndarray) -> bool:
    raw = np.ascontiguousarray(flat).view(np.dtype(f"u{flat.dtype.itemsize}"))
    return bool((raw == raw[0]).all())


def _array_text(array: np.ndarray) -> str:
    if array.size > 1 and is_splat(array):
        return f"splat {_element_text(array.reshape(-1)[0])}"
    if array.size <= INLINE_ELEMENTS:
        return _tuple_text(tuple(array.reshape(-1)), _element_text)
    return f"#{array_hash(array)}"


def _element_text(element: Any) -> str:
    dtype = dtypes.from_numpy(element.dtype)
    if dtype.is_float:
        return repr(float(element))  # exact: every float type is part of f64
    return str(bool(element)).lower() if dtype.kind == "b" else str(int(element))


PRINTERS: dict[str, Callable[[Any], str]] = {
    "int": str,
    "ints": _tuple_text,
    "int pairs": _nested_text,
    "dim": str,
    "dim or none": lambda value: "none" if value is None else str(value),
    "dims": _tuple_text,
    "str": json.dumps,
    "bool": lambda value: str(value).lower(),
    "dtype": str,
    "array": _array_text,
    "tuples": _nested_text,
}
