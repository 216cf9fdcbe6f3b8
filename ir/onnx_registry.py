"""The table of ONNX operators: which handler imports an operator of a domain from which opset on."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

# Every module that registers handlers.
FAMILIES = (
    "onnx_elementwise",
    "onnx_shape",
    "onnx_tensor",
    "onnx_gather",
    "onnx_reduce",
    "onnx_matmul",
    "onnx_conv",
    "onnx_pool",
    "onnx_norm",
    "onnx_resize",
    "onnx_control",
    "onnx_sequence",
    "onnx_rnn",
    "onnx_quant",
    "onnx_sort",
    "onnx_attention",
    "onnx_einsum",
    "onnx_sample",
    "onnx_signal",
    "onnx_linalg",
    "onnx_ngrams",
    "onnx_random",
    "onnx_training",
    "onnx_gradient",
    "onnx_ml",
    "onnx_trees",
    "onnx_svm",
    "onnx_microsoft",
    "onnx_microsoft_attention",
    "onnx_microsoft_fused",
)

Handler = Callable[[Any], Any]


@dataclass(frozen=True)
class Registration:
    """One handler, valid for opsets >= ``since`` until a newer registration takes over."""

    op: str
    domain: str
    since: int
    handler: Handler


_TABLE: dict[tuple[str, str], list[Registration]] = {}


def onnx_op(*ops: str, since: int = 1, domain: str = "") -> Callable[[Handler], Handler]:
    """Registers ``handler(ctx: OpContext)`` for operators of a domain, from opset ``since`` on.

    The handler returns the node's outputs: one ``Value`` (or ``SequenceValue``, ``OptionalValue``), or a sequence of them.
    """

    def register(handler: Handler) -> Handler:
        for op in ops:
            entries = _TABLE.setdefault((domain, op), [])
            assert all(entry.since != since for entry in entries), f"{domain}.{op} is registered twice for opset {since}"
            entries.append(Registration(op, domain, since, handler))
            entries.sort(key=lambda entry: -entry.since)
        return handler

    return register


def find_handler(op: str, domain: str, opset: int) -> Handler | None:
    """The newest handler that is not newer than ``opset``."""
    load_families()
    return next((entry.handler for entry in _TABLE.get((domain, op), ()) if entry.since <= opset), None)


def registered() -> dict[tuple[str, str], list[Registration]]:
    """All registrations by (domain, op), newest first."""
    load_families()
    return {key: list(entries) for key, entries in _TABLE.items()}


@cache
def load_families() -> None:
    """Imports every family once; done on first use, because families import this module themselves."""
    for name in FAMILIES:
        importlib.import_module(f"tcompile.ir.{name}")
