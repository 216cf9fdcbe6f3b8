"""The public models of numbers, found and completed on a machine that may lack a network."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tcompile.benchmarks.model_set import REFUSED, Model, complete_minilm, complete_recipe, of_numbers

Fail = Callable[[str, Exception], None]


def found_models(folder: Path, build: Path, fail: Fail) -> list[Model]:
    """The models of ``folder`` but those of ``frameworks``; what cannot be completed in ``build`` is told to ``fail``."""
    models = [Model(path, group) for group in ("real", "exported") for path in sorted((folder / group).glob("*.onnx"))]
    build.mkdir(parents=True, exist_ok=True)
    makers = [(path, "recipes", partial(complete_recipe, folder, path.stem, build)) for path in sorted((folder / "recipes").glob("*.onnx"))]
    makers += [(path, "minilm", partial(complete_minilm, path, build)) for path in sorted((folder / "minilm").glob("*.onnx"))]
    with ThreadPoolExecutor(4) as threads:
        jobs = [(path, group, threads.submit(make)) for path, group, make in makers]
        for path, group, job in jobs:
            try:
                models.append(Model(job.result(), group))
            except Exception as error:  # no network, no room: the others are there
                fail(f"model {path.stem}", error)
    return [model for model in models if model.name not in REFUSED and of_numbers(model.path)]
