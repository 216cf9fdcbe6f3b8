"""Long runs, of ``python -m tests.fuzz`` with another ``--seed`` each.

``--examples N [--bounds]`` draws graphs, ``--mutants N [--files FOLDER]`` mutates files, ``--descriptors N`` what the runtime in C reads.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.descriptors import build, open_mutants
from tests.fuzz.graphs import check, draw_graph
from tests.fuzz.mutants import replay, run_mutants


def main() -> int:
    """Prints what is found; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=0)
    parser.add_argument("--mutants", type=int, default=0)
    parser.add_argument("--descriptors", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bounds", action="store_true", help="compile with every access checked")
    parser.add_argument("--files", type=Path, action="append", default=[], help="models to mutate, beside those of onnx")
    parser.add_argument("--keep", type=Path, default=Path("mutants"), help="where mutants that were not refused as they should go")
    parser.add_argument("--replay", type=Path, help="a kept mutant")
    arguments = parser.parse_args()
    if arguments.replay:
        replay(arguments.replay)
    failed = bool(arguments.mutants) and not run_mutants(arguments)
    failed |= bool(arguments.descriptors) and not run_descriptors(arguments.descriptors, arguments.seed)
    failed |= bool(arguments.examples) and not run_graphs(arguments.examples, arguments.seed, bounds=arguments.bounds)
    return int(failed)


def run_descriptors(count: int, seed: int) -> bool:
    """Opens mutated descriptors in C; prints what became of them, or what the sanitizer says."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            said = open_mutants(build(Path(folder)), Path(folder), count, seed)
        except subprocess.CalledProcessError as error:
            print(error.stderr)
            return False
    print("\n".join(f"{name}: {line}" for name, line in said.items()))
    return True


def run_graphs(examples: int, number: int, *, bounds: bool) -> bool:
    """Draws graphs and shrinks what fails; prints the smallest model that does."""
    last, ran, start = None, 0, time.monotonic()

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
    )
    @given(st.data())
    def test(data):
        nonlocal last, ran
        drawn = draw_graph(data)
        ran += 1
        if ran % 100 == 0:
            print(f"{ran} graphs in {time.monotonic() - start:.0f} s", flush=True)
        try:
            check(drawn, threads=data.draw(st.sampled_from((1, 3))), bounds=bounds)
        except Exception:
            last = drawn
            raise

    try:
        test()
    except Exception:
        traceback.print_exc()
        print(last)
        return False
    print(f"{ran} graphs agree, seed {number}")
    return True


if __name__ == "__main__":
    sys.exit(main())
