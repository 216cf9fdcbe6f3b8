"""What the GPU benchmark runs: public models at fixed shapes, and single kernels whose limits are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tcompile.accuracy import random_inputs
from tcompile.benchmarks.model_set import Model
from tcompile.ir import dtypes
from tcompile.ir.build import Builder
from tcompile.ir.graph import Graph
from tcompile.ir.ops_contraction import free_axes

_AS_THEY_ARE = {"silero_vad", "silero_vad_16k_op15", "silero_vad_half"}  # each branch of their If takes another length of sound


def fixed_shapes(model: Model) -> dict[str, list[int]]:
    """The extents of every input: those of its draws, else symbols by the model's sizes, else 2. Nothing where a model needs symbols."""
    import onnx

    if model.name in _AS_THEY_ARE:
        return {}
    proto = onnx.load(model.path, load_external_data=False).graph
    constants, known = {tensor.name for tensor in proto.initializer}, model.inputs
    shapes = {}
    for value in proto.input:
        if value.name in constants:
            continue
        draw = known.draws.get(value.name)
        if draw is not None and draw.shape is not None:
            shapes[value.name] = list(draw.shape)
            continue
        extents = value.type.tensor_type.shape.dim
        shapes[value.name] = [d.dim_value if d.HasField("dim_value") else known.sizes.get(d.dim_param, 2) for d in extents]
    return shapes


def peer_graph(path: Path, shapes: dict[str, list[int]]) -> Graph:
    """The model as peers get it: core ops at fixed shapes, simplified, not fused."""
    from tcompile.ir.onnx_import import import_model
    from tcompile.passes.canonicalise import Canonicalise
    from tcompile.passes.fold import FoldConstants

    return FoldConstants().apply(Canonicalise().apply(import_model(path, shapes)))


def peer_case(model: Model) -> tuple[Graph, dict[str, np.ndarray]]:
    """The graph that peers get of a model, and the inputs of a run: without loops, branches or symbols, as these inputs take them."""
    from tcompile.benchmarks.gpu_unroll import unrolled
    from tcompile.passes.canonicalise import Canonicalise
    from tcompile.passes.fold import FoldConstants

    graph = peer_graph(model.path, fixed_shapes(model))
    arrays = inputs_of(graph, model)
    flat = unrolled(graph, arrays)
    return (graph if flat is graph else FoldConstants().apply(Canonicalise().apply(flat))), arrays


def inputs_of(graph: Graph, model: Model) -> dict[str, np.ndarray]:
    """Random inputs of a graph as the model set draws them."""
    return random_inputs(graph.inputs, model.inputs.sizes, model.inputs.draws)


@dataclass(frozen=True, eq=False)
class KernelCase:
    """One kernel: our graph, PyTorch's own function for the same, and what a run must at least do.

    ``flops`` and ``bytes`` of one run; ``precision`` of our products, as of ``tcompile.pipeline.Options``, and ``dtype`` of all tensors.
    """

    name: str
    graph: Graph
    torch: Callable[[Any, Any], Any]  # (torch, tensors) -> result
    flops: float
    bytes: float
    dtype: str = "f32"
    precision: str = "f32"


def kernel_cases() -> list[KernelCase]:
    """Products, element by element, rows, convolutions and attention, at sizes where a GPU is busy."""
    found = [_gemm(4096, "f32", precision) for precision in ("f32", "tf32")]
    found += [_gemm(4096, dtype, "f32") for dtype in ("f16", "bf16")]
    found += [_gemm(512, "f32", "f32"), _add(1 << 26), _gelu(1 << 26), _softmax(16384, 2048), _layernorm(16384, 1024), _transpose(8192)]
    found += [_conv("conv 3x3", 32, 128, 56, 3, 1), _conv("conv 1x1", 32, 256, 56, 1, 1), _conv("depthwise 3x3", 32, 256, 56, 3, 256)]
    found += [_conv("conv 3x3 of one image", 1, 256, 14, 3, 1), _attention("attention of one query", 1, 8192)]
    return [*found, _attention("attention", 1024, 1024), _attention("attention as f16", 1024, 1024, "f16")]


def _inputs(b: Builder, dtype: str, *shapes: tuple[int, ...]) -> list[Any]:
    return [b.input(f"x{k}", getattr(dtypes, dtype.upper()), shape) for k, shape in enumerate(shapes)]


def _gemm(n: int, dtype: str, precision: str) -> KernelCase:
    b = Builder("gemm")
    x, y = _inputs(b, dtype, (n, n), (n, n))
    out = b.emit("dot_general", x, y, batch=((), ()), contract=((1,), (0,)), dtype=x.dtype)
    size = 3 * n * n * x.dtype.bytes
    name = f"gemm {n} {dtype}{'' if precision == 'f32' else f' as {precision}'}"
    return KernelCase(name, b.graph([out], ["y"]), lambda torch, t: torch.mm(*t), 2.0 * n**3, size, dtype, precision)


def _add(n: int) -> KernelCase:
    b = Builder("add")
    x, y = _inputs(b, "f32", (n,), (n,))
    return KernelCase("add", b.graph([b.map("add", x, y)], ["y"]), lambda torch, t: torch.add(*t), n, 12.0 * n)


def _gelu(n: int) -> KernelCase:
    b = Builder("gelu")
    (x,) = _inputs(b, "f32", (n,))
    inner = b.map("add", b.map("erf", b.map("mul", x, b.scalar_like(0.7071067811865476, x))), b.scalar_like(1.0, x))
    out = b.map("mul", b.map("mul", x, b.scalar_like(0.5, x)), inner)
    return KernelCase("gelu", b.graph([out], ["y"]), lambda torch, t: torch.nn.functional.gelu(*t), 20.0 * n, 8.0 * n)


def _spread(b: Builder, value: Any, shape: tuple[int, ...]) -> Any:
    return b.emit("broadcast", value, shape=shape, axes=tuple(range(len(shape) - 1)))


def _soft(b: Builder, x: Any) -> Any:
    axis = [len(x.shape) - 1]
    powers = b.map("exp", b.map("sub", x, _spread(b, b.reduce("max", x, axis), x.shape)))
    return b.map("div", powers, _spread(b, b.reduce("add", powers, axis), x.shape))


def _attention(name: str, queries: int, keys: int, precision: str = "f32", heads: int = 16, depth: int = 64) -> KernelCase:
    b = Builder("attention")
    q, k, v = _inputs(b, "f32", (1, heads, queries, depth), (1, heads, keys, depth), (1, heads, keys, depth))
    batch = ((0, 1), (0, 1))
    scores = b.emit("dot_general", q, k, batch=batch, contract=((3,), (3,)), dtype=q.dtype)
    weights = _soft(b, b.map("mul", scores, b.scalar_like(depth**-0.5, scores)))
    out = b.emit("dot_general", weights, v, batch=batch, contract=((3,), (2,)), dtype=q.dtype)
    flops, moved = 4.0 * heads * queries * keys * depth, 8.0 * heads * (queries + keys) * depth
    graph = b.graph([out], ["y"])
    return KernelCase(name, graph, lambda torch, t: torch.nn.functional.scaled_dot_product_attention(*t), flops, moved, "f32", precision)


def _softmax(rows: int, columns: int) -> KernelCase:
    b = Builder("softmax")
    (x,) = _inputs(b, "f32", (rows, columns))
    return KernelCase(
        "softmax", b.graph([_soft(b, x)], ["y"]), lambda torch, t: torch.softmax(t[0], 1), 5.0 * rows * columns, 8.0 * rows * columns
    )


def _layernorm(rows: int, columns: int) -> KernelCase:
    b = Builder("layernorm")
    (x,) = _inputs(b, "f32", (rows, columns))
    total = b.reduce("add", x, [1])
    mean = b.map("div", total, b.scalar_like(columns, total))
    centred = b.map("sub", x, _spread(b, mean, x.shape))
    squares = b.reduce("add", b.map("mul", centred, centred), [1])
    variance = b.map("add", b.map("div", squares, b.scalar_like(columns, squares)), b.scalar_like(1e-5, squares))
    out = b.map("div", centred, _spread(b, b.map("sqrt", variance), x.shape))
    size = rows * columns
    return KernelCase(
        "layernorm", b.graph([out], ["y"]), lambda torch, t: torch.nn.functional.layer_norm(t[0], (columns,)), 8.0 * size, 8.0 * size
    )


def _transpose(n: int) -> KernelCase:
    b = Builder("transpose")
    (x,) = _inputs(b, "f32", (n, n))
    return KernelCase("transpose", b.graph([b.transpose(x, (1, 0))], ["y"]), lambda torch, t: t[0].t().contiguous(), 0.0, 8.0 * n * n)


def _conv(name: str, batch: int, channels: int, size: int, window: int, groups: int) -> KernelCase:
    b = Builder("conv")
    x, w = _inputs(b, "f32", (batch, channels, size, size), (channels, channels // groups, window, window))
    one, pad = (1, 1), (window // 2, window // 2)
    out = b.emit(
        "conv", x, w, strides=one, lhs_dilation=one, dilation=one, low=pad, high=pad, groups=groups, dtype=x.dtype
    )  # fmt: skip
    elements = batch * channels * size * size
    flops = 2.0 * elements * channels // groups * window * window
    moved = 4.0 * (2 * elements + channels * channels // groups * window * window)
    return KernelCase(
        name, b.graph([out], ["y"]), lambda torch, t: torch.nn.functional.conv2d(*t, padding=window // 2, groups=groups), flops, moved
    )


def graph_flops(graph: Graph) -> float:
    """Floating-point operations of the products and convolutions of a graph with fixed shapes; others are not counted."""
    total = 0.0
    for node in graph.nodes:
        if node.op == "conv":
            total += 2.0 * np.prod(node.output.shape) * np.prod(node.inputs[1].shape[1:])
        elif node.op == "dot_general":
            a = node.inputs[0]
            contracted = set(range(a.rank)) - set(node.attrs["batch"][0]) - set(free_axes(a.rank, *(x[0] for x in _axes(node.attrs))))
            total += 2.0 * np.prod(node.output.shape) * np.prod([a.shape[k] for k in contracted])
    return float(total)


def _axes(attrs: dict[str, Any]) -> tuple[Any, Any]:
    return attrs["batch"], attrs["contract"]
