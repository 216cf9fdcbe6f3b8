"""One node to kernels: a template where one takes it, else the naive loops of its op under the default schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tcompile.codegen import cpu_templates
from tcompile.codegen.canonical import canonical
from tcompile.codegen.cpu_schedule import schedule
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.inline import INLINABLE
from tcompile.codegen.lower_blocked import lower_conv_blocked, lower_conv_stem, lower_depthwise, lower_dot_packed
from tcompile.codegen.lower_contraction import lower_conv, lower_dot
from tcompile.codegen.lower_map import lower_dims, lower_map
from tcompile.codegen.lower_random import lower_random
from tcompile.codegen.lower_rows import lower_arg_reduce, lower_reduce, lower_rows
from tcompile.codegen.lower_scatter import lower_compact, lower_scatter_elements, lower_scatter_nd
from tcompile.codegen.lower_sort import lower_sort
from tcompile.codegen.lower_window import lower_cumulative, lower_reduce_window
from tcompile.codegen.node_key import NodeKey
from tcompile.codegen.templates import Built, from_template, key_of
from tcompile.ir.graph import Node, Value
from tcompile.ir.loops import Kernel
from tcompile.ir.target import Target

assert cpu_templates.ALL  # registered by being imported

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
    "conv_stem": lower_conv_stem,
    "depthwise_blocked": lower_depthwise,
    "scatter_nd": lower_scatter_nd,
    "scatter_elements": lower_scatter_elements,
    "compact": lower_compact,
    "sort": lower_sort,
    "rng_bits": lower_random,
}


@dataclass(frozen=True, eq=False)
class Launch:
    """A canonical kernel applied: the values of its parameters and the symbols of its dims."""

    kernel: Kernel
    values: tuple[Value, ...]
    symbols: tuple[str, ...]


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
    return [launch_of(made, scope, target) for made in (naive(node, scope) if built is None else built)]


def launch_of(made: Draft | Built, scope: Scope, target: Target) -> Launch:
    """One kernel, scheduled and canonical."""
    if isinstance(made, Draft):
        kernel, values = made.finish()
        kernel = schedule(kernel, made.nest.independent, made.nest.folds, target)
    else:
        kernel, values = made.kernel, made.values
    kernel, symbols = canonical(kernel, scope.ranges)
    return Launch(kernel, values, symbols)


class Launches:
    """``launches`` that lowers nodes of equal structure once."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._known: dict[str, list[tuple[Kernel, tuple[int, ...], tuple[int, ...]]] | None] = {}

    def of(self, node: Node, scope: Scope) -> list[Launch] | None:
        """As ``launches(node, scope, target)``."""
        key = NodeKey(node, scope)
        if key.text not in self._known:
            found = launches(node, scope, self.target)
            self._known[key.text] = None if found is None else [_positions(launch, key) for launch in found]
        known = self._known[key.text]
        if known is None:
            return None
        return [
            Launch(kernel, tuple(key.values[k] for k in values), tuple(key.symbols[k] for k in symbols))
            for kernel, values, symbols in known
        ]


def _positions(launch: Launch, key: NodeKey) -> tuple[Kernel, tuple[int, ...], tuple[int, ...]]:
    values = {value: k for k, value in enumerate(key.values)}
    symbols = {name: k for k, name in enumerate(key.symbols)}
    return launch.kernel, tuple(values[value] for value in launch.values), tuple(symbols[name] for name in launch.symbols)
