"""One inference engine in a process of its own, driven over its standard input and output.

Engines with spinning thread pools disturb each other inside one process, so each gets its own, and between its turns a
process is stopped altogether (SIGSTOP, where the system has it). The protocol is one JSON object a line:

    {"load": path, "inputs": path.npz}       -> {"load_ms", "first_ms"}
    {"runs": 5, "batch": 3, "clock": "wall"} -> {"ms": [...]}: 5 samples, each the mean of 3 runs, after one that is not counted
    {"memory": true}                         -> {"peak_rss_mb", "rss_mb"}: import and inputs included

End of input ends the process.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tcompile.errors import Error

Run = Callable[[], object]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
_END_SECONDS = 10


def open_tcompile(path: str, inputs: Mapping[str, np.ndarray], threads: int) -> Run:
    """An artifact that was compiled before."""
    import tcompile

    executable = tcompile.load(path, threads=threads)
    return lambda: executable.run(inputs)


def open_onnxruntime(path: str, inputs: Mapping[str, np.ndarray], threads: int) -> Run:
    """ONNX Runtime's CPU provider with all optimisations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def open_openvino(path: str, inputs: Mapping[str, np.ndarray], threads: int) -> Run:
    """OpenVINO's CPU plugin for latency, in float32."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    return lambda: request.infer(inputs)


PACKAGES = {"tcompile": "tcompile.runtime", "onnxruntime": "onnxruntime", "openvino": "openvino"}
ENGINES = {"tcompile": open_tcompile, "onnxruntime": open_onnxruntime, "openvino": open_openvino}


class Engine:
    """A running engine process, seen from the benchmark. Stopped but for the time of a request."""

    def __init__(self, name: str, threads: int) -> None:
        """Starts the process, which imports its engine on its own; ``load`` awaits that."""
        command = [sys.executable, "-m", __name__, name, str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )

    def load(self, path: str | Path, inputs: str | Path) -> dict[str, float]:
        """Opens a model and runs it once: ``import_ms``, ``load_ms``, ``first_ms``. Raises Error where the engine refuses."""
        imported = self._read()
        return imported | self._ask({"load": str(path), "inputs": str(inputs)})

    def run(self, runs: int, batch: int = 1, clock: str = "wall") -> list[float]:
        """Milliseconds of each of ``runs`` samples, each the mean of ``batch`` runs."""
        return self._ask({"runs": runs, "batch": batch, "clock": clock})["ms"]

    def memory(self) -> dict[str, float]:
        """``peak_rss_mb`` and ``rss_mb``, 10^6 bytes."""
        return self._ask({"memory": True})

    def close(self) -> None:
        """Ends the process."""
        self._signal("SIGCONT")
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._signal("SIGCONT")
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer tells why
        reply = self._read()
        self._stop()
        return reply

    def _stop(self) -> None:
        """Stops the process and waits until it stands: what spins in it would take the next engine's time."""
        self._signal("SIGSTOP")
        if hasattr(signal, "SIGSTOP") and hasattr(os, "waitid"):
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _signal(self, name: str) -> None:
        number = getattr(signal, name, None)
        if number is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        reply = json.loads(line) if line else {"error": f"the process ended with status {self.process.wait()}"}
        if "error" in reply:
            raise Error(f"{self.name}: {reply['error']}")
        return reply


def main() -> None:
    """The engine's side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("threads", type=int)
    arguments = parser.parse_args()
    replies, sys.stdout = sys.stdout, sys.stderr

    def reply(**values: Any) -> None:
        print(json.dumps(values), file=replies, flush=True)

    try:
        reply(import_ms=_timed(lambda: importlib.import_module(PACKAGES[arguments.engine])))
        served = _Served(arguments.engine, arguments.threads)
        for line in sys.stdin:
            reply(**served.answer(json.loads(line)))
    except Exception as error:  # whatever an engine raises is the answer
        reply(error=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


class _Served:
    """Answers requests."""

    def __init__(self, engine: str, threads: int) -> None:
        self.open, self.threads = ENGINES[engine], threads
        self.run: Run = lambda: None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if "load" in request:
            return self._load(request["load"], request["inputs"])
        if "memory" in request:
            return _memory()
        return {"ms": self._samples(request["runs"], request["batch"], CLOCKS[request["clock"]])}

    def _load(self, path: str, inputs: str) -> dict[str, float]:
        with np.load(inputs) as data:
            arrays = {name: data[name] for name in data}
        start = time.perf_counter()
        self.run = self.open(path, arrays, self.threads)
        return {"load_ms": (time.perf_counter() - start) * 1e3, "first_ms": _timed(self.run)}

    def _samples(self, runs: int, batch: int, clock: Callable[[], float]) -> list[float]:
        run, times, turns = self.run, [], range(batch)
        run()
        for _ in range(runs):
            start = clock()
            for _ in turns:
                run()
            times.append((clock() - start) / batch * 1e3)
        return times


def _timed(work: Run) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def _memory() -> dict[str, float]:
    """Linux tells this program's own peak; elsewhere the peak may be that of the program that started it."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return {"peak_rss_mb": _megabytes(lines["VmHWM"]), "rss_mb": _megabytes(lines["VmRSS"])}
    except (OSError, KeyError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"peak_rss_mb": peak / 1e6, "rss_mb": peak / 1e6}


def _megabytes(text: str) -> float:
    return round(int(text.split()[0]) * 1024 / 1e6, 1)


if __name__ == "__main__":
    main()
