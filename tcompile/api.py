"""The Python API: compile a model, load an artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tcompile.runtime import Executable, load


def compile(
    model: Any,
    target: str = "native",
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    threads: int | None = None,
    **options: Any,
) -> Executable:
    """Compiles a model for this machine and loads it.

    Args:
        model: a path to an ``.onnx`` file, its bytes, or an ``onnx.ModelProto``.
        target: ``native``, or a name that ``tcompile.targets()`` lists.
        shapes: per input, extents that fix or bound symbolic dimensions: ``{"x": [4, 3, "1..512", "width"]}``.
        threads: worker threads of a run; all cores by default.
        options: fields of ``tcompile.pipeline.Options``.

    Returns:
        An ``Executable``: ``run(inputs) -> {name: array}``, ``save(path)``, ``inputs``, ``outputs``, ``report()``.

    Raises:
        UnsupportedError: listing everything in the model that tcompile does not do.
        InvalidModelError: where the model breaks ONNX's specification.
    """
    from tcompile.pipeline import Options, Silent, compile_artifact

    progress = options.pop("progress", Silent())
    return load(compile_artifact(model, target, shapes, Options(**options), progress), threads=threads)


def check(model: Any, shapes: Mapping[str, Sequence[int | str]] | None = None) -> list[Any]:
    """Everything in a model that cannot be compiled, as ``Problem`` rows; empty when it can."""
    from tcompile.ir.onnx_import import check_model

    return check_model(model, shapes)


def compile_file(model: str | Path, artifact: str | Path, **options: Any) -> Executable:
    """Compiles a model file and writes the artifact; returns it loaded."""
    executable = compile(model, **options)
    executable.save(artifact)
    return executable
