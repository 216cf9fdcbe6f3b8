"""Problems of many seeds: ``python -m tests.problems [--seed S] [--rounds N] [--op NAME]``. Every form of every op."""

from __future__ import annotations

import argparse
import sys
import traceback

from tcompile.errors import Error
from tests.problems import PROBLEMS
from tests.problems.compiled import check_batch
from tests.problems.problem import batches


def main() -> int:
    """Prints what fails, with the seed that shows it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--op", choices=sorted(PROBLEMS), action="append")
    arguments = parser.parse_args()
    failures = 0
    for seed in range(arguments.seed, arguments.seed + arguments.rounds):
        for op in arguments.op or PROBLEMS:
            failures += check_op(op, seed)
    print(f"{failures} batches failed")
    return int(failures > 0)


def check_op(op: str, seed: int) -> int:
    """How many batches of an op fail."""
    failures = 0
    for batch in batches(PROBLEMS[op], seed):
        for optimised in (False,) if op == "fused" else (False, True):
            try:
                check_batch(batch, optimised=optimised)
            except (AssertionError, Error) as error:
                print(f"--seed {seed} --op {op}: {error}", flush=True)
                failures += 1
            except Exception:
                print(f"--seed {seed} --op {op} {optimised=}:\n{traceback.format_exc()}", flush=True)
                failures += 1
    return failures


if __name__ == "__main__":
    sys.exit(main())
