"""One node to kernels: a template where one takes it, else the naive loops of its op under the default schedule.

Which templates and which schedule is a matter of the target's backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tcompile.codegen import cpu_schedule, cpu_templates, cuda_schedule, cuda_templates
from tcompile.codegen.canonical import canonical
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.inline import INLINABLE
from tcompile.codegen.lower_blocked import (
    lower_conv_blocked,
    lower_conv_interleaved,
    lower_conv_pointwise,
    lower_conv_stem,
    lower_depthwise,
    lower_dot_interleaved,
    lower_dot_packed,
)
from tcompile.codegen.lower_contraction import lower_conv, lower_dot
from tcompile.codegen.lower_map import lower_dims, lower_map
from tcompile.codegen.lower_random import lower_random
from tcompile.codegen.lower_rows import lower_arg_reduce, lower_reduce, lower_rows
from tcompile.codegen.lower_scatter import lower_compact, lower_scatter_elements, lower_scatter_nd
from tcompile.codegen.lower_sort import lower_sort
from tcompile.codegen.lower_trees import lower_tree_scores
from tcompile.codegen.lower_window import lower_cumulative, lower_reduce_window
from tcompile.codegen.node_key import NodeKey
from tcompile.codegen.templates import Built, from_template, key_of
from tcompile.ir import dims
from tcompile.ir.dims import Shape
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Node, TensorType, Value
from tcompile.ir.loops import Kernel
from tcompile.ir.target import Target

assert cpu_templates.ALL and cuda_templates.ALL  # registered by being imported

Schedule = Callable[[Draft, Target], list[Built]]
SCHEDULES: dict[str, Schedule] = {"cpu": cpu_schedule.scheduled, "cuda": cuda_schedule.scheduled}  # by the target's backend

_NAIVE: dict[str, Callable[[Node, Scope], list[Draft]]] = {
    **dict.fromkeys(sorted(INLINABLE - {"constant", "dim"}), lower_map),
    "dim": lower_dims,
    "fused.map": lower_map,
    "fused.rows": lower_rows,
    "reduce": lower_reduce,
    "arg_reduce": lower_arg_reduce,
    "reduce_window": lower_reduce_window,
    "cumulative": lower_cumulative,
    "dot_general": lower_dot,
    "conv": lower_conv,
    "dot_packed": lower_dot_packed,
    "conv_blocked": lower_conv_blocked,
    "conv_pointwise": lower_conv_pointwise,
    "conv_stem": lower_conv_stem,
    "conv_interleaved": lower_conv_interleaved,
    "dot_interleaved": lower_dot_interleaved,
    "depthwise_blocked": lower_depthwise,
    "scatter_nd": lower_scatter_nd,
    "scatter_elements": lower_scatter_elements,
    "compact": lower_compact,
    "sort": lower_sort,
    "rng_bits": lower_random,
    "tree_scores": lower_tree_scores,
}


@dataclass(frozen=True, eq=False)
class Launch:
    """A canonical kernel applied: the values of its parameters and the symbols of its dims; ``scratch`` as in ``Built``."""

    kernel: Kernel
    values: tuple[Value, ...]
    symbols: tuple[str, ...]
    scratch: tuple[Value, ...] = ()


def has_naive(node: Node) -> bool:
    """Whether ``naive`` knows the op."""
    return key_of(node) in _NAIVE


def naive(node: Node, scope: Scope) -> list[Draft]:
    """The unscheduled kernels of a node."""
    return _NAIVE[key_of(node)](node, scope)


def launches(node: Node, scope: Scope, target: Target) -> list[Launch] | None:
    """The kernels of a node in the order they run; None where the op has neither template nor naive loops."""
    built: list[Draft | Built] | None = from_template(node, scope, target)
    if built is None and not has_naive(node):
        return None
    return [launch for made in (naive(node, scope) if built is None else built) for launch in launches_of(made, scope, target)]


def launches_of(made: Draft | Built, scope: Scope, target: Target) -> list[Launch]:
    """The kernels of a draft, scheduled and canonical."""
    found = []
    for one in SCHEDULES[target.backend](made, target) if isinstance(made, Draft) else [made]:
        kernel, symbols = canonical(one.kernel, scope.ranges)
        if one.scratch:
            places = ",".join(str(k) for k, value in enumerate(one.values) if value in one.scratch)
            kernel = replace(kernel, tags={**kernel.tags, "scratch": places})
        found.append(Launch(kernel, one.values, symbols, one.scratch))
    return found


@dataclass(frozen=True, eq=False)
class _Scratch:
    """Memory between kernels, its shape over the numbered symbols of a key."""

    name: str
    dtype: DType
    shape: Shape


@dataclass(frozen=True, eq=False)
class _Known:
    """A launch with the positions of values and symbols in their key; scratch values stand behind those of the key."""

    kernel: Kernel
    values: tuple[int, ...]
    symbols: tuple[int, ...]
    scratch: tuple[int, ...]


class Launches:
    """``launches`` that lowers nodes of equal structure once."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._known: dict[str, tuple[list[_Known], list[_Scratch]] | None] = {}

    def of(self, node: Node, scope: Scope) -> list[Launch] | None:
        """As ``launches(node, scope, target)``."""
        key = NodeKey(node, scope)
        if key.text not in self._known:
            found = launches(node, scope, self.target)
            self._known[key.text] = None if found is None else _positions(found, key)
        known = self._known[key.text]
        if known is None:
            return None
        calls, scratch = known
        names = {f"{k}": dims.symbol(name) for k, name in enumerate(key.symbols)}
        values = [*key.values, *(_fresh(one, names) for one in scratch)]
        return [
            Launch(
                call.kernel,
                tuple(values[k] for k in call.values),
                tuple(key.symbols[k] for k in call.symbols),
                tuple(values[k] for k in call.scratch),
            )
            for call in calls
        ]


def _fresh(scratch: _Scratch, names: dict[str, dims.DimLike]) -> Value:
    shape = tuple(dims.substitute(extent, names) for extent in scratch.shape)
    return Value(scratch.name, TensorType(scratch.dtype, shape))


def _positions(found: list[Launch], key: NodeKey) -> tuple[list[_Known], list[_Scratch]]:
    values = {value: k for k, value in enumerate(key.values)}
    symbols = {name: k for k, name in enumerate(key.symbols)}
    numbers = {name: dims.symbol(f"{k}") for name, k in symbols.items()}
    memory = dict.fromkeys(value for launch in found for value in launch.scratch)
    values.update({value: len(values) + k for k, value in enumerate(memory)})
    scratch = [_Scratch(one.name, one.dtype, tuple(dims.substitute(extent, numbers) for extent in one.shape)) for one in memory]
    return [
        _Known(
            launch.kernel,
            tuple(values[value] for value in launch.values),
            tuple(symbols[name] for name in launch.symbols),
            tuple(values[value] for value in launch.scratch),
        )
        for launch in found
    ], scratch
