"""Runs a graph, at any stage of the pipeline, with NumPy: the oracle of every test.

``interpret(graph, inputs)`` binds the entry symbols from the inputs' shapes and evaluates node by node through
the op registry; a value is dropped after its last use. ``float64=True`` first widens every float tensor of the
graph to f64 (``widen_floats``): the result is the reference for accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tcompile.errors import Error, ExecutionError, InputError
from tcompile.ir import dims, dtypes
from tcompile.ir.dims import Dim, DimError, Symbol
from tcompile.ir.graph import Graph, Node, Value
from tcompile.ir.ops import evaluate
from tcompile.ir.opspec import Env


def interpret(graph: Graph, inputs: Mapping[str, np.ndarray] | Sequence[np.ndarray], *, float64: bool = False) -> dict[str, np.ndarray]:
    """The graph's outputs by name. Inputs are given by name or in order.

    Raises InputError for inputs that do not fit the signature, ExecutionError (naming the node) for a run that
    stops: an index out of range, a dimension outside its range, extents that do not fit.
    """
    arrays = _in_order(graph, inputs)
    _check_dtypes(graph, arrays)
    env = bind_symbols(graph, arrays)
    if float64:
        from tcompile.ir.widen import widen_floats

        graph = widen_floats(graph)
        arrays = [array.astype(value.dtype.numpy) for array, value in zip(arrays, graph.inputs, strict=True)]
    names = graph.output_names or tuple(value.name for value in graph.outputs)
    return dict(zip(names, _run(graph, arrays, env, graph.symbols), strict=True))


def run_region(region: Graph, arrays: Sequence[np.ndarray], env: Env) -> list[np.ndarray]:
    """The outputs of a region; the environment is shared with the graph around it."""
    return _run(region, arrays, env, {})


def bind_symbols(graph: Graph, arrays: Sequence[np.ndarray]) -> Env:
    """The values of the symbols that input shapes hold. Raises InputError where shapes contradict the signature."""
    env: Env = {}
    pending = []
    for value, array in zip(graph.inputs, arrays, strict=True):
        if array.ndim != value.rank:
            raise InputError(f"input {value.name}: expected rank {value.rank} {value.type}, got shape {list(array.shape)}")
        for extent, got in zip(value.shape, array.shape, strict=True):
            name = lone_symbol(extent)
            if name is None:
                pending.append((value, extent, got))
            elif env.setdefault(name, got) != got:
                raise InputError(f"input {value.name}: {name} is {got}, but another input has {env[name]}")
    for value, extent, got in pending:
        wanted = dims.evaluate(extent, env)
        if wanted != got:
            raise InputError(f"input {value.name}: expected an extent of {extent} = {wanted}, got {got}")
    for name in env:
        check_range(name, graph, env)
    return env


def lone_symbol(extent: dims.DimLike) -> str | None:
    """The name, where an extent is nothing but a symbol."""
    if isinstance(extent, Dim) and len(extent.terms) == 1:
        (monomial, factor) = extent.terms[0]
        if factor == 1 and len(monomial) == 1 and isinstance(monomial[0], Symbol):
            return monomial[0].name
    return None


def check_range(name: str, graph: Graph, env: Env) -> None:
    """Raises InputError unless a symbol's value is in its range."""
    known = graph.symbols.get(name)
    if known is None:
        return
    low = _end(known.lo, env)
    high = _end(known.hi, env)
    if (low is not None and env[name] < low) or (high is not None and env[name] > high):
        raise InputError(f"the dimension {name} is {env[name]}, outside {known.lo}..{'' if known.hi is None else known.hi}")


def _end(end: dims.DimLike | None, env: Env) -> int | None:
    """The end of a range, as far as its own symbols are bound."""
    if end is None or dims.symbols(end) - env.keys():
        return None
    return dims.evaluate(end, env)


def _in_order(graph: Graph, inputs: Mapping[str, np.ndarray] | Sequence[np.ndarray]) -> list[np.ndarray]:
    names = [value.name for value in graph.inputs]
    if isinstance(inputs, Mapping):
        unknown = inputs.keys() - set(names)
        missing = [name for name in names if name not in inputs]
        if unknown or missing:
            raise InputError(f"expected the inputs {', '.join(names)}, got {', '.join(inputs) or 'none'}")
        return [np.asarray(inputs[name]) for name in names]
    if len(inputs) != len(names):
        raise InputError(f"expected {len(names)} inputs, got {len(inputs)}")
    return [np.asarray(array) for array in inputs]


def _check_dtypes(graph: Graph, arrays: Sequence[np.ndarray]) -> None:
    for value, array in zip(graph.inputs, arrays, strict=True):
        got = dtypes.from_numpy(array.dtype)
        if got != value.dtype:
            raise InputError(f"input {value.name}: expected {value.dtype}, got {got}")


def _run(graph: Graph, arrays: Sequence[np.ndarray], env: Env, ranges: Mapping[str, dims.Range]) -> list[np.ndarray]:
    values: dict[Value, np.ndarray] = dict(zip(graph.inputs, arrays, strict=True))
    dying = _last_uses(graph)
    for node, last in zip(graph.nodes, dying, strict=True):
        results = _evaluate_node(node, [values[value] for value in node.inputs], env)
        if node.op == "bind_dim":
            _check_bound(node, graph, env)
        values.update(zip(node.outputs, results, strict=True))
        for value in last:
            del values[value]
    return [values[value] for value in graph.outputs]


def _check_bound(node: Node, graph: Graph, env: Env) -> None:
    try:
        check_range(node.attrs["symbol"], graph, env)
    except InputError as error:
        raise ExecutionError(f"{_where(node)}: {error}") from error


def _evaluate_node(node: Node, arrays: Sequence[np.ndarray], env: Env) -> tuple[np.ndarray, ...]:
    try:
        results = evaluate(node.op, arrays, node.attrs, node.regions, env)
    except (ExecutionError, DimError) as error:
        if getattr(error, "located", False):
            raise
        located = ExecutionError(f"{_where(node)}: {error}")
        located.located = True
        raise located from error
    for value, array in zip(node.outputs, results, strict=True):
        if array.dtype != value.dtype.numpy or array.ndim != value.rank or not _fits(array, value, env):
            raise Error(f"{_where(node)}: evaluation gave {array.dtype}{list(array.shape)} for {value.name}: {value.type}")
    return results


def _fits(array: np.ndarray, value: Value, env: Env) -> bool:
    return all(
        got == (extent if isinstance(extent, int) else dims.evaluate(extent, env))
        for got, extent in zip(array.shape, value.shape, strict=True)
    )


def _where(node: Node) -> str:
    return f"{node.op} ({', '.join(node.source)})" if node.source else node.op


def _last_uses(graph: Graph) -> list[list[Value]]:
    """For each node, the values that no later node needs."""
    kept = set(graph.outputs)
    dying: list[list[Value]] = []
    for node in reversed(graph.nodes):
        last = [value for value in dict.fromkeys((*node.outputs, *node.inputs)) if value not in kept]
        kept.update(last)
        dying.append(last)
    return dying[::-1]
