"""Host ops: operators that Python runs between native segments, found by domain and name.

An implementation gets its operands (arrays; lists for sequences; None for an absent optional or an omitted operand; dicts
for maps) and what the node says, and gives one value or a tuple of them. Strings are object arrays of ``str``. The
implementations stand in ``host_sequences``, ``host_strings``, ``host_moves``, ``host_tables`` and ``host_images``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from tcompile.errors import ArtifactError, InputError

ML, MICROSOFT, OURS = "ai.onnx.ml", "com.microsoft", "tcompile"
STRING = 8  # TensorProto.STRING
_MODULES = ("host_sequences", "host_strings", "host_moves", "host_tables", "host_ngrams", "host_images")


@dataclass(frozen=True)
class HostNode:
    """What an implementation knows of its node: ``results`` is how many outputs are asked for."""

    opset: int = 1
    results: int = 1
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; the default where the node has none."""
        return self.attributes.get(name, default)


Implementation = Callable[[list[Any], HostNode], Any]
_TABLE: dict[tuple[str, str], Implementation] = {}


def host_op(*names: str, domain: str = "") -> Callable[[Implementation], Implementation]:
    """Registers the implementation of operators."""

    def register(implementation: Implementation) -> Implementation:
        for name in names:
            assert (domain, name) not in _TABLE, f"the host op {name} is registered twice"
            _TABLE[domain, name] = implementation
        return implementation

    return register


def implementation(domain: str, name: str) -> Implementation:
    """The implementation of an operator. Raises ArtifactError for one that this runtime does not have."""
    _load()
    found = _TABLE.get((domain, name))
    if found is None:
        where = f"{domain}.{name}" if domain else name
        raise ArtifactError(f"the model needs the host op {where}, which this runtime does not have", hint="update tcompile")
    return found


def registered() -> frozenset[tuple[str, str]]:
    """Every host op by domain and name."""
    _load()
    return frozenset(_TABLE)


@cache
def _load() -> None:
    for name in _MODULES:
        importlib.import_module(f"tcompile.runtime.{name}")


def strings(value: Any) -> np.ndarray:
    """Strings as an object array of str: of any of NumPy's string types, or of bytes in UTF-8. Raises InputError for others."""
    array = np.asarray(value)
    if array.dtype.kind in "UT":
        return array.astype(object)
    if array.dtype.kind not in "OS":
        raise InputError(f"strings are expected, not {array.dtype}")
    if array.dtype == object and all(type(item) is str for item in array.reshape(-1).tolist()):
        return array.copy()
    flat = np.empty(array.size, object)
    for k, item in enumerate(array.flat):
        if isinstance(item, bytes):
            item = item.decode("utf-8", "replace")
        if not isinstance(item, str):
            raise InputError(f"strings are expected, one is {item!r}, a {type(item).__name__}")
        flat[k] = str(item)
    return flat.reshape(array.shape)


def objects(items: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    """An object array of a shape; NumPy must not look into the items."""
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)
