"""A peer's own times of its operations, in a process of its own, with the ONNX nodes that each computes.

    python -m tcompile.benchmarks.peer_times onnxruntime model.onnx inputs.npz THREADS RUNS

prints a JSON list of ``{"name", "kind", "seconds", "fastest", "anchors", "covered"}``: the median and the least over the
runs, the nodes whose results the operation makes, and the heavy nodes on the way to them (``onnx_nodes.py``).
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tcompile.benchmarks.onnx_nodes import Nodes, name_all, read_nodes
from tcompile.errors import Error

_CONTROL = frozenset({"If", "Loop", "Scan"})  # their own times hold those of what is in them
_SUFFIX = re.compile(r"(_nchwc|_kernel_time|_token_\d+|_quant|_fused)+$")
_MOST_BYTES = 1 << 31  # of a model in one piece


@dataclass(frozen=True)
class PeerOp:
    """One operation of a peer."""

    name: str
    kind: str
    seconds: float
    fastest: float
    anchors: list[str]
    covered: list[str]


def peer_operations(peer: str, model: str, inputs: Mapping[str, np.ndarray], threads: int, runs: int) -> list[PeerOp]:
    """What a peer's operations take. Raises Error where it does not run the model."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "inputs.npz", **inputs)
        command = [sys.executable, "-m", __name__, peer, str(model), str(Path(folder) / "inputs.npz"), str(threads), str(runs)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise Error(f"{peer} does not run {model}: {reason}")
    return [PeerOp(**row) for row in json.loads(done.stdout.splitlines()[-1])]


def onnxruntime_operations(path: str, inputs: Mapping[str, np.ndarray], threads: int, runs: int) -> list[PeerOp]:
    """ONNX Runtime's profile, read beside the graph that it optimised."""
    import onnx
    import onnxruntime

    model = onnx.load(path, load_external_data=False)
    nodes = read_nodes(model)
    source: str | bytes = path
    if name_all(model):
        whole = onnx.load(path)
        name_all(whole)
        source = whole.SerializeToString() if whole.ByteSize() < _MOST_BYTES else path
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
        options.enable_profiling, options.profile_file_prefix = True, f"{folder}/profile"
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        for _ in range(runs + 1):
            session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_text())
        optimised = read_nodes(onnx.load(options.optimized_model_filepath, load_external_data=False))
    outputs: dict[str, list[str]] = {}
    for tensor, name in optimised.made.items():
        outputs.setdefault(name, []).append(tensor)
    times, kinds = onnxruntime_events(events, runs)
    anchors = {name: nodes.labels([*outputs.get(name, ()), name, _SUFFIX.sub("", name)]) for name in times}
    return _operations(times, kinds, anchors, nodes)


def onnxruntime_events(events: list[dict], runs: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds of each operation in each of the last ``runs`` runs, and its kind. An operation that runs n times a run is summed."""
    found: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for event in events:
        kind = event.get("args", {}).get("op_name")
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and kind not in _CONTROL:
            name = event["name"].removesuffix("_kernel_time")
            found.setdefault(name, []).append(event["dur"] / 1e6)
            kinds[name] = kind
    return {name: _by_run(values, runs) for name, values in found.items()}, kinds


def _by_run(values: list[float], runs: int) -> list[float]:
    """The last ``runs`` of runs + 1 equal parts, each summed."""
    each = max(len(values) // (runs + 1), 1)
    return [sum(values[i : i + each]) for i in range(each if len(values) > each else 0, each * (runs + 1), each)][:runs]


def openvino_operations(path: str, inputs: Mapping[str, np.ndarray], threads: int, runs: int) -> list[PeerOp]:
    """OpenVINO's performance counters (whole microseconds), read beside its runtime model."""
    import onnx
    import openvino

    nodes = read_nodes(onnx.load(path, load_external_data=False))
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": True}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    request = compiled.create_infer_request()
    request.infer(inputs)
    times: dict[str, list[float]] = {}
    kinds: dict[str, str] = {}
    for _ in range(runs):
        request.infer(inputs)
        for one in request.get_profiling_info():
            if one.status == openvino.ProfilingInfo.Status.EXECUTED and one.node_type not in ("Parameter", "Result", "Constant"):
                times.setdefault(one.node_name, []).append(one.real_time.total_seconds())
                kinds[one.node_name] = f"{one.node_type} {one.exec_type}".strip()
    merged = {op.get_friendly_name(): _merged_names(op) for op in compiled.get_runtime_model().get_ops()}
    anchors = {name: nodes.labels([name, *merged.get(name, ())]) for name in times}
    return _operations(times, kinds, anchors, nodes)


def _merged_names(op: object) -> list[str]:
    info = op.get_rt_info()
    return str(info["originalLayersNames"].astype(str) if hasattr(info["originalLayersNames"], "astype") else "").split(",")


def _operations(times: Mapping[str, list[float]], kinds: Mapping[str, str], anchors: Mapping[str, list[str]], nodes: Nodes) -> list[PeerOp]:
    everything = {label for labels in anchors.values() for label in labels}
    return [
        PeerOp(
            name,
            kinds[name],
            statistics.median(values),
            min(values),
            anchors[name],
            nodes.heavy(nodes.covered(anchors[name], everything)),
        )
        for name, values in times.items()
    ]


PEERS = {"onnxruntime": onnxruntime_operations, "openvino": openvino_operations}


def main(arguments: Iterable[str]) -> None:
    """The process's side."""
    peer, path, inputs, threads, runs = arguments
    with np.load(inputs) as data:
        arrays = {name: data[name] for name in data}
    replies, sys.stdout = sys.stdout, sys.stderr
    print(json.dumps([asdict(op) for op in PEERS[peer](path, arrays, int(threads), int(runs))]), file=replies)


if __name__ == "__main__":
    main(sys.argv[1:])
