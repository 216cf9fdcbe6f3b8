"""One inference engine in a process of its own, driven over its standard input and output.

Engines with spinning thread pools disturb each other inside one process, so each gets its own and they take turns. The
protocol is one JSON object a line: ``{"runs": 5}`` gives ``{"ms": [...]}``; end of input ends the process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Run = Callable[[], object]


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


ENGINES = {"tcompile": open_tcompile, "onnxruntime": open_onnxruntime, "openvino": open_openvino}


class Engine:
    """A running engine process, seen from the benchmark."""

    def __init__(self, name: str, path: str | Path, inputs: str | Path, threads: int) -> None:
        command = [sys.executable, "-m", "tcompile.benchmarks.engine", name, str(path), str(inputs), str(threads)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.ready = self._read()

    def run(self, runs: int) -> list[float]:
        """Milliseconds of each of ``runs`` runs."""
        self.process.stdin.write(json.dumps({"runs": runs}) + "\n")
        self.process.stdin.flush()
        return self._read()["ms"]

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self.process.stderr.read().strip().splitlines()[-1:] or "the engine died")
        return json.loads(line)


def main() -> None:
    """The engine's side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("path")
    parser.add_argument("inputs", help="an .npz of the inputs by name")
    parser.add_argument("threads", type=int)
    arguments = parser.parse_args()
    with np.load(arguments.inputs) as data:
        inputs = {name: data[name] for name in data}
    replies, sys.stdout = sys.stdout, sys.stderr
    start = time.perf_counter()
    run = ENGINES[arguments.engine](arguments.path, inputs, arguments.threads)
    load_ms = (time.perf_counter() - start) * 1e3
    run()
    print(json.dumps({"load_ms": load_ms}), file=replies, flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(json.loads(line)["runs"]):
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e3)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"ms": times, "peak_rss_kb": peak}), file=replies, flush=True)


if __name__ == "__main__":
    main()
