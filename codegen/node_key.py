"""What a node's kernels depend on, as a key: its structure with values numbered and symbols renamed.

Nodes of one key lower to the same kernels, applied to other values and symbols; so the layers of a model are
lowered once, like they are compiled once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tcompile.codegen.draft import Scope
from tcompile.ir.dims import Dim, Range, Symbol
from tcompile.ir.graph import Graph, Node, Value

_WORD = re.compile(r"[^\W\d]\w*(?!\w*\()")


class NodeKey:
    """``text`` is the key; ``values`` and ``symbols`` what its numbers stand for, in order."""

    def __init__(self, node: Node, scope: Scope) -> None:
        self.scope = scope
        self.values: list[Value] = []
        self.symbols: list[str] = []
        self._numbers: dict[Value, int] = {}
        self._names: dict[str, str] = {}
        self._dims: dict[Dim, str] = {}
        self._parts: list[str] = []
        self._node(node)
        for name in self.symbols:  # a range may name further symbols, which then join the list
            known = scope.ranges.get(name, Range())
            self._parts.append(f"{self._names[name]} in {self._format(known.lo)}..{self._format(known.hi)}")
        self.text = "\n".join(self._parts)

    def _node(self, node: Node) -> None:
        inputs = ", ".join(map(self._value, node.inputs))
        outputs = ", ".join(map(self._value, node.outputs))
        attrs = " ".join(f"{name}={self._format(node.attrs[name])}" for name in sorted(node.attrs))
        self._parts.append(f"{outputs} = {node.op}({inputs}) {attrs}")
        for region in node.regions:
            self._region(region)

    def _region(self, region: Graph) -> None:
        self._parts.append("region " + ", ".join(map(self._value, region.inputs)))
        for node in region.nodes:
            self._node(node)
        self._parts.append("yield " + ", ".join(map(self._value, region.outputs)))

    def _value(self, value: Value) -> str:
        number = self._numbers.get(value)
        if number is not None:
            return f"v{number}"
        number = self._numbers[value] = len(self.values)
        self.values.append(value)
        text = f"v{number}:{value.dtype}[{self._format(value.shape)}]"
        if value in self.scope.storage:
            text += f" in {self._format(self.scope.storage[value])}"
        scalar = self.scope.scalars.get(value)
        if scalar is None:
            return text
        attrs = " ".join(f"{name}={self._format(scalar.attrs[name])}" for name in sorted(scalar.attrs))
        return f"{text}<{scalar.op} {attrs}>"

    def _format(self, item: Any) -> str:
        match item:
            case Dim():
                return self._dim(item)
            case tuple() | list():
                return f"({', '.join(map(self._format, item))})"
            case np.ndarray():  # larger ones are operands: their values do not matter
                return repr(item.tolist()) + str(item.dtype) if item.size == 1 else f"array {item.dtype}{item.shape}"
            case Mapping():
                return f"{{{', '.join(f'{key}: {self._format(value)}' for key, value in sorted(item.items()))}}}"
        return repr(item)

    def _dim(self, expr: Dim) -> str:
        known = self._dims.get(expr)
        if known is None:
            known = self._dims[expr] = _renamed(expr, self._rename)
        return known

    def _rename(self, name: str) -> str:
        if name not in self._names:
            self._names[name] = f"s{len(self.symbols)}"
            self.symbols.append(name)
        return self._names[name]


def _renamed(expr: Dim, rename) -> str:
    """The text of an expression with its symbols renamed, in the order in which they stand."""
    if len(expr.terms) == 1:
        monomial, factor = expr.terms[0]
        if factor == 1 and len(monomial) == 1 and isinstance(monomial[0], Symbol):
            return rename(monomial[0].name)
    return _WORD.sub(lambda match: rename(match.group()), str(expr))
