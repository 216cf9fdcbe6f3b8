"""The scheduling primitives keep what a kernel computes, on every size."""

from __future__ import annotations

import numpy as np
import pytest

from tcompile.codegen.nest import Nest
from tcompile.codegen.scalar import both, compare, identity, op
from tcompile.codegen.schedule import Names, collapse, flatten, map_loops, only_loop, split
from tcompile.codegen.schedule_access import accesses, drop_unused
from tcompile.codegen.schedule_distribute import distribute
from tcompile.codegen.schedule_lanes import accumulation, lanes_of
from tcompile.codegen.schedule_unswitch import unswitched
from tcompile.ir import dims
from tcompile.ir.dtypes import F32
from tcompile.ir.loops import Access, Const, For, If, Kernel, Let, Load, LoopKind, Param, Select, Space, Store
from tcompile.ir.loops_evaluate import postorder
from tcompile.ir.loops_interpret import expressions, run_kernel, walk
from tcompile.ir.loops_verify import verify_kernel

N, M = dims.symbol("d0"), dims.symbol("d1")
SIZES = [(0, 0), (0, 3), (3, 0), (1, 1), (2, 17), (17, 2), (5, 8), (16, 16), (33, 9)]


def run(body, *arrays, sizes):
    params = tuple(Param(f"p{k}", F32, (array.size,), Access.IN if k < len(arrays) - 1 else Access.OUT) for k, array in enumerate(arrays))
    kernel = Kernel("test", params, ("d0", "d1"), tuple(body))
    verify_kernel(kernel)
    assert run_kernel(kernel, arrays, sizes) is None
    return arrays[-1]


def transposing(step_n, step_m):
    """p1[i*m + j] = -p0[i*step_n + j*step_m]"""
    nest = Nest()
    with nest.loops((N, M)) as (i, j):
        nest.store("p1", i * M + j, op("neg", Load("p0", (i * step_n + j * step_m,), F32)))
    (loop,) = nest.block()
    return loop


def summing(step_n, step_m):
    """p1[i] = sum over j of p0[i*step_n + j*step_m]; and the loop over i."""
    nest = Nest()
    with nest.loop(N) as i:
        total = nest.alloc(F32, (1,), Space.REGISTER)
        nest.store(total, 0, identity("add", F32))
        with nest.loop(M) as j:
            nest.store(total, 0, op("add", Load(total, (0,), F32), Load("p0", (i * step_n + j * step_m,), F32)))
        nest.store("p1", i, nest.let(Load(total, (0,), F32)))
    (loop,) = nest.block()
    return loop


def test_loops_that_walk_memory_together_become_one():
    merged = collapse(transposing(M, 1), Names())
    assert merged is not None and merged.extent == N * M and only_loop(merged.body) is None
    for n, m in SIZES:
        x = np.arange(n * m, dtype=np.float32)
        np.testing.assert_array_equal(run([merged], x, np.zeros(n * m, np.float32), sizes=(n, m)), -x)


def test_loops_that_do_not_stay_two():
    assert collapse(transposing(1, N), Names()) is None


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_split_covers_every_iteration_once(n, m):
    loop = split(transposing(1, N), 4, Names(), outer_kind=LoopKind.SERIAL, inner_kind=LoopKind.SERIAL)
    x = np.arange(n * m, dtype=np.float32)
    expected = -x.reshape(m, n).T.reshape(-1)
    np.testing.assert_array_equal(run([loop], x, np.zeros(n * m, np.float32), sizes=(n, m)), expected)


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_flatten_recovers_the_indices(n, m):
    outer = transposing(1, N)
    inner = only_loop(outer.body)
    flat = flatten([outer, inner], inner.body, Names(), LoopKind.PARALLEL)
    assert isinstance(flat.body[0], Let) and flat.kind is LoopKind.PARALLEL
    x = np.arange(n * m, dtype=np.float32)
    expected = -x.reshape(m, n).T.reshape(-1)
    np.testing.assert_array_equal(run([flat], x, np.zeros(n * m, np.float32), sizes=(n, m)), expected)


@pytest.mark.parametrize("unroll", [1, 4])
@pytest.mark.parametrize(("n", "m"), [*SIZES, (3, 67)])
def test_a_sum_on_lanes(n, m, unroll):
    loop = summing(M, 1)
    names = Names()
    body = tuple(new for stmt in loop.body for new in (lanes_of(stmt, 8, unroll, names) if isinstance(stmt, For) else (stmt,)))
    x = np.random.default_rng(0).integers(-9, 9, (n, m)).astype(np.float32)  # exact in any order
    got = run([For(loop.var, N, body)], x.reshape(-1), np.zeros(n, np.float32), sizes=(n, m))
    np.testing.assert_array_equal(got, x.sum(1))


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_lanes_across_the_loop_around_a_sum(n, m):
    body = distribute(summing(1, N), 8, Names())
    x = np.random.default_rng(0).integers(-9, 9, (m, n)).astype(np.float32)
    got = run(drop_unused(body), x.reshape(-1), np.zeros(n, np.float32), sizes=(n, m))
    np.testing.assert_array_equal(got, x.sum(0))
    vectors = [stmt for stmt in walk(body) if isinstance(stmt, For) and stmt.kind is LoopKind.VECTOR]
    steps = {access.step for loop in vectors for access in accesses(loop.body, loop.var) if access.buffer == "p0"}
    assert steps == {1}


def test_a_branch_that_differs_between_lanes_is_not_distributed():
    loop = summing(1, N)
    branch = If(op("lt", Load("p0", (dims.symbol(loop.var),), F32), Const(0.0, F32)), loop.body)
    assert distribute(For(loop.var, N, (branch,)), 8, Names()) is None


def test_an_accumulator_that_is_read_elsewhere_is_no_sum():
    nest = Nest()
    total = nest.alloc(F32, (1,), Space.REGISTER)
    with nest.loop(M) as j:
        nest.store("p1", j, Load(total, (0,), F32))
        nest.store(total, 0, op("add", Load(total, (0,), F32), Load("p0", (j,), F32)))
    assert accumulation(nest.block()[-1]) is None


def test_what_nothing_reads_is_dropped():
    nest = Nest()
    unread = nest.alloc(F32, (1,), Space.REGISTER)
    nest.store(unread, 0, Const(1.0, F32))
    nest.let(Const(2.0, F32))
    with nest.loop(N) as i:
        nest.store("p1", i, Const(3.0, F32))
    (kept,) = drop_unused(nest.block())
    assert isinstance(kept, For) and isinstance(kept.body[0], Store)


def bordered(cond):
    """p1[i*m + j] = p0[i*m + j] where cond(i, j), else 1; vectors along j."""
    nest = Nest()
    with nest.loop(N) as i, nest.loop(M, LoopKind.VECTOR, 8) as j:
        inside = cond(i, j)
        nest.store("p1", i * M + j, Select(inside, Load("p0", (i * M + j,), F32, inside), Const(1.0, F32)))
    return nest.block()


@pytest.mark.parametrize("n,m", SIZES)
def test_a_choice_of_all_lanes_is_made_before_the_vectors(n, m):
    body = map_loops(bordered(lambda i, j: both(compare("ge", i, 1), compare("lt", i, N - 1))), unswitched)
    assert any(isinstance(stmt, If) for stmt in walk(body))
    loads = [part for stmt in walk(body) for part in postorder(*expressions(stmt)) if isinstance(part, Load)]
    assert all(load.mask is None for load in loads)
    x = np.random.default_rng(0).standard_normal((n, m)).astype(np.float32)
    want = x.copy()
    want[:1], want[max(n - 1, 0) :] = 1, 1
    np.testing.assert_array_equal(run(body, x.reshape(-1), np.zeros(n * m, np.float32), sizes=[n, m]).reshape(n, m), want)


def test_a_choice_of_each_lane_stays_in_the_vectors():
    body = bordered(lambda i, j: compare("lt", j, M - 1))
    assert not any(isinstance(stmt, If) for stmt in walk(map_loops(body, unswitched)))
