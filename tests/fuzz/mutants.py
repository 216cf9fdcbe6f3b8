"""Mutated .onnx and .tcm files: whatever they hold, compiling and loading them ends soon, with a result or a ``tcompile.Error``.

A worker process takes the mutants one by one. A crash is its death, a hang is no answer within ``SECONDS``; any exception that is
no ``tcompile.Error`` is a stray one. The mutants found are written to a folder; ``python -m tests.fuzz --replay FILE`` runs one again.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import resource
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from tcompile.runtime.container import read_entries
from tests.fuzz.mutate import mutated_bytes, mutated_descriptor, mutated_model

SECONDS = 60  # of wall time: on a busy machine too, what ends at all ends by then
MEMORY = 6 << 30  # bytes of address space: beyond them allocations fail
LARGEST = 400_000  # bytes of a file that mutants are made from
DEMO = Path(__file__).parents[2] / "tcompile" / "demo" / "digits.onnx"


@dataclass(frozen=True)
class Mutant:
    """A malformed file. ``runs``: compile it wholly and run it, not only import it."""

    origin: str
    form: str  # onnx, tcm
    data: bytes
    runs: bool


def seeds(folders: Iterable[Path]) -> dict[str, bytes]:
    """Good models by name: the demo's, ONNX's node cases, and those in ``folders``."""
    import onnx
    from onnx.backend.test.loader import load_model_tests

    found = {"demo": DEMO.read_bytes()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found |= {case.name: case.model.SerializeToString() for case in load_model_tests(kind="node")[::7]}
    for folder in folders:
        found |= {path.stem: path.read_bytes() for path in sorted(folder.rglob("*.onnx")) if path.stat().st_size <= LARGEST}
    return {name: data for name, data in found.items() if onnx.ModelProto.FromString(data).graph.node}


def mutants(count: int, seed: int, folders: Iterable[Path]) -> Iterator[Mutant]:
    """Four models to one artifact; of the artifacts half with hashes that fit."""
    rng, models = Random(seed), seeds(folders)
    names = list(models)
    artifacts = _artifacts(Random(seed), models)
    for _ in range(count):
        if rng.random() < 0.2 and artifacts:
            name, other = rng.choice(list(artifacts)), rng.choice(list(artifacts))
            rehashed = rng.random() < 0.5 and "descriptor.bin" in read_entries(memoryview(artifacts[name]))
            change = mutated_descriptor if rehashed else mutated_bytes
            yield Mutant(name, "tcm", change(rng, artifacts[name], artifacts[other]), not rehashed)
        else:
            name, other = rng.choice(names), rng.choice(names)
            change = mutated_model if rng.random() < 0.7 else mutated_bytes
            yield Mutant(name, "onnx", change(rng, models[name], models[other]), rng.random() < 0.3)


def _artifacts(rng: Random, models: dict[str, bytes]) -> dict[str, bytes]:
    """Compiled models: the demo's and a few of the others, host ops too."""
    import tcompile
    from tcompile.pipeline import compile_artifact

    made: dict[str, bytes] = {}
    for name in ("demo", *rng.sample(list(models), 24)):
        with contextlib.suppress(tcompile.Error):
            made[name] = compile_artifact(models[name])
    return made


# The worker -----------------------------------------------------------------------------------------------


def work(pipe: Connection) -> None:
    """Answers each mutant with what became of it, and where a stray exception came from."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    while True:
        try:
            mutant = pipe.recv()
        except EOFError:
            return
        pipe.send(outcome(mutant))


def outcome(mutant: Mutant) -> tuple[str, str]:
    """(accepted, refused or stray; the exception and the line it came from)."""
    import tcompile

    try:
        (_try_model if mutant.form == "onnx" else _try_artifact)(mutant)
    except tcompile.Error as error:
        return "refused", type(error).__name__
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/tests/" not in frame.filename and "/lib/" not in frame.filename] or frames
        where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        return "stray", f"{where}: {type(error).__name__}: {str(error)[:200]}"
    return "accepted", ""


def _try_model(mutant: Mutant) -> None:
    import tcompile
    from tcompile.ir.onnx_host import import_program

    if mutant.runs:
        _run(tcompile.compile(mutant.data, threads=1, workers=0))
    else:
        import_program(mutant.data)


def _try_artifact(mutant: Mutant) -> None:
    import tcompile

    executable = tcompile.load(mutant.data, threads=1)
    str(executable.inputs), str(executable.outputs), executable.report()
    if mutant.runs:
        _run(executable)


def _run(executable) -> None:
    from tcompile.accuracy import random_inputs

    if all(sum(extent for extent in spec.shape or () if isinstance(extent, int)) < 4096 for spec in executable.inputs):
        executable.run(random_inputs(executable.inputs, {}))


class Worker:
    """The process that takes mutants; a new one after a crash or a hang."""

    def __init__(self) -> None:
        self.process: multiprocessing.Process | None = None
        self.pipe: Connection | None = None

    def outcome(self, mutant: Mutant) -> tuple[str, str]:
        """As ``outcome``, and: crashed, hung."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=work, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
        try:
            self.pipe.send(mutant)
            if self.pipe.poll(SECONDS):
                return self.pipe.recv()
            result = "hung", f"no answer within {SECONDS} s"
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.process.join()
            result = "crashed", f"status {self.process.exitcode}"
        self.process.kill()
        self.process.join()
        self.process = None
        return result


def run_mutants(arguments: argparse.Namespace) -> bool:
    """Tries ``--mutants`` files; prints the counts and what was found; True where nothing was."""
    worker, counts, found = Worker(), Counter(), Counter()
    start = time.monotonic()
    for number, mutant in enumerate(mutants(arguments.mutants, arguments.seed, arguments.files), 1):
        what, detail = worker.outcome(mutant)
        counts[what] += 1
        if what in ("stray", "crashed", "hung"):
            _keep(arguments.keep, mutant, number, what, detail, found)
        if number % 500 == 0:
            print(f"{number} mutants in {time.monotonic() - start:.0f} s: {dict(counts)}", flush=True)
    print(f"mutants: {dict(sorted(counts.items()))}")
    return not found


def _keep(folder: Path, mutant: Mutant, number: int, what: str, detail: str, found: Counter) -> None:
    """Writes the first file of each kind of finding."""
    key = f"{what} {detail.split(': ')[0] if what == 'stray' else mutant.origin}"
    found[key] += 1
    if found[key] == 1:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{what}-{number}-{'run' if mutant.runs else 'import'}.{mutant.form}"
        path.write_bytes(mutant.data)
        print(f"{what}: {mutant.origin}: {detail} -> {path}", flush=True)


def replay(path: Path) -> None:
    """Tries one kept file in this process, with its traceback."""
    mutant = Mutant(path.stem, path.suffix.removeprefix("."), path.read_bytes(), path.stem.endswith("run"))
    (_try_model if mutant.form == "onnx" else _try_artifact)(mutant)
