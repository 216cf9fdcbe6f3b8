"""ONNX's own backend suite, through saved artifacts that another process loads.

    python -m tests.conformance [--only TEXT] [--jobs 2] [--update] [--verbose] [--page FILE]

Each case is compiled to artifact bytes; a runner process in which ``onnx``, ``llvmlite`` and ``tcompile.ir`` cannot be
imported loads and runs them. Shows how far it is and each failure as it comes, at the end ``passed N of M`` and the failures
by op, with ``--verbose`` the slowest cases too. Exits 1 only when a case recorded in
``conformance_passing.txt`` stops passing (``--update`` records what passes now, and how many units in the last place its
outputs are from the exact ones). ``--page`` writes the table of operators from that record and runs only the cases that are
not in it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from tests.conformance_judge import RANDOM, Case, judge
from tests.conformance_progress import Result, shown
from tests.conformance_runner import Runner
from tests.conformance_ulp import largest_ulp

RECORD = Path(__file__).with_name("conformance_passing.txt")
KINDS = ("node", "simple", "pytorch-operator", "pytorch-converted", "real")
SLOWEST = 20  # cases that --verbose lists


def all_cases() -> dict[str, tuple[Case, object]]:
    """Every case of the installed onnx by name (names repeat between kinds: the kind is part of the key)."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {f"{kind}/{t.name}": (Case(t.name, kind, t.rtol, t.atol), t) for kind in KINDS for t in load_model_tests(kind=kind)}


def load_case(test) -> tuple[onnx.ModelProto, list[tuple[list, list]]]:
    """The model and its data sets; light models are given random inputs' names only and run for their shapes."""
    if test.model is not None:
        return test.model, [([plain(x) for x in inputs], [plain(y) for y in outputs]) for inputs, outputs in test.data_sets]
    if test.url is not None:
        path = Path(onnx.__file__).parent / test.url.removeprefix("onnx/")
        model = onnx.load(path)
        return model, [light_data(path)]
    folder = Path(test.model_dir)
    model = onnx.load(folder / "model.onnx")
    sets = []
    for data in sorted(folder.glob("test_data_set_*")):
        sets.append((read_protos(data, "input", model.graph.input), read_protos(data, "output", model.graph.output)))
    return model, sets


def plain(data):
    """Node cases give tensors as arrays, or as protos where NumPy has no such type."""
    converters = {
        onnx.TensorProto: numpy_helper.to_array,
        onnx.SequenceProto: numpy_helper.to_list,
        onnx.OptionalProto: numpy_helper.to_optional,
    }
    return converters.get(type(data), lambda same: same)(data)


def light_data(path: Path) -> tuple[list, list]:
    """The inputs that onnx's runner draws for a light model, and the outputs it compares with."""
    model = onnx.load(path)
    initial = {tensor.name for tensor in model.graph.initializer}
    inputs = []
    for value in model.graph.input:
        if value.name not in initial:
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            inputs.append((np.arange(np.prod(shape)).reshape(shape) / np.prod(shape)).astype(np.float32))
    expected = onnx.TensorProto()
    expected.ParseFromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
    return inputs, [numpy_helper.to_array(expected)]


def read_protos(folder: Path, stem: str, values) -> list:
    """Tensors, sequences or optionals of one data set, in order."""
    result = []
    for k, value in enumerate(values):
        path = folder / f"{stem}_{k}.pb"
        if not path.exists():
            break
        kind = value.type.WhichOneof("value")
        proto = {"sequence_type": onnx.SequenceProto, "optional_type": onnx.OptionalProto}.get(kind, onnx.TensorProto)()
        proto.ParseFromString(path.read_bytes())
        convert = {"sequence_type": numpy_helper.to_list, "optional_type": numpy_helper.to_optional}.get(kind, numpy_helper.to_array)
        result.append(convert(proto))
    return result


_CASES: dict[str, tuple[Case, object]] = {}
_RUNNER = Runner()
_MEASURE = False


def run_case(key: str) -> Result:
    """Compiles a case, runs its data sets and judges the outputs."""
    from tcompile.pipeline import Options, compile_artifact

    case, test = _CASES[key]
    start, worst = time.perf_counter(), None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, data_sets = load_case(test)
            artifact = compile_artifact(model, options=Options(workers=0))  # this process is one of several
            assert data_sets, "the case has no data"
            for inputs, expected in data_sets:
                got = _RUNNER.run(artifact, list(inputs))
                judge(case, inputs, got, list(expected))
                if _MEASURE and case.kind == "node" and case.key not in RANDOM:
                    worst = largest_ulp(model, inputs, got)
        reason = ""
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if os.environ.get("CONFORMANCE_TRACE"):
            traceback.print_exc()
    return Result(key, reason, time.perf_counter() - start, worst)


def operators(test) -> str:
    """The op types of a node case."""
    return "+".join(sorted({node.op_type for node in test.model.graph.node})) if test.model is not None else "models"


def main() -> int:
    """Runs the suite; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--update", action="store_true", help="record what passes now")
    parser.add_argument("--verbose", action="store_true", help="list the slowest cases")
    parser.add_argument("--page", type=Path, help="write the operators and what passes of them")
    arguments = parser.parse_args()
    global _MEASURE
    _MEASURE = arguments.update
    _CASES.update(all_cases())
    known = recorded_cases().keys() if arguments.page else set()
    keys = [key for key in _CASES if arguments.only in key and key not in known]
    results = sorted(shown(run_cases(keys, arguments.jobs), len(keys)), key=lambda result: keys.index(result.key))
    if arguments.page:
        write_page(arguments.page, results)
        return 0
    return report(results, arguments)


def run_cases(keys: list[str], jobs: int) -> Iterator[Result]:
    """The results of cases as they come, each from one of ``jobs`` worker processes."""
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        pending = [pool.submit(run_case, key) for key in keys]
        try:
            yield from (done.result() for done in as_completed(pending))
        finally:
            pool.shutdown(cancel_futures=True)  # after an interrupt, those that have not begun


def recorded_cases() -> dict[str, float | None]:
    """The cases that pass, as recorded, with their largest errors in units in the last place where they have been measured."""
    lines = [line.split() for line in RECORD.read_text().splitlines()] if RECORD.exists() else []
    return {name: float(ulp[0]) if ulp else None for name, *ulp in lines}


def record(passed: Mapping[str, float | None]) -> None:
    """Writes what ``recorded_cases`` reads."""
    RECORD.write_text("".join(f"{key}\n" if ulp is None else f"{key} {ulp:.3g}\n" for key, ulp in sorted(passed.items())))


def write_page(path: Path, results: list[Result]) -> None:
    """The operator page; ``results`` are those of the cases that are not recorded."""
    from tests.conformance_page import page

    models = {key: test.model if case.kind == "node" else None for key, (case, test) in _CASES.items()}
    passing = recorded_cases() | {result.key: result.ulp for result in results if not result.reason}
    kept = {key: ulp for key, ulp in passing.items() if key in models}
    path.write_text(page(models, kept, {result.key: result.reason for result in results}))


def report(results: list[Result], arguments: argparse.Namespace) -> int:
    """Prints the figures; 1 where a recorded case fails."""
    passed = {result.key: result.ulp for result in results if not result.reason}
    reasons = {result.key: result.reason for result in results if result.reason}
    failures = Counter(operators(_CASES[key][1]) for key in reasons)
    print("\n".join(f"  {count:4}  {name}" for name, count in failures.most_common()) or "  no failures")
    if arguments.verbose:
        slowest = sorted(results, key=lambda result: -result.seconds)[:SLOWEST]
        print("\n".join(f"  {result.seconds:7.2f} s  {result.key}" for result in slowest))
    recorded = recorded_cases()
    lost = sorted(recorded.keys() & reasons.keys())
    for key in lost:
        print(f"stopped passing: {key}: {reasons[key]}")
    if arguments.update:
        record({key: ulp for key, ulp in recorded.items() if key not in reasons} | passed)
    print(f"crashes: {sum('CRASH' in reason for reason in reasons.values())}")
    print(f"passed {len(passed)} of {len(results)}")
    return 1 if lost and not arguments.update else 0


if __name__ == "__main__":
    sys.exit(main())
