"""A graph of core ops as a PyTorch function, for the comparison on a GPU: eager (cuBLAS, cuDNN) and torch.compile (Inductor).

The graph is the imported model with fixed shapes, simplified but not fused: what an exporter's operators come down to. Loops, and
ops that public models of numbers do not have, are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tcompile.errors import UnsupportedError
from tcompile.ir.graph import Graph, Node
from tcompile.ir.ops_contraction import free_axes

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


def torch_function(graph: Graph, device: str = "cuda") -> Callable[..., list[Any]]:
    """A function of tensors in the order of the graph's inputs. Raises UnsupportedError naming an op that has no translation."""
    import torch

    constants = {
        node.output: torch.from_numpy(np.array(node.attrs["value"])).to(device) for node in graph.nodes if node.op == "constant"
    }  # fmt: skip
    steps = [(node, _step(torch, node, device)) for node in graph.nodes if node.op != "constant"]

    def run(*inputs: Any) -> list[Any]:
        values: dict[Any, Any] = {**constants, **dict(zip(graph.inputs, inputs, strict=True))}
        for node, function in steps:
            values[node.output] = function(*(values[value] for value in node.inputs))
        return [values[value] for value in graph.outputs]

    return run


def _step(torch: Any, node: Node, device: str) -> Callable[..., Any]:
    builder = _BUILDERS.get(node.op)
    if builder is None:
        raise UnsupportedError(f"PyTorch: no translation of {node.op} ({', '.join(node.source)})")
    return builder(torch, node.attrs, node, device)


def _dtype(torch: Any, dtype: Any) -> Any:
    if dtype.name not in _DTYPES:
        raise UnsupportedError(f"PyTorch: no tensors of {dtype}")
    return getattr(torch, _DTYPES[dtype.name])


def _map(torch: Any, attrs: Mapping[str, Any], node: Node, device: str) -> Callable[..., Any]:
    fn, integer = attrs["fn"], node.inputs[-1].dtype.is_integer
    if fn == "div":
        return (lambda a, b: torch.div(a, b, rounding_mode="trunc")) if integer else torch.div
    if fn == "fma":
        return lambda a, b, c: a * b + c
    if fn not in _MAPS or (integer and fn in ("and", "or", "xor", "not")):
        raise UnsupportedError(f"PyTorch: no translation of map {fn} of {node.inputs[-1].dtype}")
    return getattr(torch, _MAPS[fn])


def _broadcast(torch: Any, attrs: Mapping[str, Any], node: Node, device: str) -> Callable[..., Any]:
    shape, aligned = attrs["shape"], [1] * len(attrs["shape"])
    for extent, axis in zip(node.inputs[0].shape, attrs["axes"], strict=True):
        aligned[axis] = extent
    return lambda x: x.reshape(aligned).expand(shape)


def _slice(torch: Any, attrs: Mapping[str, Any], node: Node, device: str) -> Callable[..., Any]:
    if min(attrs["step"], default=1) < 1:
        raise UnsupportedError("PyTorch: no slices with negative steps")
    parts = tuple(
        slice(start, start + (size - 1) * step + 1 if size else start, step)
        for start, size, step in zip(attrs["start"], attrs["size"], attrs["step"], strict=True)
    )  # fmt: skip
    return lambda x: x[parts]


def _pairs(low: Sequence[int], high: Sequence[int]) -> list[int]:
    return [amount for pair in reversed(list(zip(low, high, strict=True))) for amount in pair]


def _pad(torch: Any, attrs: Mapping[str, Any], node: Node, device: str) -> Callable[..., Any]:
    if attrs["mode"] != "constant":
        raise UnsupportedError(f"PyTorch: no translation of pad {attrs['mode']}")
    amounts = _pairs(attrs["low"], attrs["high"])
    return lambda x, fill: torch.nn.functional.pad(x, amounts, value=float(fill))


def _dot(torch: Any, attrs: Mapping[str, Any], node: Node, device: str) -> Callable[..., Any]:
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


def _conv(torch: Any, attrs: Mapping[str, Any], node: Node, device: str) -> Callable[..., Any]:
    rank = len(attrs["strides"])
    if rank > 3 or not node.inputs[0].dtype.is_float or set(attrs["lhs_dilation"]) != {1}:
        raise UnsupportedError("PyTorch: no translation of this convolution: integers, or dilated inputs")
    function = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[rank - 1]
    how = {"stride": attrs["strides"], "dilation": attrs["dilation"], "groups": attrs["groups"]}
    if tuple(attrs["low"]) == tuple(attrs["high"]):
        return lambda x, w: function(x, w, padding=tuple(attrs["low"]), **how)
    amounts = _pairs(attrs["low"], attrs["high"])
    return lambda x, w: function(torch.nn.functional.pad(x, amounts), w, **how)


_REDUCES = {"add": "sum", "max": "amax", "min": "amin", "and": "all", "or": "any"}


def _reduce(torch: Any, attrs: Mapping[str, Any], node: Node, device: str) -> Callable[..., Any]:
    if attrs["fn"] not in _REDUCES:
        raise UnsupportedError(f"PyTorch: no translation of reduce {attrs['fn']}")
    function, axes, dtype = getattr(torch, _REDUCES[attrs["fn"]]), tuple(attrs["axes"]), _dtype(torch, node.output.dtype)
    return lambda x: function(x, dim=axes).to(dtype)


def _reduce_window(torch: Any, attrs: Mapping[str, Any], node: Node, device: str) -> Callable[..., Any]:
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


def _gather(torch: Any, attrs: Mapping[str, Any], node: Node, device: str) -> Callable[..., Any]:
    x, indices = node.inputs
    axis = attrs["axis"]
    shape = (*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])
    return lambda x, at: torch.index_select(x, axis, at.reshape(-1).long()).reshape(shape)


def _gather_nd(torch: Any, attrs: Mapping[str, Any], node: Node, device: str) -> Callable[..., Any]:
    batch, rank = attrs["batch"], node.inputs[1].rank
    extents = node.inputs[1].shape[:batch]
    grid = [
        torch.arange(extent, device=device).reshape([-1 if k == axis else 1 for k in range(rank - 1)])
        for axis, extent in enumerate(extents)
    ]  # fmt: skip
    return lambda x, at: x[(*grid, *at.long().unbind(-1))]


def _arg_reduce(torch: Any, attrs: Mapping[str, Any], node: Node, device: str) -> Callable[..., Any]:
    if attrs["last"]:
        raise UnsupportedError("PyTorch: no arg_reduce that takes the last of equals")
    function = torch.argmax if attrs["fn"] == "max" else torch.argmin
    return lambda x: function(x, dim=attrs["axis"])


def _iota(torch: Any, attrs: Mapping[str, Any], node: Node, device: str) -> Callable[..., Any]:
    axis, shape = attrs["axis"], attrs["shape"]
    line = torch.arange(shape[axis], device=device, dtype=_dtype(torch, attrs["dtype"]))
    whole = line.reshape([-1 if k == axis else 1 for k in range(len(shape))]).expand(shape)
    return lambda: whole


def _convert(torch: Any, attrs: Mapping[str, Any], node: Node, device: str) -> Callable[..., Any]:
    dtype = _dtype(torch, attrs["dtype"])
    return lambda x: x.to(dtype)


def _cumulative(torch: Any, attrs: Mapping[str, Any], node: Node, device: str) -> Callable[..., Any]:
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
    "reshape": lambda torch, attrs, node, device: lambda x: x.reshape(attrs["shape"]),
    "transpose": lambda torch, attrs, node, device: lambda x: x.permute(tuple(attrs["perm"])),
    "concat": lambda torch, attrs, node, device: lambda *parts: torch.cat(parts, attrs["axis"]),
}
