"""Every core op on every dtype it takes as CUDA C under the shim, against its NumPy meaning; a few forms of each.

All forms: ``python -m tests.cuda.problems --all``.
"""

from __future__ import annotations

import os

import pytest

from tests.cuda.problems import OPS, check_batch, few
from tests.problems.problem import batches

SEED = int(os.environ.get("TCOMPILE_TEST_SEED", "0"))


@pytest.mark.parametrize("op", OPS)
def test_the_op_alone(op):
    for batch in batches(few(op, SEED), SEED):
        check_batch(batch, optimised=False)


@pytest.mark.parametrize("op", [op for op in OPS if op != "fused"])  # the last pass makes fused nodes and takes none
def test_the_op_after_all_passes(op):
    for batch in batches(few(op, SEED + 1, most=6), SEED + 1):
        check_batch(batch, optimised=True)
