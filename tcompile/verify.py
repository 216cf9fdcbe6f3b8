"""Compares a compiled model with the float64 interpreter, and with ONNX Runtime where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def verify_model(
    path: str,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    sizes: Mapping[str, int] | None = None,
    inputs: Mapping[str, np.ndarray] | None = None,
    *,
    draws: Mapping[str, Draw] | None = None,
    target: str = "native",
    threads: int | None = None,
    device: Any = None,
    progress: Progress = SILENT,
    **options: Any,
) -> list[Comparison]:
    """One row per output. Inputs that are not given are drawn (``accuracy.random_inputs``) at ``sizes`` of the symbols.

    ``target``, ``device`` and ``options`` (such as ``precision``): as of ``tcompile.compile``.
    """
    from tcompile.ir.interpret import interpret
    from tcompile.ir.onnx_import import import_model

    # what Python runs would have no second opinion
    executable = compile(path, target, shapes=shapes, threads=threads, device=device, progress=progress, host_ops=False, **options)
    graph = import_model(path, shapes)
    arrays = random_inputs(graph.inputs, sizes or {}, draws) | dict(inputs or {})
    progress.stage("interpret")
    exact = interpret(graph, arrays, float64=True)
    progress.stage("compare")
    return compare(executable.run(arrays), exact, run_onnxruntime(path, arrays), UNITS[options.get("precision")])
