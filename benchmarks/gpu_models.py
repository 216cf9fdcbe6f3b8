"""The public models of numbers, found and completed on a machine that may lack a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tcompile.benchmarks.model_set import REFUSED, Model, complete_minilm, complete_recipe, light_folder, of_numbers

Fail = Callable[[str, Exception], None]
GROUPS = ("real", "exported", "recipes", "minilm")  # that are timed


def found_models(folder: Path, build: Path, fail: Fail, groups: Sequence[str] = GROUPS) -> list[Model]:
    """The models of some groups of ``folder``; what cannot be completed in ``build`` is told to ``fail``.

    Those of ``frameworks`` may take strings and sequences, the others take and give numbers.
    """
    folders = {group: folder / group for group in ("real", "exported", "frameworks")} | {"light": light_folder()}
    models = [Model(path, group) for group in folders if group in groups for path in sorted(folders[group].glob("*.onnx"))]
    build.mkdir(parents=True, exist_ok=True)
    makers = [(path, "recipes", partial(complete_recipe, folder, path.stem, build)) for path in sorted((folder / "recipes").glob("*.onnx"))]
    makers += [(path, "minilm", partial(complete_minilm, path, build)) for path in sorted((folder / "minilm").glob("*.onnx"))]
    makers = [maker for maker in makers if maker[1] in groups]
    with ThreadPoolExecutor(4) as threads:
        jobs = [(path, group, threads.submit(make)) for path, group, make in makers]
        for path, group, job in jobs:
            try:
                models.append(Model(job.result(), group))
            except Exception as error:  # no network, no room: the others are there
                fail(f"model {path.stem}", error)
    return [model for model in models if model.name not in REFUSED and (model.group == "frameworks" or of_numbers(model.path))]
