"""Operators that compute on strings."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from tcompile.errors import Error
from tcompile.runtime.dtypes import element
from tcompile.runtime.host_ops import MICROSOFT, STRING, HostNode, host_op, objects

_SPECIAL = {"nan": "NaN", "inf": "INF", "-inf": "-INF"}


@host_op("StringConcat")
def string_concat(inputs: list[Any], node: HostNode) -> np.ndarray:
    """StringConcat (opset 20), with NumPy's broadcasting."""
    a, b = np.broadcast_arrays(*inputs)
    return objects([x + y for x, y in zip(a.flat, b.flat, strict=True)], a.shape)


@host_op("StringSplit")
def string_split(inputs: list[Any], node: HostNode) -> tuple[np.ndarray, np.ndarray]:
    """StringSplit (opset 20): pieces along a new last axis, filled up with empty strings, and their numbers."""
    x, limit = inputs[0], node.get("maxsplit", -1)
    rows = [text.split(node.get("delimiter") or None, limit) for text in x.flat]
    width = max(map(len, rows), default=0)
    pieces = [piece for row in rows for piece in row + [""] * (width - len(row))]
    return objects(pieces, (*x.shape, width)), np.array([len(row) for row in rows], np.int64).reshape(x.shape)


@host_op("StringNormalizer")
def string_normalizer(inputs: list[Any], node: HostNode) -> np.ndarray:
    """StringNormalizer (opset 10): drops stop words from [C] or [1, C], then changes the case. Cases follow Unicode, not a locale."""
    x, stops = inputs[0], node.get("stopwords") or []
    if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape[0] != 1):
        raise ValueError(f"strings of shape [C] or [1, C] are expected, not {list(x.shape)}")
    folded = (lambda text: text) if node.get("is_case_sensitive", 0) else str.lower
    dropped = {folded(word) for word in stops}
    change = {"LOWER": str.lower, "UPPER": str.upper}.get(node.get("case_change_action", "NONE"), str)
    kept = [change(text) for text in x.flat if folded(text) not in dropped] or [""]
    return objects(kept, (1, len(kept)) if x.ndim == 2 else (len(kept),))


@host_op("RegexFullMatch")
def regex_full_match(inputs: list[Any], node: HostNode) -> np.ndarray:
    """RegexFullMatch (opset 20): RE2's syntax."""
    match = compiled(node.get("pattern")).fullmatch
    return np.array([match(text) is not None for text in inputs[0].flat], bool).reshape(inputs[0].shape)


@cache
def compiled(pattern: str) -> Any:
    """A pattern in RE2's syntax: by RE2 where it is installed, else by Python's engine if the two agree on the pattern."""
    try:
        import re2
    except ImportError:
        if re.search(r"\\[pPCQEz]|\[\[:|\(\?[A-Za-z]*[UL]", pattern):
            message = f"the pattern {pattern!r} is one that Python's regular expressions read otherwise than RE2's"
            raise Error(message, hint="pip install google-re2") from None
        return re.compile(pattern)
    return re2.compile(pattern)


@host_op("Cast", "CastLike")
def cast(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Cast and CastLike from or to strings. Floats become their shortest text that reads back as the same number."""
    x = inputs[0]
    to = node.get("to")
    if to is None:
        to = STRING if inputs[1].dtype == object else None
    target = element(to).numpy if to not in (None, STRING) else None if to == STRING else inputs[1].dtype
    if target is None:
        return x if x.dtype == object else objects([_text(item) for item in x.flat], x.shape)
    read = _integer if target.kind in "iu" else _truth if target.kind == "b" else float
    return np.array([read(text) for text in x.flat]).astype(target).reshape(x.shape)


def _text(item: Any) -> str:
    text = str(item)
    return _SPECIAL.get(text, text)


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return int(float(text))


def _truth(text: str) -> bool:
    words = {"true": True, "false": False}
    return words[text.lower()] if text.lower() in words else float(text) != 0


@host_op("Tokenizer", domain=MICROSOFT)
def tokenizer(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Tokenizer (com.microsoft 1): [C] or [N, C] to tokens along a new last axis, filled up with ``pad_value``."""
    x = inputs[0]
    rows = [[token for token in _tokens(text, node) if len(token) >= node.get("mincharnum", 1)] for text in x.flat]
    if node.get("mark", 0) and any(rows):  # nothing to mark where there is no token at all
        rows = [["\x02", *row, "\x03"] for row in rows]
    width = max(map(len, rows), default=0)
    padded = [token for row in rows for token in row + [node.get("pad_value", "#")] * (width - len(row))]
    return objects(padded, (*x.shape, width))


def _tokens(text: str, node: HostNode) -> list[str]:
    expression, separators = node.get("tokenexp"), node.get("separators")
    if expression:
        return _found(compiled(expression).finditer, text)
    if not separators or separators == [""]:
        return list(text)
    pieces = [text]
    for separator in separators:
        pieces = [part for piece in pieces for part in compiled(separator).split(piece)]
    return [piece for piece in pieces if piece]


def _found(finditer: Callable[[str], Any], text: str) -> list[str]:
    return [match.group(0) for match in finditer(text)]
