"""What the cost model chose against what it might have chosen, measured: for each convolution and matrix product of models.

    python -m benchmarks.choices FOLDER [--only TEXT] [--json FILE]

Each alternative that the compiler considered and thought at most a third slower (another algorithm: twice as slow) is
compiled, the node alone, and run in turn with the others: the CPU time of one thread, the least of many runs, between which
as many bytes are read as the model has other weights, so that caches hold what they would. Listed are choices that lose more
than a tenth to another in each of three measurements.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tcompile.benchmarks.contractions import SOURCE, Contraction, collect, key_of
from tcompile.benchmarks.model_set import REFUSED, of_numbers
from tcompile.benchmarks.model_set import collect as models_of
from tcompile.benchmarks.models import default_build
from tcompile.errors import Error
from tcompile.ir.choices import Choice, forcing, watching
from tcompile.ir.target import Target, native_target
from tcompile.pipeline import compile_graph
from tcompile.runtime import Executable, load

TOLERATED = 1.1  # of the best time
CLOSE = 1.3  # of the best estimate: what is thought slower is not tried
CLOSE_ALGORITHM = 2.2  # where the choice is about the whole algorithm, of which estimates know least
MOST = 5  # options of one choice that are tried, the best by estimate
_CONFIRMATIONS = 3  # of a loss
_ROUNDS = 8, 40
_SECONDS = 0.3  # of CPU time for one choice
_EVICTED = {"convolution": 48 << 20}  # algorithms differ in their weights
_EVICTED_ELSE = 2 << 20
_LEAST_SHARE = 0.01  # of its model's operations: smaller nodes are not looked at


@dataclass(frozen=True)
class Verdict:
    """One choice of one node: ``seconds`` of each option that was tried."""

    contraction: Contraction
    choice: Choice
    seconds: dict[str, float]

    @property
    def best(self) -> str:
        """The fastest option."""
        return min(self.seconds, key=self.seconds.__getitem__)

    @property
    def loss(self) -> float:
        """The time of what was chosen over that of the best."""
        return self.seconds[self.choice.chosen] / self.seconds[self.best]

    def report(self) -> dict[str, Any]:
        """As JSON holds it. ``estimate`` is in the choice's own measure."""
        options = [
            {"name": name, "estimate": self.choice.estimate(name), "seconds": seconds, "chosen": name == self.choice.chosen}
            for name, seconds in self.seconds.items()
        ]
        one = self.contraction
        return {"node": one.name, "uses": one.uses, "choice": self.choice.what, "loss": self.loss, "best": self.best, "options": options}


def judge(contraction: Contraction, target: Target) -> list[Verdict]:
    """Measures every choice that compiling a node makes: one of them changed at a time, and those that follow made anew."""
    with watching() as made:
        chosen = _compiled(contraction, target)
    verdicts = []
    for choice in {choice.what: choice for choice in reversed(made)}.values():  # the first of each kind: the node's own
        names = _worth_trying(choice)
        if len(names) < 2:
            continue
        built = {choice.chosen: chosen}
        for name in names:
            with forcing({choice.what: name}):
                other = chosen if name == choice.chosen else _compiled(contraction, target)
            if _kernels(other) not in map(_kernels, built.values()):  # else it was the choice of what reads the result
                built[name] = other
        if len(built) > 1:
            verdicts.append(_verdict(contraction, choice, built))
    return verdicts


def _verdict(contraction: Contraction, choice: Choice, built: dict[str, Executable]) -> Verdict:
    """Times the options. A choice that looks wrong is timed again: of a busy machine's measurements the one counts that accuses least."""
    inputs, verdicts = _inputs(contraction), []
    while not verdicts or (verdicts[-1].loss > TOLERATED and len(verdicts) < _CONFIRMATIONS):
        verdicts.append(Verdict(contraction, choice, measure(choice.what, built, inputs, contraction.rest_bytes)))
    return min(verdicts, key=lambda verdict: verdict.loss)


def _kernels(executable: Executable) -> list[str]:
    """The node's kernels; their names tell their contents."""
    return [call.kernel for call in executable.calls if SOURCE in call.nodes]


def _worth_trying(choice: Choice) -> list[str]:
    least, close = choice.estimate(choice.chosen), CLOSE_ALGORITHM if choice.what == "convolution" else CLOSE
    ranked = sorted(choice.options, key=lambda option: option[1])
    return [name for name, cycles in ranked if cycles <= close * least][:MOST]


def _compiled(contraction: Contraction, target: Target) -> Executable:
    stream = io.BytesIO()
    compile_graph(contraction.graph(), target).write(stream)
    return load(stream.getvalue(), threads=1)


def _inputs(contraction: Contraction) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    values = [value for k, value in enumerate(contraction.node.inputs) if k not in contraction.weights]
    return [(rng.standard_normal(v.shape) if v.dtype.is_float else rng.integers(0, 100, v.shape)).astype(v.dtype.numpy) for v in values]


def measure(what: str, built: dict[str, Executable], inputs: list[np.ndarray], evicted: int) -> dict[str, float]:
    """Seconds of the kernels that templates wrote, the least of runs in turn."""
    other = np.zeros(max(min(evicted, _EVICTED.get(what, _EVICTED_ELSE)) // 8, 1))
    best = dict.fromkeys(built, np.inf)
    start, rounds = time.thread_time(), 0
    while rounds < _ROUNDS[0] or (rounds < _ROUNDS[1] and time.thread_time() - start < _SECONDS):
        for name, executable in built.items():
            calls = executable.profile(inputs, runs=1, clock="cpu", before=other.sum).calls
            ours = [call for call in calls if SOURCE in call.nodes]
            seconds = sum(call.fastest for call in ours if "template" in call.record) or sum(call.fastest for call in ours)
            best[name] = min(best[name], seconds)
        rounds += 1
    return best


def contractions(paths: Sequence[tuple[Path, Any]], target: Target) -> list[Contraction]:
    """The distinct ones of all models that take a share of a model's operations."""
    found: dict[tuple, Contraction] = {}
    for path, inputs in paths:
        try:
            listed = list(collect(path, inputs, target))
        except Error as error:
            print(f"{path.stem}: {error}", file=sys.stderr)
            continue
        whole = sum(one.flops * sum(one.uses.values()) for one in listed)
        for one in listed:
            if one.flops * sum(one.uses.values()) < _LEAST_SHARE * whole:
                continue
            known = found.setdefault((*key_of(one.node, {}), tuple(sorted(one.weights))), one)
            known.uses |= one.uses
            known.rest_bytes = min(known.rest_bytes, one.rest_bytes)
    return list(found.values())


def show(verdicts: Sequence[Verdict], console: Console) -> None:
    """The table of what was chosen wrong, and how many choices there were."""
    wrong = sorted((one for one in verdicts if one.loss > TOLERATED), key=lambda one: -one.loss)
    table = Table("loss", "choice", "chosen", "estimate", "µs", "best", "estimate", "µs", "node", "models")
    for one in wrong:
        cells = [f"{one.loss - 1:.0%}", one.choice.what]
        for name in (one.choice.chosen, one.best):
            cells += [name, f"{one.choice.estimate(name):.5g}", f"{1e6 * one.seconds[name]:.1f}"]
        table.add_row(*cells, one.contraction.name, ", ".join(one.contraction.uses))
    console.print(table)
    console.print(f"{len(verdicts)} choices measured, {len(wrong)} lose more than {TOLERATED - 1:.0%}")


def main() -> int:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the public models")
    parser.add_argument("--only", default="", help="comma-separated texts; a model's name must contain one")
    parser.add_argument("--group", default="", help="only this group")
    parser.add_argument("--build", type=Path, default=default_build(), help="where recipes are completed")
    parser.add_argument("--json", type=Path, help="written after each node")
    arguments = parser.parse_args()
    texts = arguments.only.split(",")
    models = [one for one in models_of(arguments.folder, arguments.build) if any(text in one.name for text in texts)]
    models = [one for one in models if arguments.group in ("", one.group) and one.name not in REFUSED and of_numbers(one.path)]
    target, verdicts = native_target(), []
    listed = contractions([(model.path, model.inputs) for model in models], target)
    for number, one in enumerate(listed, 1):
        try:
            verdicts += judge(one, target)
        except Error as error:
            print(f"{one.name}: {error}", file=sys.stderr)
        print(f"{number}/{len(listed)} {one.name}", file=sys.stderr, flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps([verdict.report() for verdict in verdicts], indent=1))
    show(verdicts, Console(width=None if sys.stdout.isatty() else 200))
    return 0


if __name__ == "__main__":
    sys.exit(main())
