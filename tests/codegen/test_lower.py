"""Each op's kernels, naive and scheduled, against its NumPy meaning, over shapes with 0, 1, primes and symbols."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcompile.codegen.draft import Scope
from tcompile.codegen.lower_node import naive
from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.interpret import interpret
from tcompile.ir.loops import Load
from tcompile.ir.loops_evaluate import postorder
from tcompile.ir.loops_interpret import expressions, walk
from tests.codegen.lowering import check_node
from tests.codegen.native import run_native

EXTENTS = st.sampled_from([0, 1, 2, 3, 5, 7, 8, 16, 17, 33])
FEW = settings(max_examples=12, deadline=None, derandomize=True)


def assert_native(case: Case) -> None:
    """Compiled code gives the same bits as the op's meaning."""
    graph = case.builder.graph(case.builder.nodes[-1].outputs)
    for got, expected in zip(run_native(graph, *case.arrays).values(), interpret(graph, case.arrays).values(), strict=True):
        np.testing.assert_array_equal(got, expected)


class Case:
    """A builder whose extents may be symbols, and random operands."""

    def __init__(self, *, symbolic: bool = False, seed: int = 0) -> None:
        self.builder = Builder("case")
        self.symbolic, self.env = symbolic, {}
        self.rng = np.random.default_rng(seed)
        self.arrays: list[np.ndarray] = []

    def extent(self, n: int):
        if not self.symbolic:
            return n
        name = f"n{n}"
        self.env[name] = n
        self.builder.symbols[name] = Range(0, None)
        return dims.symbol(name)

    def tensor(self, shape, dtype=dtypes.F32, high: int | None = None):
        value = self.builder.input(f"a{len(self.arrays)}", dtype, [self.extent(n) for n in shape])
        if dtype.is_float:
            array = self.rng.standard_normal(shape).astype(dtype.numpy)
        elif dtype == dtypes.BOOL:
            array = self.rng.integers(0, 2, shape).astype(bool)
        else:
            array = self.rng.integers(
                0 if high is not None or dtype.kind == "u" else -9, 9 if high is None else max(high, 1), shape
            ).astype(dtype.numpy)
        self.arrays.append(np.asarray(array))
        return value

    def check(self, **more) -> None:
        check_node(self.builder.nodes[-1], self.arrays, self.builder, self.env, **more)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (37,), (3, 0, 2), (2, 5, 7)])
def test_map(shape, symbolic):
    case = Case(symbolic=symbolic)
    case.builder.map("add", case.tensor(shape), case.tensor(shape))
    case.check()


@pytest.mark.parametrize("symbolic", [False, True])
def test_broadcast(symbolic):
    case = Case(symbolic=symbolic)
    x = case.tensor((5, 1, 17)[1:])
    case.builder.emit("broadcast", x, shape=(3, 4, case.extent(17)), axes=(1, 2))
    if symbolic:
        case.env["n1"] = 1
    case.check()


@FEW
@given(st.lists(EXTENTS, min_size=1, max_size=4), st.randoms(use_true_random=False), st.booleans())
def test_transpose(shape, random, symbolic):
    case = Case(symbolic=symbolic)
    perm = list(range(len(shape)))
    random.shuffle(perm)
    case.builder.emit("transpose", case.tensor(shape), perm=tuple(perm))
    case.check()


@pytest.mark.parametrize("dtype", [dtypes.F32, dtypes.F64, dtypes.U8, dtypes.BOOL, dtypes.BF16])
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    ("shape", "perm"), [((32, 48), (1, 0)), ((17, 33), (1, 0)), ((2, 19, 3, 40), (0, 3, 2, 1)), ((40, 2, 21), (2, 1, 0))]
)
def test_transposes_through_tiles(shape, perm, symbolic, dtype):
    case = Case(symbolic=symbolic)
    case.builder.emit("transpose", case.tensor(shape, dtype), perm=perm)
    case.check()
    assert_native(case)


def test_elementwise_work_rides_on_a_transpose():
    case = Case()
    x, y, bias = case.tensor((3, 40, 21)), case.tensor((3, 21, 40)), case.tensor((21,))
    region = case.builder.region("body")
    rx, ry, rb = (region.input(v.name, v.dtype, v.shape) for v in (x, y, bias))
    turned = region.map("add", region.transpose(rx, (0, 2, 1)), region.emit("broadcast", rb, shape=(3, 21, 40), axes=(1,)))
    case.builder.emit_all("fused", (x, y, bias), {"kind": "map"}, (region.graph([region.map("mul", turned, ry)]),))
    case.check()
    assert_native(case)


@pytest.mark.parametrize("channels", [16, 32, 21])
def test_blocked_layouts(channels):
    for op, shape, attrs in (("pack", (2, channels, 3, 11), {}), ("unpack", (2, -(-channels // 16), 3, 11, 16), {"extent": channels})):
        case = Case()
        case.builder.emit(op, case.tensor(shape), axis=1, block=16, **attrs)
        case.check()
        assert_native(case)


@pytest.mark.parametrize(("source", "target"), [((6, 4), (2, 3, 4)), ((2, 12), (4, 6)), ((4, 1, 6), (24,)), ((0, 3), (3, 0)), ((1,), ())])
def test_reshape(source, target):
    case = Case()
    case.builder.emit("reshape", case.tensor(source), shape=target)
    case.check()


@pytest.mark.parametrize("symbolic", [False, True])
def test_slice(symbolic):
    case = Case(symbolic=symbolic)
    case.builder.emit("slice", case.tensor((20, 33)), start=(19, 2), size=(7, 10), step=(-2, 3))
    case.check()


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
@pytest.mark.parametrize("shape", [(5, 7), (1, 9), (3, 40)])
def test_pad(mode, shape, symbolic):
    case = Case(symbolic=symbolic)
    x = case.tensor(shape)
    operands = [x]
    if mode == "constant":
        operands.append(case.tensor(()))
    case.builder.emit("pad", *operands, low=(2, 1), high=(0, 9), mode=mode)
    case.check()


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_concat(axis, symbolic):
    case = Case(symbolic=symbolic)
    shapes = [[3, 17], [3, 17], [3, 17]]
    for shape, extent in zip(shapes, (2, 0, 19), strict=True):
        shape[axis] = extent
    case.builder.concat([case.tensor(shape) for shape in shapes], axis)
    case.check()


@pytest.mark.parametrize("symbolic", [False, True])
def test_parts_and_padded_rows_are_never_masked(symbolic):
    for op in ("concat", "pad"):
        case = Case(symbolic=symbolic)
        x = case.tensor((3, 5, 7))
        if op == "concat":
            case.builder.concat([x, case.tensor((3, 11, 7))], 1)
        else:
            case.builder.emit("pad", x, case.tensor(()), low=(0, 0, 2), high=(0, 0, 3), mode="constant")
        case.check()
        (draft,) = naive(case.builder.nodes[-1], Scope(ranges=case.builder.symbols))
        loads = [e for stmt in walk(draft.finish()[0].body) for e in postorder(*expressions(stmt)) if isinstance(e, Load)]
        assert loads and all(load.mask is None for load in loads)


def test_a_fused_concat_reads_nothing_outside():
    case = Case()
    a, b = case.tensor((3, 5)), case.tensor((3, 11))
    region = case.builder.region("body")
    ra, rb = (region.input(v.name, v.dtype, v.shape) for v in (a, b))
    out = region.map("neg", region.concat([ra, rb], 1))
    case.builder.emit_all("fused", (a, b), {"kind": "map"}, (region.graph([out]),))
    case.check()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("dtype", [dtypes.I64, dtypes.I32])
def test_gather(axis, dtype):
    case = Case()
    x = case.tensor((4, 5, 19))
    case.builder.emit("gather", x, case.tensor((3, 2), dtype, high=4), axis=axis)
    case.check()


def test_gather_nd_and_elements():
    case = Case()
    x = case.tensor((4, 5, 19))
    case.builder.emit("gather_nd", x, case.tensor((4, 6, 1), dtypes.I64, high=5), batch=1)
    case.check()
    case = Case()
    case.builder.emit("gather_elements", case.tensor((4, 5, 19)), case.tensor((4, 3, 19), dtypes.I64, high=5), axis=1)
    case.check()


@pytest.mark.parametrize("dtype", [dtypes.F32, dtypes.I64, dtypes.F16])
def test_iota(dtype):
    case = Case()
    case.builder.emit("iota", shape=(3, 21), axis=1, dtype=dtype)
    case.check()


@pytest.mark.parametrize("dtype", [dtypes.F16, dtypes.BF16, dtypes.F64, dtypes.I8, dtypes.U32])
def test_dtypes_of_a_map(dtype):
    case = Case()
    case.builder.map("mul", case.tensor((3, 19), dtype), case.tensor((3, 19), dtype))
    case.check()


@FEW
@given(st.lists(EXTENTS, min_size=1, max_size=4), st.integers(1, 15), st.sampled_from(["add", "max", "mul"]), st.booleans())
def test_reduce(shape, which, fn, symbolic):
    axes = tuple(k for k in range(len(shape)) if which >> k & 1) or (0,)
    case = Case(symbolic=symbolic)
    case.builder.emit("reduce", case.tensor(shape), fn=fn, axes=axes)
    case.check(rtol=2e-5)


@pytest.mark.parametrize("dtype", [dtypes.BF16, dtypes.I32, dtypes.U8, dtypes.F64])
@pytest.mark.parametrize("axes", [(0,), (1,)])
def test_reduce_dtypes(dtype, axes):
    case = Case()
    case.builder.emit("reduce", case.tensor((9, 41), dtype), fn="add", axes=axes)
    case.check()


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("fn", ["max", "min"])
def test_arg_reduce(axis, last, fn, symbolic):
    case = Case(symbolic=symbolic)
    case.builder.emit("arg_reduce", case.tensor((5, 17, 9), dtypes.I32), fn=fn, axis=axis, last=last)
    case.check()


def test_arg_reduce_finds_nan():
    case = Case()
    case.builder.emit("arg_reduce", case.tensor((3, 20)), fn="min", axis=1, last=False)
    case.arrays[0][1, 7] = case.arrays[0][1, 11] = np.nan
    case.check()


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("fn", ["add", "max"])
def test_reduce_window(fn, symbolic):
    case = Case(symbolic=symbolic)
    x = case.tensor((2, 3, 11, 21))
    geometry = {"window": (1, 1, 3, 2), "strides": (1, 1, 2, 1), "dilation": (1, 1, 1, 2), "low": (0, 0, 1, 0), "high": (0, 0, 1, 2)}
    case.builder.emit("reduce_window", x, fn=fn, **geometry)
    case.check()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumulative(axis, exclusive, reverse):
    case = Case()
    case.builder.emit("cumulative", case.tensor((6, 19)), fn="add", axis=axis, exclusive=exclusive, reverse=reverse)
    case.check()


@pytest.mark.parametrize("dtype", [dtypes.F32, dtypes.I64, dtypes.U64, dtypes.U8, dtypes.F16, dtypes.F64])
@pytest.mark.parametrize("descending", [False, True])
def test_sort(dtype, descending):
    case = Case()
    key, payload = case.tensor((3, 19), dtype), case.tensor((3, 19), dtypes.I32)
    case.builder.emit_all("sort", (key, payload), {"axis": 1, "descending": descending})
    if dtype.is_float:
        case.arrays[0][0, :4] = np.array([np.nan, -0.0, 0.0, -np.inf])
        case.arrays[0][0, 9] = -np.nan
    case.check()


@pytest.mark.parametrize("n", [0, 1, 2, 8])
def test_sort_of_a_strided_axis(n):
    case = Case(symbolic=True)
    case.builder.emit_all("sort", (case.tensor((n, 5), dtypes.I32),), {"axis": 0, "descending": False})
    case.check()


@pytest.mark.parametrize("combiner", ["set", "add", "max"])
def test_scatter_nd(combiner):
    case = Case()
    x, indices, updates = case.tensor((4, 5, 9)), case.tensor((6, 2), dtypes.I64, high=4), case.tensor((6, 9))
    case.builder.emit("scatter_nd", x, indices, updates, combiner=combiner)
    case.check()


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("combiner", ["set", "mul"])
def test_scatter_elements(axis, combiner):
    case = Case()
    x, indices, updates = case.tensor((4, 9)), case.tensor((3, 4), dtypes.I64, high=4), case.tensor((3, 4))
    case.builder.emit("scatter_elements", x, indices, updates, axis=axis, combiner=combiner)
    case.check()


@pytest.mark.parametrize("n", [0, 1, 40])
def test_compact(n):
    case = Case(symbolic=True)
    case.builder.emit_all("compact", (case.tensor((n,), dtypes.BOOL),))
    case.check()


def test_rng_bits():
    case = Case()
    case.builder.emit("rng_bits", shape=(3, 7), seed=12345678901234)
    case.check()


@pytest.mark.parametrize("dtype", [dtypes.F32, dtypes.I32, dtypes.F64, dtypes.BF16])
@pytest.mark.parametrize("symbolic", [False, True])
def test_dot_general(dtype, symbolic):
    case = Case(symbolic=symbolic)
    a, b = case.tensor((2, 5, 7), dtype), case.tensor((7, 2, 19), dtype)
    case.builder.emit("dot_general", a, b, batch=((0,), (1,)), contract=((2,), (0,)), dtype=dtype)
    case.check(rtol=1e-2 if dtype == dtypes.BF16 else 1e-5)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("lhs_dilation", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv(symbolic, lhs_dilation, groups):
    case = Case(symbolic=symbolic)
    x = case.tensor((1, 4, 6, 11))
    w = case.builder.input("w", dtypes.F32, (6, 4 // groups, 3, 2))
    case.arrays.append(case.rng.standard_normal((6, 4 // groups, 3, 2)).astype(np.float32))
    attrs = {"strides": (2, 1), "lhs_dilation": (1, lhs_dilation), "dilation": (1, 2), "low": (1, 0), "high": (1, 2)}
    case.builder.emit("conv", x, w, **attrs, groups=groups, dtype=dtypes.F32)
    case.check(rtol=1e-5)


def test_dot_packed():
    case = Case()
    case.builder.emit("dot_packed", case.tensor((2, 5, 7), dtypes.F64), case.tensor((3, 7, 8), dtypes.F64), columns=19, dtype=dtypes.F64)
    case.check()


@pytest.mark.parametrize(("op", "x", "w", "more"), [
    ("conv_blocked", (1, 4, 7, 9, 4), (6, 2, 3, 2, 4, 4), {"groups": 2}),
    ("conv_stem", (2, 3, 7, 9), (2, 3, 3, 2, 8), {}),
    ("depthwise_blocked", (1, 3, 7, 9, 8), (3, 3, 2, 8), {}),
])  # fmt: skip
def test_blocked_convolutions(op, x, w, more):
    case = Case()
    x, w = case.tensor(x, dtypes.F64), case.tensor(w, dtypes.F64)
    case.builder.emit(op, x, w, strides=(2, 1), dilation=(1, 2), dtype=dtypes.F64, **more)
    case.check()


@pytest.mark.parametrize("groups", [1, 2])
def test_pointwise_convolution(groups):
    case = Case()
    x, w = case.tensor((2, 6, 5, 3), dtypes.F64), case.tensor((groups, 2, 6 // groups, 4), dtypes.F64)
    case.builder.emit("conv_pointwise", x, w, channels=groups * 7, dtype=dtypes.F64)
    case.check()


def fused_softmax(case, shape, axes):
    x = case.tensor(shape)
    region = case.builder.region("body")
    r = region.input("x", x.dtype, x.shape)
    shifted = region.map("sub", r, region.broadcast_to(region.reduce("max", r, axes, keepdims=True), r.shape))
    e = region.map("exp", shifted)
    out = region.map("div", e, region.broadcast_to(region.reduce("add", e, axes, keepdims=True), r.shape))
    case.builder.emit_all("fused", (x,), {"kind": "rows"}, (region.graph([out]),))


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(("shape", "axes"), [((5, 3), (1,)), ((2, 3, 77), (2,)), ((2, 4, 9), (1, 2)), ((3, 7, 21), (1,)), ((0, 4), (1,))])
def test_softmax_rows(shape, axes, symbolic):
    case = Case(symbolic=symbolic)
    fused_softmax(case, shape, axes)
    case.check()


def test_group_norm_rows_pass_through_reshapes():
    case = Case()
    x, scale = case.tensor((2, 6, 5, 5)), case.tensor((6,))
    region = case.builder.region("body")
    r, s = region.input("x", x.dtype, x.shape), region.input("s", scale.dtype, scale.shape)
    grouped = region.reshape(r, (2, 2, 75))
    mean = region.map(
        "div",
        region.reduce("add", grouped, (2,), keepdims=True),
        region.scalar_like(75.0, region.reduce("add", grouped, (2,), keepdims=True)),
    )
    centred = region.map("sub", grouped, region.broadcast_to(mean, grouped.shape))
    square = region.reduce("add", region.map("mul", centred, centred), (2,), keepdims=True)
    normal = region.reshape(region.map("mul", centred, region.broadcast_to(region.map("rsqrt", square), grouped.shape)), x.shape)
    out = region.map("mul", normal, region.emit("broadcast", s, shape=x.shape, axes=(1,)))
    case.builder.emit_all("fused", (x, scale), {"kind": "rows"}, (region.graph([out, mean]),))
    case.check(rtol=1e-5)
