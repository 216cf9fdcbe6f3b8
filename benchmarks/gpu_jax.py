"""A graph of core ops as a JAX function (XLA), for the comparison on a GPU; see ``gpu_torch.py``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tcompile.errors import UnsupportedError
from tcompile.ir.graph import Graph, Node
from tcompile.ir.ops_movement import source_indices

_MAPS = {
    **{name: name for name in (
        "abs", "acos", "acosh", "add", "asin", "asinh", "atan", "atan2", "atanh", "ceil", "cos", "cosh", "eq", "erf", "exp", "expm1",
        "floor", "ge", "gt", "le", "log", "log1p", "lt", "max", "min", "mul", "ne", "neg", "pow", "rsqrt", "sign", "sin", "sinh",
        "sqrt", "sub", "tan", "tanh", "div",
    )},
    "sigmoid": "logistic", "fmod": "rem", "and": "bitwise_and", "or": "bitwise_or", "not": "bitwise_not", "xor": "bitwise_xor",
}  # fmt: skip


def jax_function(graph: Graph) -> Callable[..., list[Any]]:
    """A function of arrays in the order of the graph's inputs, to be jitted. Raises UnsupportedError naming an op without translation."""
    import jax.numpy as jnp
    from jax import lax

    constants = {node.output: np.asarray(node.attrs["value"]) for node in graph.nodes if node.op == "constant"}
    steps = [(node, _step(lax, jnp, node)) for node in graph.nodes if node.op != "constant"]

    def run(*inputs: Any) -> list[Any]:
        values: dict[Any, Any] = {**constants, **dict(zip(graph.inputs, inputs, strict=True))}
        for node, function in steps:
            values[node.output] = function(*(jnp.asarray(values[value]) for value in node.inputs))
        return [values[value] for value in graph.outputs]

    return run


def _step(lax: Any, jnp: Any, node: Node) -> Callable[..., Any]:
    builder = _BUILDERS.get(node.op)
    if builder is None:
        raise UnsupportedError(f"JAX: no translation of {node.op} ({', '.join(node.source)})")
    return builder(lax, jnp, node.attrs, node)


def _map(lax: Any, jnp: Any, attrs: Mapping[str, Any], node: Node) -> Callable[..., Any]:
    fn = attrs["fn"]
    special = {
        "where": lambda c, a, b: jnp.where(c, a, b),
        "fma": lambda a, b, c: a * b + c,
        "recip": lambda a: 1 / a,
        "silu": lambda a: a * lax.logistic(a),
        "round": lambda a: lax.round(a, lax.RoundingMethod.TO_NEAREST_EVEN),
        "isnan": jnp.isnan,
        "isinf": jnp.isinf,
        "trunc": jnp.trunc,
        "mod": jnp.mod,
    }
    if fn in special:
        return special[fn]
    if fn not in _MAPS:
        raise UnsupportedError(f"JAX: no translation of map {fn}")
    return getattr(lax, _MAPS[fn])


def _slice(lax: Any, jnp: Any, attrs: Mapping[str, Any], node: Node) -> Callable[..., Any]:
    backwards = [axis for axis, step in enumerate(attrs["step"]) if step < 0]
    first, ends = [], []
    for start, size, step in zip(attrs["start"], attrs["size"], attrs["step"], strict=True):
        low, high = sorted((start, start + (size - 1) * step)) if size else (0, -1)
        first.append(low)
        ends.append(high + 1)
    steps = [abs(step) for step in attrs["step"]]
    return lambda x: lax.rev(lax.slice(x, first, ends, steps), backwards)


def _pad(lax: Any, jnp: Any, attrs: Mapping[str, Any], node: Node) -> Callable[..., Any]:
    if attrs["mode"] != "constant":
        axes = enumerate(zip(node.inputs[0].shape, attrs["low"], attrs["high"], strict=True))
        rows = [(axis, source_indices(attrs["mode"], low, extent, high)) for axis, (extent, low, high) in axes if low or high]
        return lambda x: functools.reduce(lambda part, row: jnp.take(part, row[1], axis=row[0], mode="clip"), rows, x)
    config = [(low, high, 0) for low, high in zip(attrs["low"], attrs["high"], strict=True)]
    return lambda x, fill: lax.pad(x, fill.reshape(()), config)


def _dot(lax: Any, jnp: Any, attrs: Mapping[str, Any], node: Node) -> Callable[..., Any]:
    numbers = (attrs["contract"], attrs["batch"])
    dtype = np.dtype(attrs["dtype"].numpy)
    return lambda x, y: lax.dot_general(x, y, numbers, preferred_element_type=dtype)


def _conv(lax: Any, jnp: Any, attrs: Mapping[str, Any], node: Node) -> Callable[..., Any]:
    padding = list(zip(attrs["low"], attrs["high"], strict=True))
    how = {"lhs_dilation": attrs["lhs_dilation"], "rhs_dilation": attrs["dilation"], "feature_group_count": attrs["groups"]}
    dtype = np.dtype(attrs["dtype"].numpy)
    return lambda x, w: lax.conv_general_dilated(x, w, attrs["strides"], padding, preferred_element_type=dtype, **how)


def _reduce(lax: Any, jnp: Any, attrs: Mapping[str, Any], node: Node) -> Callable[..., Any]:
    functions = {"add": jnp.sum, "mul": jnp.prod, "max": jnp.max, "min": jnp.min, "and": jnp.all, "or": jnp.any}
    function, axes, dtype = functions[attrs["fn"]], tuple(attrs["axes"]), node.output.dtype.numpy
    return lambda x: function(x, axis=axes).astype(dtype)


def _reduce_window(lax: Any, jnp: Any, attrs: Mapping[str, Any], node: Node) -> Callable[..., Any]:
    if attrs["fn"] not in ("max", "add") or not node.output.dtype.is_float:
        raise UnsupportedError(f"JAX: no translation of this window: {attrs['fn']}")
    padding = list(zip(attrs["low"], attrs["high"], strict=True))
    start, function = (-np.inf, lax.max) if attrs["fn"] == "max" else (0.0, lax.add)
    return lambda x: lax.reduce_window(
        x, np.array(start, x.dtype)[()], function, attrs["window"], attrs["strides"], padding, window_dilation=attrs["dilation"]
    )


def _gather_nd(lax: Any, jnp: Any, attrs: Mapping[str, Any], node: Node) -> Callable[..., Any]:
    batch, rank = attrs["batch"], node.inputs[1].rank
    grid = [
        np.arange(extent).reshape([-1 if k == axis else 1 for k in range(rank - 1)])
        for axis, extent in enumerate(node.inputs[1].shape[:batch])
    ]  # fmt: skip
    return lambda x, at: x[(*grid, *(at[..., k] for k in range(at.shape[-1])))]


def _arg_reduce(lax: Any, jnp: Any, attrs: Mapping[str, Any], node: Node) -> Callable[..., Any]:
    if attrs["last"]:
        raise UnsupportedError("JAX: no arg_reduce that takes the last of equals")
    function = jnp.argmax if attrs["fn"] == "max" else jnp.argmin
    return lambda x: function(x, axis=attrs["axis"]).astype(node.output.dtype.numpy)


_BUILDERS: dict[str, Callable[..., Callable[..., Any]]] = {
    "map": _map,
    "slice": _slice,
    "pad": _pad,
    "dot_general": _dot,
    "conv": _conv,
    "reduce": _reduce,
    "reduce_window": _reduce_window,
    "gather_nd": _gather_nd,
    "arg_reduce": _arg_reduce,
    "broadcast": lambda lax, jnp, attrs, node: lambda x: jnp.broadcast_to(x.reshape(_aligned(node.inputs[0].shape, attrs)), attrs["shape"]),
    "gather": lambda lax, jnp, attrs, node: lambda x, at: jnp.take(x, at, axis=attrs["axis"]),
    "iota": lambda lax, jnp, attrs, node: lambda: lax.broadcasted_iota(attrs["dtype"].numpy, attrs["shape"], attrs["axis"]),
    "convert": lambda lax, jnp, attrs, node: lambda x: x.astype(attrs["dtype"].numpy),
    "reshape": lambda lax, jnp, attrs, node: lambda x: x.reshape(attrs["shape"]),
    "transpose": lambda lax, jnp, attrs, node: lambda x: x.transpose(attrs["perm"]),
    "concat": lambda lax, jnp, attrs, node: lambda *parts: lax.concatenate(parts, attrs["axis"]),
}


def _aligned(extents: tuple[int, ...], attrs: Mapping[str, Any]) -> list[int]:
    aligned = [1] * len(attrs["shape"])
    for extent, axis in zip(extents, attrs["axes"], strict=True):
        aligned[axis] = extent
    return aligned
