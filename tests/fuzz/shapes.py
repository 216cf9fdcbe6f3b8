"""Operations that move elements or ask for shapes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from onnx import TensorProto

from tests.fuzz.draw import GraphDraw, Tracked, combined, need, renamed
from tests.fuzz.elementwise import chosen
from tests.fuzz.registry import operation

BOOL, I64 = TensorProto.BOOL, TensorProto.INT64
END = 2**63 - 1


@operation(weight=2)
def transpose(g: GraphDraw) -> None:
    """Any permutation, or the default one."""
    x = g.value(lambda v: v.rank >= 1)
    perm = list(reversed(range(x.rank))) if x.rank > 4 else g.pick(_permutations(x.rank))
    g.emit("Transpose", (x,), x, [x.shape[k] for k in perm], perm=perm)


def _permutations(rank: int) -> list[list[int]]:
    from itertools import permutations

    return [list(perm) for perm in permutations(range(rank))]


@operation(weight=3)
def reshape(g: GraphDraw) -> None:
    """Merged, split, with 0 and -1 among the extents."""
    x = g.value(lambda v: v.rank >= 1)
    shape = list(x.shape)
    at = g.integer(0, x.rank - 1)
    form = g.pick(("merge", "split", "flat", "ones"))
    if form == "merge" and x.rank > 1:
        at = min(at, x.rank - 2)
        shape[at : at + 2] = [shape[at] * shape[at + 1]]
    elif form == "split":
        factor = g.pick([n for n in (1, 2, 3, 4) if shape[at] % n == 0])
        shape[at : at + 1] = [factor, shape[at] // factor]
    elif form == "flat":
        shape = [x.size]
    else:
        shape.insert(at, 1)
    asked = list(shape)
    if g.flag() and x.size:
        asked[g.integer(0, len(asked) - 1)] = -1
    if form == "ones" and at > 0 and g.flag():
        asked[0] = 0
    literal = 0 in shape and asked == shape
    need(literal or x.size)
    g.emit("Reshape", (x, g.ints(asked)), x, shape, allowzero=int(literal))


@operation()
def flatten(g: GraphDraw) -> None:
    """Two axes."""
    x = g.value()
    axis = g.integer(0, x.rank)
    g.emit("Flatten", (x,), x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])), axis=axis)


@operation()
def unsqueeze(g: GraphDraw) -> None:
    """An axis of extent 1 comes or goes."""
    x = g.value()
    ones = [k for k, extent in enumerate(x.shape) if extent == 1]
    if ones and not x.free and g.flag():
        at = g.pick(ones)
        g.emit("Squeeze", (x, g.ints([at - x.rank])), x, (*x.shape[:at], *x.shape[at + 1 :]))
        return
    need(x.rank < 5)
    at = g.integer(0, x.rank)
    g.emit("Unsqueeze", (x, g.ints([at])), x, (*x.shape[:at], 1, *x.shape[at:]))


@operation(weight=2)
def slice_(g: GraphDraw) -> None:
    """Starts and ends from either side, steps of both signs."""
    x = g.value(lambda v: v.rank >= 1)
    axis, step = g.integer(-x.rank, x.rank - 1), g.pick((1, 1, 2, 3, -1, -2))
    extent = x.shape[axis]
    start = g.integer(-extent - 1, extent + 1)
    end = g.pick((END, -END, g.integer(-extent - 1, extent + 1)))
    shape = list(x.shape)
    shape[axis] = len(range(extent)[start:end:step])
    need(shape[axis] > 0)
    g.emit("Slice", (x, g.ints([start]), g.ints([end]), g.ints([axis]), g.ints([step])), x, shape)


@operation(weight=2)
def concat(g: GraphDraw) -> None:
    """Two or three values along an axis."""
    x = g.value(lambda v: v.rank >= 1)
    axis = g.integer(0, x.rank - 1)

    def fits(y: Tracked) -> bool:
        return (
            y.kind == x.kind
            and y.rank == x.rank
            and all(k == axis or a == b for k, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)))
        )

    parts = [x, *(g.value(fits) for _ in range(g.integer(1, 2)))]
    out = parts[0]
    for part in parts[1:]:
        out = chosen(out, part, x.shape)
    shape = list(x.shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    g.emit("Concat", parts, out, shape, axis=axis)


@operation()
def split(g: GraphDraw) -> None:
    """Two parts."""
    x = g.value(lambda v: v.rank >= 1 and max(v.shape) > 1)
    axis = g.pick([k for k, extent in enumerate(x.shape) if extent > 1])
    first = g.integer(1, x.shape[axis] - 1)
    sizes = (first, x.shape[axis] - first)
    for name, size in zip(g.node("Split", (x, g.ints(sizes)), 2, axis=axis), sizes, strict=True):
        g.keep(renamed(x, name, (*x.shape[:axis], size, *x.shape[axis + 1 :])))


@operation()
def expand(g: GraphDraw) -> None:
    """New axes, and extents of 1 stretched."""
    x = g.value(lambda v: v.rank < 4)
    shape = [
        *(g.pick((1, 2, 3)) for _ in range(g.integer(0, 1))),
        *(g.pick((1, 5)) if extent == 1 else g.pick((1, extent)) for extent in x.shape),
    ]
    out = np.broadcast_shapes(tuple(shape), x.shape)
    g.emit("Expand", (x, g.ints(shape)), x, out)


@operation()
def tile(g: GraphDraw) -> None:
    """Repeats."""
    x = g.value(lambda v: v.rank >= 1)
    repeats = [g.pick((1, 1, 2, 3)) for _ in x.shape]
    g.emit("Tile", (x, g.ints(repeats)), x, [extent * n for extent, n in zip(x.shape, repeats, strict=True)])


@operation()
def pad(g: GraphDraw) -> None:
    """Constant, edge, reflect and wrap borders; negative ones cut."""
    x = g.value(lambda v: v.rank >= 1 and v.kind != BOOL and v.is_float)
    mode = g.pick(("constant", "edge", "reflect", "wrap"))
    need(x.size > 0 or mode == "constant")
    low, high = ([g.integer(0, min(2, extent - 1) if mode != "constant" else 2) for extent in x.shape] for _ in range(2))
    if mode == "constant" and g.flag():
        low[0] = -1 if x.shape[0] > 1 else 0
    shape = [a + n + b for a, n, b in zip(low, x.shape, high, strict=True)]
    g.emit("Pad", (x, g.ints([*low, *high])), x, shape, mode=mode)


@operation()
def space(g: GraphDraw) -> None:
    """DepthToSpace, SpaceToDepth."""
    x = g.value(lambda v: v.rank == 4 and v.is_float and (v.shape[1] % 4 == 0 or (v.shape[2] % 2 == 0 and v.shape[3] % 2 == 0)))
    n, c, h, w = x.shape
    if c % 4 == 0:
        g.emit("DepthToSpace", (x,), x, (n, c // 4, h * 2, w * 2), blocksize=2, mode=g.pick(("DCR", "CRD")))
    else:
        g.emit("SpaceToDepth", (x,), x, (n, c * 4, h // 2, w // 2), blocksize=2)


@operation(weight=2)
def gather(g: GraphDraw) -> None:
    """Indices from either side, of any rank; elements too."""
    x = g.value(lambda v: v.rank >= 1)
    axis = g.integer(0, x.rank - 1)
    need(x.size > 0)
    rng = np.random.default_rng(g.integer(0, 1000))
    if g.flag():
        shape = g.pick(((), (1,), (3,), (2, 2)))
        indices = rng.integers(-x.shape[axis], x.shape[axis], shape)
        g.emit("Gather", (x, g.constant(np.asarray(indices))), x, (*x.shape[:axis], *shape, *x.shape[axis + 1 :]), axis=axis)
        return
    shape = [max(1, extent - g.integer(0, 1)) for extent in x.shape]
    g.emit("GatherElements", (x, g.constant(rng.integers(-x.shape[axis], x.shape[axis], shape))), x, shape, axis=axis)


@operation()
def gather_nd(g: GraphDraw) -> None:
    """Points and rows."""
    x = g.value(lambda v: v.rank >= 1 and v.size > 0)
    depth, count = g.integer(1, x.rank), g.integer(1, 4)
    rng = np.random.default_rng(g.integer(0, 1000))
    points = np.stack([rng.integers(-extent, extent, count) for extent in x.shape[:depth]], -1)
    g.emit("GatherND", (x, g.constant(points)), x, (count, *x.shape[depth:]))


@operation()
def scatter(g: GraphDraw) -> None:
    """ScatterElements with each reduction, of exact values."""
    x = g.value(lambda v: v.rank >= 1 and v.exact and v.is_float and v.size > 0)
    axis, reduction = g.integer(0, x.rank - 1), g.pick(("none", "add", "max", "min"))
    rng = np.random.default_rng(g.integer(0, 1000))
    shape = [max(1, extent - 1) for extent in x.shape]
    if reduction == "none":  # one update for each place: which of several wins is not said
        shape[axis] = 1
    indices = rng.integers(-x.shape[axis], x.shape[axis], shape)
    updates = g.weights(x.kind, shape)
    bound = x.bound + updates.bound * shape[axis] if reduction == "add" else max(x.bound, updates.bound)
    out = combined(x.kind, x.shape, (x,), bound, max(x.grain, updates.grain))
    need(out.exact)
    g.emit("ScatterElements", (x, g.constant(indices), updates), out, axis=axis, reduction=reduction)


@operation()
def trilu(g: GraphDraw) -> None:
    """Triangles."""
    x = g.value(lambda v: v.rank >= 2 and v.kind != BOOL)
    g.emit("Trilu", (x, g.constant(np.array(g.integer(-2, 2)))), x, upper=g.integer(0, 1))


@operation(weight=2)
def reshape_by_shape(g: GraphDraw) -> None:
    """The extents that models compute: Shape, Gather, Concat, Reshape."""
    x = g.value(lambda v: v.rank >= 2)
    (shape,) = g.node("Shape", (x,))
    (first,) = g.node("Gather", (shape, g.ints([0])), axis=0)
    (target,) = g.node("Concat", (first, g.ints([-1])), axis=0)
    need(x.size > 0)
    g.emit("Reshape", (x, target), x, (x.shape[0], math.prod(x.shape[1:])))


@operation()
def shape_arithmetic(g: GraphDraw) -> None:
    """Extents as values: what a mean divides by."""
    x = g.value(lambda v: v.kind == TensorProto.FLOAT and v.rank >= 1)
    axis = g.integer(0, x.rank - 1)
    (shape,) = g.node("Shape", (x,), start=axis, end=axis + 1)
    (count,) = g.node("Cast", (shape,), to=TensorProto.FLOAT)
    (scalar,) = g.node("Squeeze", (count, g.ints([0])))
    g.emit("Div", (x, scalar), combined(x.kind, x.shape, (x,), x.bound, None, x.noise))


@operation()
def ranges(g: GraphDraw) -> None:
    """A Range as long as an axis."""
    x = g.value(lambda v: v.rank >= 1)
    (shape,) = g.node("Shape", (x,), start=0, end=1)
    (extent,) = g.node("Squeeze", (shape, g.ints([0])))
    (name,) = g.node("Range", (g.constant(np.array(0)), extent, g.constant(np.array(1))))
    g.keep(replace(Tracked(name, I64, (x.shape[0],), float(max(x.shape[0], 1)), 0, 0.0, x.free), low=0.0))


@operation()
def nonzero(g: GraphDraw) -> None:
    """Places that only the run knows; the sum of them, since their number is not known here."""
    x = g.value(lambda v: v.rank >= 1 and v.exact and v.size > 0)
    (places,) = g.node("NonZero", (x,))
    (name,) = g.node("ReduceSum", (places, g.ints([1])), keepdims=0)
    bound = float(x.size * max(x.shape))
    g.keep(Tracked(name, I64, (x.rank,), bound, 0, 0.0, x.free))
