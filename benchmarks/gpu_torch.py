"""A graph of core ops as a PyTorch function, for the comparison on a GPU: eager (cuBLAS, cuDNN) and torch.compile (Inductor).

The graph is the imported model with fixed shapes, simplified but not fused: what an exporter's operators come down to. Loops and
branches are gone (``gpu_unroll.py``); ops that public models of numbers do not have are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcompile.errors import UnsupportedError
from tcompile.ir.graph import Graph, Node
from tcompile.ir.ops_contraction import free_axes
from tcompile.ir.ops_movement import source_indices

_DTYPES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "i64": "int64", "i32": "int32", "i16": "int16",
    "i8": "int8", "u8": "uint8", "bool": "bool",
}  # fmt: skip
_MAPS = {
    **{name: name for name in (
        "abs", "acos", "acosh", "add", "asin", "asinh", "atan", "atan2", "atanh", "ceil", "cos", "cosh", "eq", "erf", "exp", "expm1",
        "floor", "fmod", "ge", "gt", "isinf", "isnan", "le", "log", "log1p", "lt", "mul", "ne", "neg", "pow", "round", "rsqrt",
        "sigmoid", "sign", "sin", "sinh", "sqrt", "sub", "tan", "tanh", "trunc", "where",
    )},
    "max": "maximum", "min": "minimum", "recip": "reciprocal", "and": "logical_and", "or": "logical_or", "not": "logical_not",
    "xor": "logical_xor", "mod": "remainder",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where tensors are, and those that are constant, by value."""

    device: str
    constants: Mapping[Any, Any]


def torch_function(graph: Graph, device: str = "cuda") -> Callable[..., list[Any]]:
    """A function of tensors in the order of the graph's inputs. Raises UnsupportedError naming an op that has no translation."""
    import torch

    constants = {
        node.output: torch.from_numpy(np.array(node.attrs["value"])).to(device) for node in graph.nodes if node.op == "constant"
    }  # fmt: skip
    place = Place(device, constants)
    steps = [(node, _step(torch, node, place)) for node in graph.nodes if node.op != "constant"]

    def run(*inputs: Any) -> list[Any]:
        values: dict[Any, Any] = {**constants, **dict(zip(graph.inputs, inputs, strict=True))}
        for node, function in steps:
            values[node.output] = function(*(values[value] for value in node.inputs))
        return [values[value] for value in graph.outputs]

    return run


def _step(torch: Any, node: Node, place: Place) -> Callable[..., Any]:
    builder = _BUILDERS.get(node.op)
    if builder is None:
        raise UnsupportedError(f"PyTorch: no translation of {node.op} ({', '.join(node.source)})")
    return builder(torch, node.attrs, node, place)


def _dtype(torch: Any, dtype: Any) -> Any:
    if dtype.name not in _DTYPES:
        raise UnsupportedError(f"PyTorch: no tensors of {dtype}")
    return getattr(torch, _DTYPES[dtype.name])


def _map(torch: Any, attrs: Mapping[str, Any], node: Node, place: Place) -> Callable[..., Any]:
    fn, integer = attrs["fn"], node.inputs[-1].dtype.is_integer
    if fn == "div":
        return (lambda a, b: torch.div(a, b, rounding_mode="trunc")) if integer else torch.div
    if fn == "fma":
        return lambda a, b, c: a * b + c
    if fn == "silu":
        return torch.nn.functional.silu
    if fn not in _MAPS or (integer and fn in ("and", "or", "xor", "not")):
        raise UnsupportedError(f"PyTorch: no translation of map {fn} of {node.inputs[-1].dtype}")
    return getattr(torch, _MAPS[fn])


def _broadcast(torch: Any, attrs: Mapping[str, Any], node: Node, place: Place) -> Callable[..., Any]:
    shape, aligned = attrs["shape"], [1] * len(attrs["shape"])
    for extent, axis in zip(node.inputs[0].shape, attrs["axes"], strict=True):
        aligned[axis] = extent
    return lambda x: x.reshape(aligned).expand(shape)


def _slice(torch: Any, attrs: Mapping[str, Any], node: Node, place: Place) -> Callable[..., Any]:
    backwards = [axis for axis, step in enumerate(attrs["step"]) if step < 0]
    parts = []
    for start, size, step in zip(attrs["start"], attrs["size"], attrs["step"], strict=True):
        first, last = sorted((start, start + (size - 1) * step))
        parts.append(slice(first, last + 1, abs(step)) if size else slice(0, 0))
    key = tuple(parts)
    return (lambda x: x[key].flip(backwards)) if backwards else (lambda x: x[key])


def _pairs(low: Sequence[int], high: Sequence[int]) -> list[int]:
    return [amount for pair in reversed(list(zip(low, high, strict=True))) for amount in pair]


def _pad(torch: Any, attrs: Mapping[str, Any], node: Node, place: Place) -> Callable[..., Any]:
    if attrs["mode"] != "constant":
        axes = zip(node.inputs[0].shape, attrs["low"], attrs["high"], strict=True)
        rows = [
            (axis, torch.from_numpy(source_indices(attrs["mode"], low, extent, high)).to(place.device))
            for axis, (extent, low, high) in enumerate(axes)
            if low or high
        ]
        return lambda x: _selected(torch, x, rows)
    amounts = _pairs(attrs["low"], attrs["high"])
    if node.inputs[1] in place.constants:  # a number, which needs no look at the device
        number = place.constants[node.inputs[1]].item()
        return lambda x, fill: torch.nn.functional.pad(x, amounts, value=number)
    inside = tuple(slice(low, low + extent) for low, extent in zip(attrs["low"], node.inputs[0].shape, strict=True))

    def run(x: Any, fill: Any) -> Any:
        whole = fill.expand(node.output.shape).clone()
        whole[inside] = x
        return whole

    return run


def _selected(torch: Any, x: Any, rows: Sequence[tuple[int, Any]]) -> Any:
    for axis, indices in rows:
        x = torch.index_select(x, axis, indices)
    return x


def _dot(torch: Any, attrs: Mapping[str, Any], node: Node, place: Place) -> Callable[..., Any]:
    a, b = node.inputs
    if not a.dtype.is_float:
        raise UnsupportedError(f"PyTorch: no product of {a.dtype} on the GPU")
    (batch_a, batch_b), (contract_a, contract_b) = attrs["batch"], attrs["contract"]
    rows, columns = free_axes(a.rank, batch_a, contract_a), free_axes(b.rank, batch_b, contract_b)
    count = [int(np.prod([a.shape[k] for k in axes], dtype=np.int64)) for axes in (batch_a, rows, contract_a)]
    wide = int(np.prod([b.shape[k] for k in columns], dtype=np.int64))
    left, right = (*batch_a, *rows, *contract_a), (*batch_b, *contract_b, *columns)
    if not batch_a:
        return lambda x, y: torch.mm(x.permute(left).reshape(count[1:]), y.permute(right).reshape(count[2], wide)).reshape(
            node.output.shape
        )
    return lambda x, y: torch.bmm(x.permute(left).reshape(count), y.permute(right).reshape(count[0], count[2], wide)).reshape(
        node.output.shape
    )


def _conv(torch: Any, attrs: Mapping[str, Any], node: Node, place: Place) -> Callable[..., Any]:
    rank = len(attrs["strides"])
    if rank > 3 or not node.inputs[0].dtype.is_float:
        raise UnsupportedError("PyTorch: no translation of this convolution: of integers, or of more than 3 axes")
    if set(attrs["lhs_dilation"]) != {1}:
        return _transposed_conv(torch, attrs, node, place)
    function = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[rank - 1]
    how = {"stride": attrs["strides"], "dilation": attrs["dilation"], "groups": attrs["groups"]}
    if tuple(attrs["low"]) == tuple(attrs["high"]):
        return lambda x, w: function(x, w, padding=tuple(attrs["low"]), **how)
    amounts = _pairs(attrs["low"], attrs["high"])
    return lambda x, w: function(torch.nn.functional.pad(x, amounts), w, **how)


def _transposed_conv(torch: Any, attrs: Mapping[str, Any], node: Node, place: Place) -> Callable[..., Any]:
    """A convolution of a dilated input is a transposed one of the turned window: its padding is cut off instead of added."""
    if set(attrs["strides"]) != {1}:
        raise UnsupportedError("PyTorch: no translation of this convolution: of dilated inputs, with strides")
    rank, groups, weight = len(attrs["strides"]), attrs["groups"], node.inputs[1]
    functional = torch.nn.functional
    function = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
    reach = [dilation * (extent - 1) for dilation, extent in zip(attrs["dilation"], weight.shape[2:], strict=True)]
    cut = [(size - low, size - high) for size, low, high in zip(reach, attrs["low"], attrs["high"], strict=True)]
    padding = tuple(max(min(pair), 0) for pair in cut)
    rest = _pairs(
        [size - low for size, (low, _) in zip(padding, cut, strict=True)],
        [size - high for size, (_, high) in zip(padding, cut, strict=True)],
    )
    how = {"stride": attrs["lhs_dilation"], "padding": padding, "dilation": attrs["dilation"], "groups": groups}
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    window = weight.shape[2:]

    def turned(w: Any) -> Any:
        parts = w.reshape(groups, outputs, inputs, *window).transpose(1, 2)
        return parts.reshape(groups * inputs, outputs, *window).flip(tuple(range(2, 2 + rank))).contiguous()

    known = place.constants.get(weight)
    ready = None if known is None else turned(known)

    def run(x: Any, w: Any) -> Any:
        result = function(x, turned(w) if ready is None else ready, **how)
        return functional.pad(result, rest) if any(rest) else result

    return run


_REDUCES = {"add": "sum", "max": "amax", "min": "amin", "and": "all", "or": "any"}


def _reduce(torch: Any, attrs: Mapping[str, Any], node: Node, place: Place) -> Callable[..., Any]:
    if attrs["fn"] not in _REDUCES:
        raise UnsupportedError(f"PyTorch: no translation of reduce {attrs['fn']}")
    function, axes, dtype = getattr(torch, _REDUCES[attrs["fn"]]), tuple(attrs["axes"]), _dtype(torch, node.output.dtype)
    return lambda x: function(x, dim=axes).to(dtype)


def _reduce_window(torch: Any, attrs: Mapping[str, Any], node: Node, place: Place) -> Callable[..., Any]:
    rank = node.inputs[0].rank - 2
    plain = all(attrs[name][:2] == neutral for name, neutral in (("window", (1, 1)), ("low", (0, 0)), ("high", (0, 0))))
    if attrs["fn"] not in ("max", "add") or not plain or rank not in (1, 2, 3) or not node.output.dtype.is_float:
        raise UnsupportedError(f"PyTorch: no translation of this window: {attrs['fn']} {attrs['window']}")
    window, strides, dilation = (tuple(attrs[name][2:]) for name in ("window", "strides", "dilation"))
    amounts = _pairs(attrs["low"][2:], attrs["high"][2:])
    functional = torch.nn.functional
    if attrs["fn"] == "max":
        pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
        return lambda x: pool(functional.pad(x, amounts, value=float("-inf")), window, strides, 0, dilation)
    if set(dilation) != {1}:
        raise UnsupportedError("PyTorch: no dilated sums of windows")
    pool, scale = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1], int(np.prod(window))
    return lambda x: pool(functional.pad(x, amounts), window, strides) * scale


def _gather(torch: Any, attrs: Mapping[str, Any], node: Node, place: Place) -> Callable[..., Any]:
    x, indices = node.inputs
    axis = attrs["axis"]
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return lambda x, at: torch.index_select(x, axis, at.reshape(-1).long()).reshape(shape)


def _gather_nd(torch: Any, attrs: Mapping[str, Any], node: Node, place: Place) -> Callable[..., Any]:
    batch, rank = attrs["batch"], node.inputs[1].rank
    extents = node.inputs[1].shape[:batch]
    grid = [
        torch.arange(extent, device=place.device).reshape([-1 if k == axis else 1 for k in range(rank - 1)])
        for axis, extent in enumerate(extents)
    ]  # fmt: skip
    return lambda x, at: x[(*grid, *at.long().unbind(-1))]


def _arg_reduce(torch: Any, attrs: Mapping[str, Any], node: Node, place: Place) -> Callable[..., Any]:
    if attrs["last"]:
        raise UnsupportedError("PyTorch: no arg_reduce that takes the last of equals")
    function = torch.argmax if attrs["fn"] == "max" else torch.argmin
    return lambda x: function(x, dim=attrs["axis"])


def _iota(torch: Any, attrs: Mapping[str, Any], node: Node, place: Place) -> Callable[..., Any]:
    axis, shape = attrs["axis"], attrs["shape"]
    line = torch.arange(shape[axis], device=place.device, dtype=_dtype(torch, attrs["dtype"]))
    whole = line.reshape([-1 if k == axis else 1 for k in range(len(shape))]).expand(shape)
    return lambda: whole


def _convert(torch: Any, attrs: Mapping[str, Any], node: Node, place: Place) -> Callable[..., Any]:
    dtype = _dtype(torch, attrs["dtype"])
    return lambda x: x.to(dtype)


def _cumulative(torch: Any, attrs: Mapping[str, Any], node: Node, place: Place) -> Callable[..., Any]:
    if attrs["fn"] != "add" or attrs["exclusive"] or attrs["reverse"]:
        raise UnsupportedError("PyTorch: no translation of this running fold")
    return lambda x: torch.cumsum(x, attrs["axis"]).to(x.dtype)


_BUILDERS: dict[str, Callable[..., Callable[..., Any]]] = {
    "map": _map,
    "broadcast": _broadcast,
    "slice": _slice,
    "pad": _pad,
    "dot_general": _dot,
    "conv": _conv,
    "reduce": _reduce,
    "reduce_window": _reduce_window,
    "gather": _gather,
    "gather_nd": _gather_nd,
    "arg_reduce": _arg_reduce,
    "iota": _iota,
    "cumulative": _cumulative,
    "convert": _convert,
    "reshape": lambda torch, attrs, node, place: lambda x: x.reshape(attrs["shape"]),
    "transpose": lambda torch, attrs, node, place: lambda x: x.permute(tuple(attrs["perm"])),
    "concat": lambda torch, attrs, node, place: lambda *parts: torch.cat(parts, attrs["axis"]),
}
