"""Reads the text of the Graph IR back (the grammar is shown in ``ir/text.py``).

Types are taken as written, not inferred: what parses may still break an invariant, and the verifier says so.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tcompile.errors import InvalidModelError
from tcompile.ir import dims, dtypes
from tcompile.ir.dims import DimError, Range
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Graph, Node, TensorType, Value
from tcompile.ir.ops import spec

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_BARE = re.compile(r"[\w./~-]+", re.ASCII)
_WORD = re.compile(r"\w+", re.ASCII)


def parse_graph(text: str, constants: Mapping[str, np.ndarray] | None = None) -> Graph:
    """The graph of a text. ``constants`` holds the arrays that it refers to by hash (``text.constants``).

    A line that starts with ``;`` is a comment. Raises InvalidModelError that names the line.
    """
    cursor = _Cursor(re.sub(r"^\s*;.*$", "", text, flags=re.MULTILINE))
    try:
        graph = _Parser(cursor, constants or {}, {}).graph("graph")
        cursor.end()
        return graph
    except (_SyntaxError, DimError, KeyError, ValueError, SyntaxError) as error:
        raise InvalidModelError(f"line {cursor.line}: {error}: {cursor.rest()!r}") from error


class _SyntaxError(Exception):
    pass


class _Cursor:
    """A place in the text; every read skips white space before it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    @property
    def line(self) -> int:
        return self.text.count("\n", 0, self.at) + 1

    def rest(self) -> str:
        """What is left of the line, for messages."""
        return self.text[self.at :].lstrip().split("\n", 1)[0][:60]

    def _skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def peek(self, token: str) -> bool:
        self._skip()
        return self.text.startswith(token, self.at)

    def take(self, token: str) -> bool:
        found = self.peek(token)
        self.at += len(token) * found
        return found

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise _SyntaxError(f"expected {token!r}")

    def match(self, pattern: re.Pattern[str], what: str) -> str:
        self._skip()
        found = pattern.match(self.text, self.at)
        if not found:
            raise _SyntaxError(f"expected {what}")
        self.at = found.end()
        return found.group()

    def word(self) -> str:
        return self.match(_WORD, "a word")

    def string(self) -> str:
        return json.loads(self.match(_STRING, "a string"))

    def until(self, ends: str) -> str:
        """The raw text up to one of ``ends`` outside all brackets and strings, which is not consumed."""
        self._skip()
        start, depth = self.at, 0
        while self.at < len(self.text):
            char = self.text[self.at]
            if depth == 0 and char in ends:
                return self.text[start : self.at].strip()
            if char == '"':
                self.string()
                continue
            depth += (char in "([{") - (char in ")]}")
            self.at += 1
        raise _SyntaxError(f"expected one of {ends!r}")

    def end(self) -> None:
        self._skip()
        if self.at < len(self.text):
            raise _SyntaxError("expected the end of the text")


class _Parser:
    """Parses one graph; regions share the cursor and the constants, not the values."""

    def __init__(self, cursor: _Cursor, constants: Mapping[str, np.ndarray], symbols: dict[str, Range]) -> None:
        self.cursor, self.constants, self.symbols = cursor, constants, symbols
        self.values: dict[str, Value] = {}

    def graph(self, keyword: str) -> Graph:
        cursor = self.cursor
        cursor.expect(keyword)
        name = cursor.string()
        cursor.expect("{")
        if cursor.take("symbols "):
            self._list(self._symbol)
        inputs = tuple(self._list(self._define)) if cursor.take("inputs ") else ()
        nodes = []
        while not cursor.take("return"):
            nodes.append(self._node())
        returned = [] if cursor.peek("}") else self._list(self._return)
        cursor.expect("}")
        outputs, names = tuple(value for value, _ in returned), tuple(name for _, name in returned)
        return Graph(name, inputs, outputs, nodes, self.symbols, names)

    def _list(self, item: Callable[[], Any]) -> list[Any]:
        items = [item()]
        while self.cursor.take(","):
            items.append(item())
        return items

    def _symbol(self) -> None:
        name = self.cursor.word()
        self.cursor.expect("in")
        line = re.compile(r"[^\n.]*")
        low = dims.parse(self.cursor.match(line, "a bound"))
        self.cursor.expect("..")
        high = re.compile(r"[ \t]*((?:[^\n,(]|\([^\n)]*\))*)").match(self.cursor.text, self.cursor.at)
        self.cursor.at = high.end()
        self.symbols[name] = Range(low, dims.parse(high.group(1)) if high.group(1).strip() else None)

    def _name(self) -> str:
        self.cursor.expect("%")
        return self.cursor.string() if self.cursor.peek('"') else self.cursor.match(_BARE, "a name")

    def _define(self) -> Value:
        name = self._name()
        self.cursor.expect(":")
        dtype = _dtype(self.cursor.word())
        self.cursor.expect("[")
        shape = _split(self.cursor.until("]"))
        self.cursor.expect("]")
        value = Value(name, TensorType(dtype, tuple(map(dims.parse, shape))))
        self.values[name] = value
        return value

    def _use(self) -> Value:
        name = self._name()
        if name not in self.values:
            raise _SyntaxError(f"%{name} is not defined above")
        return self.values[name]

    def _return(self) -> tuple[Value, str]:
        value = self._use()
        return value, self.cursor.string() if self.cursor.take("as ") else value.name

    def _node(self) -> Node:
        cursor = self.cursor
        if cursor.peek("%"):
            read = dict(self.values)  # a node cannot read its own outputs
            outputs = tuple(self._list(self._define))
            cursor.expect("=")
            self.values, defined = read, self.values
        else:
            outputs, defined = (), self.values
        op = cursor.word()
        inputs: tuple[Value, ...] = ()
        if cursor.take("("):
            inputs = tuple(self._list(self._use))
            cursor.expect(")")
        self.values = defined
        attrs = self._attrs(op, outputs)
        source = tuple(self._list(cursor.string)) if cursor.take("from ") else ()
        regions = tuple(_Parser(cursor, self.constants, self.symbols).graph("region") for _ in range(spec(op).regions))
        return Node(op, inputs, outputs, attrs, regions, source)

    def _attrs(self, op: str, outputs: tuple[Value, ...]) -> dict[str, Any]:
        attrs: dict[str, Any] = {}
        if not self.cursor.take("{"):
            return attrs
        while not self.cursor.take("}"):
            name = self.cursor.word()
            self.cursor.expect("=")
            kind = spec(op).attrs.get(name)
            if kind is None:
                raise _SyntaxError(f"{op} has no attribute {name}")
            text = self.cursor.until(",}")
            attrs[name] = self._array(text, outputs[0].type) if kind == "array" else READERS[kind](text)
            self.cursor.take(",")
        return attrs

    def _array(self, text: str, type_: TensorType) -> np.ndarray:
        if text.startswith("#"):
            if text[1:] not in self.constants:
                raise _SyntaxError(f"the constant {text} is not among those given")
            return self.constants[text[1:]]
        if text.startswith("splat "):
            return np.full(type_.shape, _element(text[6:], type_.dtype), type_.dtype.numpy)
        elements = [_element(part, type_.dtype) for part in _split(text[1:-1])]
        if len(elements) != math.prod(type_.shape):
            raise _SyntaxError(f"expected {math.prod(type_.shape)} elements, got {len(elements)}")
        return np.array(elements).astype(type_.dtype.numpy).reshape(type_.shape)


def _dtype(name: str) -> DType:
    if name not in dtypes.BY_NAME:
        raise _SyntaxError(f"{name} is no element type")
    return dtypes.BY_NAME[name]


def _element(text: str, dtype: DType) -> Any:
    if dtype.is_float:
        return np.float64(text)
    return text.strip() == "true" if dtype.kind == "b" else dtype.numpy.type(int(text))


def _split(text: str) -> list[str]:
    """Parts between commas outside brackets."""
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def _dims(text: str) -> tuple[dims.DimLike, ...]:
    return tuple(map(dims.parse, _split(text[1:-1])))


READERS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "ints": ast.literal_eval,
    "int pairs": ast.literal_eval,
    "dim": dims.parse,
    "dim or none": lambda text: None if text == "none" else dims.parse(text),
    "dims": _dims,
    "str": json.loads,
    "bool": lambda text: {"true": True, "false": False}[text],
    "dtype": _dtype,
    "tuples": ast.literal_eval,
}
