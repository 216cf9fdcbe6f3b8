"""The attention template against NumPy: odd, symbolic and single sizes, orders of scale and mask, grouped heads, epilogues."""

import math

import numpy as np
import pytest

from tcompile.ir import dims
from tcompile.ir.build import Builder
from tcompile.ir.dims import Range
from tcompile.ir.dtypes import BOOL, F32
from tcompile.ir.terms import Term
from tcompile.passes.canonicalise import Canonicalise
from tests.codegen.template_runs import check_template

RNG = np.random.default_rng(0)
SIZES = [1, 2, 3, 5, 7, 8, 13, 16, 17, 24, 31, 50]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def softmax(x: Term) -> Term:
    e = (x - x.max(x.rank - 1, keepdims=True)).map("exp")
    return e / e.sum(e.rank - 1, keepdims=True)


class Case:
    """Inputs by name; extents are symbols where ``symbolic``."""

    def __init__(self, *, symbolic: bool = False) -> None:
        self.b, self.symbolic = Builder(), symbolic
        self.arrays: dict[str, np.ndarray] = {}

    def size(self, name: str, extent: int) -> dims.DimLike:
        if not self.symbolic:
            return extent
        self.b.symbols.setdefault(name, Range(0, None))
        return dims.symbol(name)

    def input(self, name: str, shape: tuple, sizes: tuple[int, ...]) -> Term:
        self.arrays[name] = normal(*sizes)
        return Term(self.b, self.b.input(name, F32, shape))

    def heads(self, name: str, rows: dims.DimLike, count: int, heads: int, depth: int) -> Term:
        """[2, rows, heads * depth] read as [2, heads, rows, depth]."""
        x = self.input(name, (2, rows, heads * depth), (2, count, heads * depth))
        return x.reshape(2, rows, heads, depth).transpose(0, 2, 1, 3)

    def check(self, y: Term, target: str | None = None) -> None:
        graph = Canonicalise().apply(self.b.graph([y.value], ["y"]))
        assert check_template(graph, self.arrays, target) == ["attention"]


def products(q: Term, k: Term) -> Term:
    return q.dot(k, batch=((0, 1), (0, 1)), contract=((3,), (3,)))


def mixed(p: Term, v: Term) -> Term:
    return p.dot(v, batch=((0, 1), (0, 1)), contract=((3,), (2,)))


@pytest.mark.parametrize("seed", range(16))
def test_random_sizes(seed):
    pick = np.random.default_rng(seed).choice
    rows, keys, symbolic = pick(SIZES).item(), pick(SIZES[1:]).item(), bool(seed % 2)
    depth, columns = pick([2, 3, 8, 16, 20]).item(), pick([2, 5, 8, 16, 24]).item()
    case = Case(symbolic=symbolic)
    m, n = case.size("m", rows), case.size("n", keys)
    q, k = case.heads("q", m, rows, 3, depth), case.heads("k", n, keys, 3, depth)
    v = case.heads("v", n, keys, 3, columns)
    y = mixed(softmax(products(q, k) * (1 / math.sqrt(depth))), v)
    case.check(y.transpose(0, 2, 1, 3).reshape(2, m, 3 * columns))


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(("rows", "keys"), [(1, 2), (1, 137), (1, 64), (3, 65), (6, 131), (7, 31), (24, 67), (25, 40)])
@pytest.mark.parametrize(("depth", "columns"), [(64, 64), (16, 128), (5, 32), (8, 33)])
def test_rows_of_one_tile_and_of_one_block(rows, keys, depth, columns, symbolic):
    """A tile of rows reads v from where it is; a block of them packs a panel of keys when its turn comes. Keys may be symbolic."""
    case = Case(symbolic=symbolic)
    n = case.size("n", keys)
    q, k, v = case.heads("q", rows, rows, 2, depth), case.heads("k", n, keys, 2, depth), case.heads("v", n, keys, 2, columns)
    case.check(mixed(softmax(products(q, k) * 0.25), v).transpose(0, 2, 1, 3).reshape(2, rows, 2 * columns))


@pytest.mark.parametrize("target", ["x86-64-v4", "aarch64-linux"])
@pytest.mark.parametrize(("rows", "keys"), [(1, 9), (7, 40), (30, 16)])
def test_other_targets(rows, keys, target):
    case = Case()
    q, k, v = case.heads("q", rows, rows, 2, 16), case.heads("k", keys, keys, 2, 16), case.heads("v", keys, keys, 2, 20)
    case.check(mixed(softmax(products(q, k)), v), target)


@pytest.mark.parametrize("order", ["scale mask", "mask scale", "scaled q", "division", "soft cap", "where"])
@pytest.mark.parametrize("keys", [16, 21])
def test_orders_of_scale_and_mask(order, keys):
    case = Case()
    q, k, v = case.heads("q", 11, 11, 3, 8), case.heads("k", keys, keys, 3, 8), case.heads("v", keys, keys, 3, 8)
    mask = case.input("mask", (2, 1, 1, keys), (2, 1, 1, keys))
    match order:
        case "scale mask":
            x = products(q, k) * 0.3 + mask
        case "mask scale":
            x = (mask + products(q, k)) * 0.3
        case "scaled q":
            x = products(q * 0.5, k * 0.6) + mask
        case "division":
            x = products(q, k) / 3.0 - mask
        case "soft cap":
            x = (products(q, k) / 5.0).map("tanh") * 5.0 + mask
        case _:
            allowed = case.b.constant(RNG.integers(0, 2, (11, keys)) | np.eye(11, keys, dtype=np.int64) > 0, BOOL)
            x = Term(case.b, allowed).where(products(q, k), -math.inf)
    case.check(mixed(softmax(x), v))


@pytest.mark.parametrize("rows", [1, 5, 30])
def test_causal_rows_see_what_came_before(rows):
    case = Case(symbolic=True)
    m = case.size("m", rows)
    q, k, v = (case.heads(name, m, rows, 2, 8) for name in "qkv")
    before = Term(case.b, case.b.iota((m,))).expand(1) >= Term(case.b, case.b.iota((m,)))
    case.check(mixed(softmax(before.where(products(q, k) * 0.4, -math.inf)), v))


@pytest.mark.parametrize("keys", [5, 32])
def test_rows_without_keys(keys):
    """A row of -inf is NaN throughout, or zero where the graph says so."""
    mask = np.where(RNG.integers(0, 2, (2, 1, 9, keys)) > 0, 0, -np.inf).astype(np.float32)
    mask[:, :, 3] = -np.inf
    for guarded in (False, True):
        case = Case()
        q, k, v = case.heads("q", 9, 9, 2, 8), case.heads("k", keys, keys, 2, 8), case.heads("v", keys, keys, 2, 8)
        x = products(q, k) + case.input("mask", (2, 1, 9, keys), (2, 1, 9, keys))
        case.arrays["mask"] = mask
        top = x.max(3, keepdims=True)
        e = (x - (top.equals(-math.inf).where(0.0, top) if guarded else top)).map("exp")
        total = e.sum(3, keepdims=True)
        case.check(mixed(e / (total.equals(0).where(1.0, total) if guarded else total), v))


def test_a_nan_spreads_over_its_row():
    case = Case()
    q, k, v = (case.heads(name, 20, 20, 2, 8) for name in "qkv")
    case.arrays["q"][1, 3, 2] = np.nan
    case.check(mixed(softmax(products(q, k)), v))


@pytest.mark.parametrize("rows", [1, 6, 19])
def test_grouped_heads_share_their_keys(rows):
    case = Case()
    q = case.heads("q", rows, rows, 6, 8).reshape(2, 3, 2, rows, 8)
    k, v = case.heads("k", 21, 21, 3, 8), case.heads("v", 21, 21, 3, 16)
    x = q.dot(k, batch=((0, 1), (0, 1)), contract=((4,), (3,))).reshape(2, 6, rows, 21) * 0.3
    x = softmax(x + case.input("mask", (rows, 21), (rows, 21))).reshape(2, 3, 2, rows, 21)
    y = x.dot(v, batch=((0, 1), (0, 1)), contract=((4,), (2,))).reshape(2, 6, rows, 16)
    case.check(y.transpose(0, 2, 1, 3))


@pytest.mark.parametrize("columns", [16, 21])
def test_epilogue_and_weights_that_are_more_than_a_softmax(columns):
    case = Case()
    q, k, v = case.heads("q", 14, 14, 2, 8), case.heads("k", 18, 18, 2, 8), case.heads("v", 18, 18, 2, columns)
    p = softmax(products(q, k)) * case.input("scale", (18,), (18,))
    y = mixed(p, v).transpose(0, 2, 1, 3).reshape(2, 14, 2 * columns)
    case.check((y * 2.0).map("tanh") + case.input("r", (2, 14, 2 * columns), (2, 14, 2 * columns)))


def test_keys_in_columns_and_values_in_rows():
    case = Case()
    q = case.input("q", (2, 3, 10, 8), (2, 3, 10, 8))
    k, v = case.input("k", (2, 3, 8, 19), (2, 3, 8, 19)), case.input("v", (2, 3, 12, 19), (2, 3, 12, 19))
    x = q.dot(k, batch=((0, 1), (0, 1)), contract=((3,), (2,)))
    case.check(softmax(x).dot(v, batch=((0, 1), (0, 1)), contract=((3,), (3,))))


@pytest.mark.parametrize("rows", [0, 400, 900])
def test_many_rows_in_chunks(rows):
    case = Case(symbolic=True)
    q = case.heads("q", case.size("m", rows), rows, 1, 8)
    k, v = case.heads("k", 6, 6, 1, 8), case.heads("v", 6, 6, 1, 8)
    case.check(mixed(softmax(products(q, k)), v))
