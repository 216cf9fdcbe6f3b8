"""Compares a compiled model with the float64 interpreter, and with ONNX Runtime where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcompile.accuracy import Comparison, Draw, compare, random_inputs
from tcompile.api import compile
from tcompile.pipeline import SILENT, Progress

UNITS = {None: 0.0, "f32": 0.0, "tf32": 2.0**-11, "fp16": 2.0**-11, "bf16": 2.0**-8}  # roundoff of a precision's factors


def run_onnxruntime(
    path: str, inputs: Mapping[str, np.ndarray], threads: int = 1, *, as_written: bool = False
) -> dict[str, np.ndarray] | None:
    """ONNX Runtime's outputs by name; None where it is not installed or refuses the model.

    ``as_written`` turns its graph optimisations off: some replace a model's arithmetic by a coarser one.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        results = session.run(None, dict(inputs))
    except Exception:  # its exceptions have no common base; a refusal only means that there is no peer
        return None
    return {spec.name: array for spec, array in zip(session.get_outputs(), results, strict=True)}


@dataclass(frozen=True, eq=False)
class Reference:
    """What a model gives for some inputs: in float64, and by ONNX Runtime (None without it)."""

    inputs: Mapping[str, np.ndarray]
    exact: Mapping[str, np.ndarray]
    peer: Mapping[str, np.ndarray] | None

    def compare(self, executable: Any, unit: float = 0.0) -> list[Comparison]:
        """One row per output of a compiled model. ``unit``: see ``accuracy.Comparison``."""
        return compare(executable.run(self.inputs), self.exact, self.peer, unit)


def reference(
    path: str,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    sizes: Mapping[str, int] | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
    draws: Mapping[str, Draw] | None = None,
) -> Reference:
    """Inputs that are not given are drawn (``accuracy.random_inputs``) at ``sizes`` of the symbols."""
    from tcompile.ir.interpret import interpret
    from tcompile.ir.onnx_import import import_model

    graph = import_model(path, shapes)
    arrays = random_inputs(graph.inputs, sizes or {}, draws) | dict(inputs or {})
    return Reference(arrays, interpret(graph, arrays, float64=True), run_onnxruntime(path, arrays))


def verify_model(
    path: str,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    sizes: Mapping[str, int] | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
    *,
    target: str = "native",
    threads: int | None = None,
    device: Any = None,
    progress: Progress = SILENT,
    **options: Any,
) -> list[Comparison]:
    """One row per output. ``sizes``, ``inputs``: see ``reference``; ``target``, ``device`` and ``options``: as of ``tcompile.compile``."""
    # what Python runs would have no second opinion
    executable = compile(path, target, shapes=shapes, threads=threads, device=device, progress=progress, host_ops=False, **options)
    progress.stage("interpret")
    expected = reference(path, shapes, sizes, inputs)
    progress.stage("compare")
    return expected.compare(executable, UNITS[options.get("precision")])
