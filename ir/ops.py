"""The registry of core ops: the type rule and the NumPy meaning of each, by name.

The ops themselves are declared in ``ir/ops_*.py``, one ``OpSpec`` each; ``ir/README.md`` says how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tcompile.errors import InvalidModelError
from tcompile.ir import (
    ops_bytes,
    ops_contraction,
    ops_control,
    ops_gathered,
    ops_indexing,
    ops_interleaved,
    ops_layout,
    ops_movement,
    ops_order,
    ops_pointwise,
    ops_reduction,
    ops_strassen,
    ops_structure,
    ops_trees,
    ops_winograd,
)
from tcompile.ir.dims import DimError
from tcompile.ir.graph import Graph, TensorType
from tcompile.ir.opspec import KINDS, REGISTRY, OpSpec, RuleError

SUBJECTS = (
    ops_structure, ops_movement, ops_indexing, ops_order, ops_contraction, ops_reduction, ops_control, ops_layout, ops_pointwise,
    ops_interleaved, ops_bytes, ops_winograd, ops_strassen, ops_gathered, ops_trees,
)  # fmt: skip


def spec(op: str) -> OpSpec:
    """The declaration of an op. Raises InvalidModelError for an unknown one."""
    found = REGISTRY.get(op)
    if found is None:
        raise InvalidModelError(f"expected a core op, got {op!r}", hint=f"one of {', '.join(sorted(REGISTRY))}")
    return found


def infer(
    op: str, types: Sequence[TensorType], attrs: Mapping[str, Any] | None = None, regions: Sequence[Graph] = ()
) -> tuple[TensorType, ...]:
    """The types of an op's outputs. Raises InvalidModelError that names the op, what it expected and what it got."""
    declared, attrs = spec(op), attrs or {}
    try:
        _check_form(declared, types, attrs, regions)
        return tuple(declared.infer(tuple(types), declared.complete(attrs), tuple(regions)))
    except (RuleError, DimError) as error:
        given = ", ".join(map(str, types))
        raise InvalidModelError(f"{op}({given}): {error}", hint=declared.doc.splitlines()[0]) from error


def evaluate(
    op: str,
    arrays: Sequence[np.ndarray],
    attrs: Mapping[str, Any] | None = None,
    regions: Sequence[Graph] = (),
    env: dict[str, int] | None = None,
) -> tuple[np.ndarray, ...]:
    """What an op computes, by NumPy. ``env`` holds the symbols' values, and receives those that the op binds.

    Raises ExecutionError for what stops a run: an index out of range, extents that do not fit.
    """
    declared = spec(op)
    env = {} if env is None else env
    return tuple(declared.evaluate(tuple(arrays), declared.complete(attrs or {}), tuple(regions), env))


def _check_form(declared: OpSpec, types: Sequence[TensorType], attrs: Mapping[str, Any], regions: Sequence[Graph]) -> None:
    fewest, most = declared.operands
    if len(types) < fewest or (most is not None and len(types) > most):
        wanted = f"{fewest} or more" if most is None else str(fewest) if fewest == most else f"{fewest} to {most}"
        raise RuleError(f"{wanted} operands", len(types))
    if len(regions) != declared.regions:
        raise RuleError(f"{declared.regions} regions", len(regions))
    for name, value in attrs.items():
        kind = declared.attrs.get(name)
        if kind is None:
            raise RuleError(f"attributes among {', '.join(declared.attrs) or '(none)'}", name)
        if not KINDS[kind](value):
            raise RuleError(f"the attribute {name} to be {kind}", repr(value))
    missing = declared.attrs.keys() - attrs.keys() - declared.defaults.keys()
    if missing:
        raise RuleError(f"the attribute {min(missing)}", "none")
