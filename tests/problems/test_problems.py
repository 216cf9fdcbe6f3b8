"""Every core op, on every dtype it takes, compiled and run against its NumPy meaning."""

from __future__ import annotations

import os

import pytest

from tcompile.ir.ops import REGISTRY
from tests.problems import PROBLEMS
from tests.problems.compiled import check_batch
from tests.problems.problem import batches, sample

SEED = int(os.environ.get("TCOMPILE_TEST_SEED", "0"))


def test_every_core_op_has_a_problem():
    assert set(PROBLEMS) == set(REGISTRY)


@pytest.mark.parametrize("op", PROBLEMS)
def test_the_op_alone(op):
    for batch in batches(sample(PROBLEMS[op], SEED), SEED):
        check_batch(batch, optimised=False)


@pytest.mark.parametrize("op", sorted(PROBLEMS.keys() - {"fused"}))  # the last pass makes fused nodes and takes none
def test_the_op_after_all_passes(op):
    few = sample(PROBLEMS[op], SEED + 1)
    for batch in batches(few[:: max(1, len(few) // 8)], SEED + 1):
        check_batch(batch, optimised=True)
