"""Operations that sum or order elements: reductions, products, convolutions, pooling, normalisations."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from tests.fuzz.draw import GraphDraw, Tracked, combined, need
from tests.fuzz.registry import operation

F32, BOOL, I64 = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64


@operation(weight=3)
def reduce(g: GraphDraw) -> None:
    """Sums, means, extremes and norms over some axes."""
    op = g.pick(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceSumSquare", "ReduceL2"))
    x = g.value(lambda v: v.rank >= 1 and v.size > 0 and (v.is_float or (v.kind == TensorProto.INT32 and op in ("ReduceSum", "ReduceMax"))))
    axes = [k for k in range(x.rank) if g.flag()] or [x.rank - 1]
    keep = g.integer(0, 1)
    shape = [1 if k in axes else extent for k, extent in enumerate(x.shape) if keep or k not in axes]
    count = math.prod(x.shape[k] for k in axes)
    bound, grain, noise = _folded(op, x, count)
    out = combined(x.kind, shape, (x,), bound, grain, noise)
    g.emit(op, (x, g.ints([k - x.rank if g.flag() else k for k in axes])), out, keepdims=keep)


def _folded(op: str, x: Tracked, count: int) -> tuple[float, int | None, float]:
    """(bound, grain, noise) of a fold; a sum of n terms rounds up to n times, each time by the bound of the sum."""
    rounding = math.sqrt(count)
    match op:
        case "ReduceMax" | "ReduceMin":
            return x.bound, x.grain, x.noise
        case "ReduceMean":
            return x.bound, None, x.noise + rounding * x.bound * 1e-6 * (x.kind != TensorProto.DOUBLE)
        case "ReduceSum" | "ReduceL1":
            return count * x.bound, x.grain, count * x.noise
        case "ReduceSumSquare":
            return count * x.bound**2, 2 * x.grain if x.exact else None, 2 * count * x.bound * x.noise
        case _:  # the root has no derivative at 0: of exact values only
            need(x.exact and count * x.bound**2 * 4.0**x.grain < 2**11)
            return math.sqrt(count) * x.bound, None, 0.0


@operation()
def cumulative(g: GraphDraw) -> None:
    """CumSum in each of its forms."""
    x = g.value(lambda v: v.rank >= 1 and v.kind in (F32, TensorProto.DOUBLE, TensorProto.INT32, I64))
    axis = g.integer(0, x.rank - 1)
    bound = x.bound * max(x.shape[axis], 1)
    out = combined(x.kind, x.shape, (x,), bound, x.grain, x.noise * max(x.shape[axis], 1))
    g.emit("CumSum", (x, g.constant(np.array(axis))), out, exclusive=g.integer(0, 1), reverse=g.integer(0, 1))


@operation()
def arg_extreme(g: GraphDraw) -> None:
    """ArgMax, ArgMin of exact values."""
    x = g.value(lambda v: v.rank >= 1 and v.exact and v.kind in (F32, TensorProto.DOUBLE, TensorProto.INT32) and v.size > 0)
    axis, keep = g.integer(0, x.rank - 1), g.integer(0, 1)
    shape = [1 if k == axis else extent for k, extent in enumerate(x.shape) if keep or k != axis]
    out = Tracked("?", I64, tuple(shape), float(x.shape[axis]), 0, 0.0, x.free, 0.0)
    g.emit(g.pick(("ArgMax", "ArgMin")), (x,), out, axis=axis, keepdims=keep, select_last_index=g.integer(0, 1))


@operation()
def top(g: GraphDraw) -> None:
    """TopK of exact values: of equal ones the first."""
    x = g.value(lambda v: v.rank >= 1 and v.exact and v.kind in (F32, TensorProto.DOUBLE, I64) and v.size > 0)
    axis = g.integer(0, x.rank - 1)
    k = g.integer(1, x.shape[axis])
    shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
    values, places = g.node("TopK", (x, g.ints([k])), 2, axis=axis, largest=g.integer(0, 1), sorted=1)
    g.keep(Tracked(values, x.kind, shape, x.bound, x.grain, 0.0, x.free))
    g.keep(Tracked(places, I64, shape, float(x.shape[axis]), 0, 0.0, x.free, 0.0))


def product(kind: int, shape: tuple[int, ...], a: Tracked, b: Tracked, terms: int) -> Tracked:
    """A sum of ``terms`` products."""
    bound = max(terms, 1) * a.bound * b.bound
    grain = a.grain + b.grain if a.exact and b.exact else None
    return combined(kind, shape, (a, b), bound, grain, max(terms, 1) * (a.noise * b.bound + b.noise * a.bound))


@operation(weight=3)
def matmul(g: GraphDraw) -> None:
    """MatMul with weights, or of two values; stacks too."""
    x = g.value(lambda v: v.kind in (F32, TensorProto.DOUBLE) and v.rank >= 1)
    terms = x.shape[-1]

    def fits(y: Tracked) -> bool:
        return y.kind == x.kind and y.rank >= 2 and y.shape[-2] == terms and (y.rank == 2 or y.shape[:-2] == x.shape[:-2])

    y = g.value(fits) if g.flag() else g.weights(x.kind, (terms, g.pick((1, 3, 8, 17))))
    shape = (*x.shape[:-1], y.shape[-1])
    g.emit("MatMul", (x, y), product(x.kind, shape, x, y, terms))


@operation()
def gemm(g: GraphDraw) -> None:
    """Gemm with its transposes, scales and bias."""
    x = g.value(lambda v: v.kind == F32 and v.rank == 2)
    flip_a, flip_b, columns = g.integer(0, 1), g.integer(0, 1), g.pick((1, 5, 16))
    rows, terms = (x.shape[1], x.shape[0]) if flip_a else x.shape
    y = g.weights(F32, (columns, terms) if flip_b else (terms, columns))
    out = product(F32, (rows, columns), x, y, terms)
    bias = g.pick((None, (columns,), (1, columns), (1,)))
    inputs = (x, y) if bias is None else (x, y, g.weights(F32, bias))
    out = combined(F32, out.shape, (out,), 2 * out.bound + 8, None if out.grain is None else out.grain + 1, 2 * out.noise)
    g.emit("Gemm", inputs, out, transA=flip_a, transB=flip_b, alpha=g.pick((1.0, 0.5, 2.0)), beta=g.pick((1.0, 2.0)))


@operation(weight=3)
def conv(g: GraphDraw) -> None:
    """Convolutions of one to three spatial axes: groups, strides, dilations, borders."""
    x = g.value(lambda v: v.kind == F32 and 3 <= v.rank <= 5 and v.size > 0)
    channels, space = x.shape[1], x.shape[2:]
    group = g.pick([n for n in (1, 1, 2, channels) if channels % n == 0])
    kernel, dilation, strides = ([g.integer(1, high) for _ in space] for high in (3, 2, 2))
    low, high = ([g.integer(0, k // 2) for k in kernel] for _ in range(2))
    out = [(n + a + b - (k - 1) * d - 1) // s + 1 for n, a, b, k, d, s in zip(space, low, high, kernel, dilation, strides, strict=True)]
    need(min(out) > 0)
    outputs = group * g.pick((1, 2, 8))
    w = g.weights(F32, (outputs, channels // group, *kernel))
    made = product(F32, (x.shape[0], outputs, *out), x, w, math.prod(w.shape[1:]))
    inputs = [x, w]
    if g.flag():
        inputs.append(g.weights(F32, (outputs,)))
        made = combined(F32, made.shape, (made,), made.bound + 4, made.grain if made.grain is None else max(made.grain, 2), made.noise)
    g.emit("Conv", inputs, made, group=group, kernel_shape=kernel, dilations=dilation, strides=strides, pads=[*low, *high])


@operation()
def conv_transpose(g: GraphDraw) -> None:
    """Transposed convolutions."""
    x = g.value(lambda v: v.kind == F32 and 3 <= v.rank <= 4 and v.size > 0)
    channels, space = x.shape[1], x.shape[2:]
    group = g.pick([n for n in (1, 2) if channels % n == 0])
    kernel, strides = ([g.integer(1, 3) for _ in space] for _ in range(2))
    pads = [g.integer(0, (k - 1) // 2) for k in kernel]
    out = [(n - 1) * s + k - 2 * p for n, s, k, p in zip(space, strides, kernel, pads, strict=True)]
    need(min(out) > 0)
    w = g.weights(F32, (channels, g.pick((1, 3)), *kernel))
    made = product(F32, (x.shape[0], group * w.shape[1], *out), x, w, channels * math.prod(kernel))
    g.emit("ConvTranspose", (x, w), made, group=group, kernel_shape=kernel, strides=strides, pads=[*pads, *pads])


@operation(weight=2)
def pool(g: GraphDraw) -> None:
    """MaxPool, AveragePool, global ones."""
    x = g.value(lambda v: v.kind == F32 and 3 <= v.rank <= 5 and v.size > 0)
    op = g.pick(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"))
    mean = combined(F32, x.shape, (x,), x.bound, None, x.noise)
    if op.startswith("Global"):
        g.emit(op, (x,), x if op == "GlobalMaxPool" else mean, (*x.shape[:2], *(1 for _ in x.shape[2:])))
        return
    kernel, strides = ([g.integer(1, 3) for _ in x.shape[2:]] for _ in range(2))
    low, high = ([g.integer(0, k // 2) for k in kernel] for _ in range(2))
    out = [(n + a + b - k) // s + 1 for n, a, b, k, s in zip(x.shape[2:], low, high, kernel, strides, strict=True)]
    need(min(out) > 0)
    more = {"count_include_pad": g.integer(0, 1)} if op == "AveragePool" else {}
    shape = (*x.shape[:2], *out)
    g.emit(op, (x,), x if op == "MaxPool" else mean, shape, kernel_shape=kernel, strides=strides, pads=[*low, *high], **more)


@operation(weight=2)
def softmax(g: GraphDraw) -> None:
    """Softmax, LogSoftmax along any axis."""
    x = g.value(lambda v: v.is_float and v.rank >= 1 and v.size > 0)
    axis, op = g.integer(-x.rank, x.rank - 1), g.pick(("Softmax", "LogSoftmax"))
    bound = 1.0 if op == "Softmax" else 2 * x.bound + math.log(max(x.shape[axis], 1))
    g.emit(op, (x,), combined(x.kind, x.shape, (x,), bound + 1e-3, None, 2 * x.noise), axis=axis)


@operation(weight=2)
def normalisation(g: GraphDraw) -> None:
    """LayerNormalization, InstanceNormalization, BatchNormalization."""
    x = g.value(lambda v: v.kind == F32 and v.rank >= 2 and v.size > 0)
    op = g.pick(("LayerNormalization", "BatchNormalization", "InstanceNormalization"))
    if op == "BatchNormalization":
        c = x.shape[1]
        scale, bias, mean = (g.weights(F32, (c,)) for _ in range(3))
        variance = g.constant(np.random.default_rng(c).uniform(0.5, 2, c).astype(np.float32))
        g.emit(op, (x, scale, bias, mean, variance), combined(F32, x.shape, (x,), 6 * x.bound + 30, None, 6 * x.noise))
        return
    # the deviation may be as small as the square root of epsilon
    axis = g.integer(1, x.rank - 1) if op == "LayerNormalization" else 2
    need(x.rank >= 3 or op == "LayerNormalization")
    count = math.prod(x.shape[axis:])
    bound, noise = 4 * math.sqrt(count) + 4, 4 * (x.noise + x.bound * 1e-7) / math.sqrt(1e-2)
    shape = x.shape[axis:] if op == "LayerNormalization" else (x.shape[1],)
    more = {"axis": axis} if op == "LayerNormalization" else {}
    out = combined(F32, x.shape, (x,), bound, None, noise)
    g.emit(op, (x, g.weights(F32, shape), g.weights(F32, shape)), out, epsilon=1e-2, **more)


@operation()
def einsum(g: GraphDraw) -> None:
    """A few contractions by letters."""
    x = g.value(lambda v: v.kind == F32 and v.rank == 2 and v.size > 0)
    i, j = x.shape
    text, shape_y, shape, terms = g.pick(
        (
            ("ij,jk->ik", (j, 3), (i, 3), j),
            ("ij,kj->ki", (4, j), (4, i), j),
            ("ij,ij->i", (i, j), (i,), j),
            ("ij,k->kij", (2,), (2, i, j), 1),
            ("ij,jk->", (j, 2), (), i * j * 2),
        )
    )
    y = g.weights(F32, shape_y)
    g.emit("Einsum", (x, y), product(F32, shape, x, y, terms), equation=text)
