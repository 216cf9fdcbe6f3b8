"""GPU models: correct on every op's Problem and every public model, then timed against PyTorch and JAX on the same machine.

    python -m tcompile.benchmarks.gpu MODELS [--build DIR] [--only models,kernels,bench,problems] [--model TEXT] [--json FILE]
    python -m tcompile.benchmarks.gpu MODELS --target cuda-sm90 [--groups real,frameworks,...] [--symbolic] [--precision fp16]
                                                                       without a GPU: resources and static model of each kernel

MODELS is a folder as of ``benchmarks.models``. A call ends within ``--seconds`` (520); each part has its share of them, and what one
leaves goes to the next. What there is no time for is listed as left out: ``--json`` is written as results come, and a call with the
same file goes on after it. Nothing that hangs, dies or is refused ends the rest; it is listed by its name.

Times are between CUDA events around many runs on device arrays: ours as captured graphs, PyTorch's eager calls (cuBLAS, cuDNN),
torch.compile, and JAX (XLA, jitted; by the clock of the host). PyTorch and JAX run the same simplified core ops at fixed shapes;
single kernels are compared with PyTorch's own functions. Fractions are of the rates that this machine reaches in its own copy and products.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tcompile.benchmarks import gpu_tasks as tasks
from tcompile.benchmarks.gpu_apart import Apart, Failed
from tcompile.benchmarks.gpu_models import GROUPS, found_models
from tcompile.benchmarks.model_set import Model, default_build
from tcompile.errors import Error

SHARES = {"compile": 30, "models": 12, "kernels": 14, "bench": 26, "problems": 18}  # of the time, in this order
PARTS = tuple(SHARES)[1:]
PEERS = ("eager", "compile", "jax", "compile_fp16")
RATIOS = (("ours", "compile"), ("ours", "eager"), ("ours", "jax"), ("ours_fp16", "compile_fp16"))
FIRST = ("resnet50_b1", "bert_base_b1", "mobilenetv2", "minilm", "gpt2", "whisper", "unet", "silero_vad", "mnist_cntk", "ultraface_rfb_320")
LONGEST = 90.0  # seconds of one piece of work


def say(text: str) -> None:
    """A line, at once: a call that is cut off has told what it found."""
    print(text, flush=True)


class Report:
    """What was found, written into a file each time that something is added. One that is there already is gone on with."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.content: dict[str, Any] = {"kernels": {}, "models": {}, "bench": {}, "problems": {}, "failed": {}, "left_out": []}
        if path is not None and path.exists():
            self.content |= json.loads(path.read_text()) | {"failed": {}, "left_out": []}

    def save(self) -> None:
        """Writes the file whole, then renames it."""
        if self.path is not None:
            temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_text(json.dumps(self.content, indent=1) + "\n")
            temporary.replace(self.path)

    def add(self, part: str, name: str, value: Any) -> None:
        """One result."""
        self.content[part][name] = value
        self.save()

    def fail(self, what: str, error: Exception) -> None:
        """What could not be done, and why."""
        say(f"{what}: {error}")
        self.content["failed"][what] = str(error)
        self.save()

    def leave_out(self, what: str) -> None:
        """What there was no time for."""
        self.content["left_out"].append(what)

    def wrong(self) -> list[str]:
        """The models, ops and kernels whose answers were wrong."""
        models = [f"{name}: {row['wrong']}" for name, row in self.content["models"].items() if row["wrong"]]
        ops = [f"op {name}: {row['wrong']}" for name, row in self.content["problems"].items() if row["wrong"]]
        return models + ops + [f"kernel {name}" for name, row in self.content["kernels"].items() if row["wrong"]]


class Clock:
    """The time of a call, and of its parts."""

    def __init__(self, seconds: float, parts: Iterable[str]) -> None:
        chosen = [part for part in SHARES if part in parts]
        start, total = time.monotonic(), sum(SHARES[part] for part in chosen)
        done = 0
        self.ends = {}
        for part in chosen:
            done += SHARES[part]
            self.ends[part] = start + seconds * done / total

    def left(self, part: str) -> float:
        """Seconds until a part must have ended."""
        return self.ends[part] - time.monotonic()


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints tables, writes JSON; 1 where an answer was wrong."""
    chosen = _options().parse_args(arguments)
    report = Report(chosen.json)
    device = None if chosen.target else _device(chosen.device)
    groups = chosen.groups.split(",") if device is None else GROUPS
    models = found_models(chosen.folder, chosen.build, report.fail, groups)
    models = sorted((m for m in models if chosen.model in m.name), key=lambda m: not m.name.startswith(FIRST))
    if device is None:
        return _static(models, chosen, report)
    report.content |= {"device": device.name, "sm": device.sm}
    Run(models, chosen, device, report).all()
    return int(bool(report.wrong()))


def sources() -> str:
    """A digest of tcompile's own text: artifacts of another text are not taken for this one's."""
    found = hashlib.sha256()
    for room in ("tcompile", "ir", "passes", "codegen", "runtime"):
        for path in sorted((Path(__file__).parent.parent / room).glob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--build", type=Path, default=default_build(), help="where models are completed, and their artifacts and references kept"
    )
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--model", default="", help="models whose name holds this text")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--target", help="report on this target without a GPU")
    parser.add_argument("--groups", default=",".join(GROUPS), help="of the report without a GPU; frameworks and light are others")
    parser.add_argument("--precision", default="f32", choices=("f32", "tf32", "fp16", "bf16"), help="of the report without a GPU")
    parser.add_argument("--symbolic", action="store_true", help="the report without a GPU leaves symbolic dimensions as they are")
    parser.add_argument("--seconds", type=float, default=520.0)
    parser.add_argument("--workers", type=int, default=min(12, os.cpu_count() or 1))
    parser.add_argument("--json", type=Path)
    return parser


def _static(models: list[Model], chosen: argparse.Namespace, report: Report) -> int:
    """Prints and keeps what is known of each model without a GPU; 1 where one does not compile."""
    from rich.console import Console

    from tcompile.benchmarks.gpu_report import show_rows
    from tcompile.benchmarks.gpu_static import StaticReport, static_row
    from tcompile.pipeline import Options

    console, target = Console(width=200, highlight=False), chosen.target or "cuda-sm90"
    made_by = f"{sources()} {target} {chosen.precision} {'symbolic' if chosen.symbolic else 'fixed'}"
    static, options = StaticReport(report.content, made_by), Options(precision=chosen.precision)
    for model in static.missing(models):
        line = static.add(model, partial(static_row, model, target, options, symbolic=chosen.symbolic))
        if model.name in static.content["models"]:
            show_rows(f"{model.name} for {target}", static.content["models"][model.name]["kernels"], console)
        console.print(line, markup=False)
        report.content |= static.content
        report.save()
    console.print(static.finish(target), markup=False)
    console.print("to measure on a machine with a GPU: python -m tcompile.benchmarks.gpu MODELS --json gpu.json")
    report.content |= static.content
    report.save()
    return int(bool(static.content["refused"]))


def _device(name: str) -> Any:
    from tcompile.runtime.cuda_devices import open_device

    try:
        return open_device(name)
    except Error as error:
        say(f"no GPU: {error}\nwhat is known without one:")
        return None


class Run:
    """One call on a machine with a GPU."""

    def __init__(self, models: list[Model], chosen: argparse.Namespace, device: Any, report: Report) -> None:
        self.models, self.chosen, self.report = models, chosen, report
        self.parts = [part for part in PARTS if part in chosen.only.split(",")]
        needs_models = {"models", "bench"} & set(self.parts)
        self.clock = Clock(chosen.seconds, [*self.parts, *(["compile"] if needs_models else [])])
        self.target, self.folder = f"cuda-sm{device.sm}", chosen.build / f"gpu-sm{device.sm}-{sources()}"
        self.apart = Apart()

    def all(self) -> None:
        """The parts in turn."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.apart:
            if "compile" in self.clock.ends:
                self.run_compile()
            for part in self.parts:
                getattr(self, f"run_{part}")()
        self.report.save()
        wrong = self.report.wrong()
        say(f"wrong: {'; '.join(wrong) or 'nothing'}")
        say(f"failed: {', '.join(self.report.content['failed']) or 'nothing'}")
        say(f"left out for lack of time: {', '.join(self.report.content['left_out']) or 'nothing'}")

    def run_compile(self) -> None:
        """Artifacts and references of all models, several at a time; those that are there are taken as they are."""
        work = [(f"reference {model.name}", (tasks.reference_one, model, self.folder)) for model in self.models if "models" in self.parts]
        for precision in tasks.PRECISIONS:
            for model in self.models:
                if not tasks.artifact(self.folder, model, precision).exists():
                    work.append((f"compile {model.name} {precision}", (tasks.compile_one, model, self.target, self.folder, precision)))
        work.sort(key=lambda item: "f32" not in item[0])  # what the later parts need most
        self.side_by_side("compile", work, lambda name, seconds: None)

    def run_models(self) -> None:
        """Each model's outputs on the device against the interpreter's."""
        for model in self.models_with_artifacts("f32"):
            if not (self.folder / f"{model.name}.npz").exists():
                self.report.leave_out(f"models {model.name}: its reference")
                continue
            for precision in tasks.PRECISIONS:
                key = f"{model.name} {precision}"
                if key not in self.report.content["models"] and tasks.artifact(self.folder, model, precision).exists():
                    self.one("models", key, tasks.verify_one, model, self.folder, self.chosen.device, precision)

    def run_kernels(self) -> None:
        """Single kernels beside PyTorch's own, with the fraction of the machine's measured rate."""
        from tcompile.benchmarks.gpu_cases import kernel_cases

        if "rates" not in self.report.content:
            try:
                self.report.content["rates"] = self.apart.call(tasks.rates, seconds=self.clock.left("kernels"))
            except Failed as error:
                return self.report.fail("rates", error)
        rates = self.report.content["rates"]
        units = ", ".join(f"{name} {rate / 1e9:.0f} {'GB/s' if name == 'copy' else 'GFLOP/s'}" for name, rate in rates.items())
        say(f"this machine reaches {units}")
        for case in kernel_cases():
            if case.name not in self.report.content["kernels"]:
                self.one("kernels", case.name, tasks.kernel, case.name, self.chosen.device, rates)
        return None

    def run_bench(self) -> None:
        """Milliseconds of each model: ours in float32 and with float16 products, and those of the peers."""
        for model in self.models_with_artifacts("f32"):
            row = self.report.content["bench"].setdefault(model.name, {})
            for precision, name in zip(tasks.PRECISIONS, ("ours", "ours_fp16"), strict=True):
                if name not in row and tasks.artifact(self.folder, model, precision).exists():
                    self.time(row, model, name, tasks.ours, model, self.folder, self.chosen.device, precision)
            for name in PEERS:
                if name not in row:
                    self.time(row, model, name, tasks.peer, model, name)
            if "gflop" not in row:
                self.time(row, model, "gflop", tasks.flops, model)
                row["gflop"] = row.get("gflop", 0) / 1e9
            shown = "  ".join(f"{name} {row[name]:.3f}" for name in ("ours", "ours_fp16", *PEERS) if row.get(name))
            say(f"{model.name:34} ms: {shown}")
            self.report.save()
        self.report.content["geomean"] = {}
        for mine, theirs in RATIOS:
            ratios = [row[theirs] / row[mine] for row in self.report.content["bench"].values() if row.get(theirs) and row.get(mine)]
            if ratios:
                mean = math.exp(statistics.fmean(map(math.log, ratios)))
                self.report.content["geomean"][f"{theirs} / {mine}"] = mean
                say(f"geometric mean of {theirs} / {mine} over {len(ratios)} models: {mean:.2f}x")

    def run_problems(self) -> None:
        """Every op's Problem, several at a time. They stand in the repository's tests, beside which this must run."""
        try:
            from tests.cuda.problems import OPS
        except ImportError as error:
            return self.report.fail("problems (run at the root of the repository)", error)
        found = self.report.content["problems"]
        work = [(op, (tasks.problem, op, self.chosen.device)) for op in OPS if op not in found]
        self.side_by_side("problems", work, lambda op, row: self.report.add("problems", op, row))
        agree = sum(not row["wrong"] for row in found.values())
        say(f"{agree} of {len(found)} ops agree on the device; {len(OPS) - len(found)} were not tried")
        return None

    # How a part is done -------------------------------------------------------------------------------

    def models_with_artifacts(self, precision: str) -> list[Model]:
        """The models that could be compiled."""
        return [model for model in self.models if tasks.artifact(self.folder, model, precision).exists()]

    def one(self, part: str, name: str, function: Callable[..., Any], *arguments: Any) -> None:
        """A piece of work in the part's time; its result is a row of the report and a line."""
        if self.clock.left(part) < 3:
            return self.report.leave_out(f"{part} {name}")
        try:
            row = self.apart.call(function, *arguments, seconds=min(self.clock.left(part), LONGEST))
        except Failed as error:
            return self.report.fail(f"{part} {name}", error)
        self.report.add(part, name, row)
        say(f"{name:34} " + "  ".join(f"{key} {_shown(value)}" for key, value in row.items() if value != ""))
        return None

    def time(self, row: dict[str, Any], model: Model, name: str, function: Callable[..., Any], *arguments: Any) -> None:
        """One time of a model; what failed is named with the reason."""
        if self.clock.left("bench") < 3:
            return self.report.leave_out(f"bench {model.name} {name}")
        try:
            row[name] = self.apart.call(function, *arguments, seconds=min(self.clock.left("bench"), LONGEST))
        except Failed as error:
            self.report.fail(f"bench {model.name} {name}", error)
        return None

    def side_by_side(self, part: str, work: Sequence[tuple[str, tuple[Any, ...]]], done: Callable[[str, Any], None]) -> None:
        """Pieces of work by several processes, until the part's time is over."""
        with ExitStack() as stack, ThreadPoolExecutor(max(self.chosen.workers, 1)) as threads:
            free: SimpleQueue[Apart] = SimpleQueue()
            for _ in range(max(self.chosen.workers, 1)):
                free.put(stack.enter_context(Apart()))

            def one(item: tuple[str, tuple[Any, ...]]) -> None:
                name, (function, *arguments) = item
                if self.clock.left(part) < 3:
                    return self.report.leave_out(f"{part} {name}")
                apart = free.get()
                try:
                    done(name, apart.call(function, *arguments, seconds=self.clock.left(part)))
                except Failed as error:
                    self.report.fail(f"{part} {name}", error)
                finally:
                    free.put(apart)
                return None

            list(threads.map(one, work))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
