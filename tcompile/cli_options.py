"""What commands share: options, inputs from files or drawn, progress bars."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager

import click
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

import tcompile
from tcompile.errors import InputError

errors = Console(stderr=True, highlight=False)


class ProgressBars:
    """The pipeline's progress as bars on standard error; nothing is drawn where that is no terminal."""

    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.task = None

    def stage(self, name: str, total: int | None = None) -> None:
        """Ends the present bar and starts the next."""
        self._finish()
        self.task = self.bars.add_task(name, total=total)

    def advance(self, steps: int = 1) -> None:
        """Moves the present bar."""
        self.bars.advance(self.task, steps)

    def _finish(self) -> None:
        if self.task is not None:
            task = self.bars.tasks[self.task]
            self.bars.update(self.task, total=task.total or 1, completed=task.total or 1)


@contextmanager
def progress_bars(quiet: bool):
    """Bars for the time of a compile."""
    columns = (SpinnerColumn(), TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=errors, disable=quiet or not errors.is_terminal) as bars:
        progress = ProgressBars(bars)
        yield progress
        progress._finish()


def parse_shapes(texts: Sequence[str]) -> dict[str, list[int | str]]:
    """``x=1..64,3,224,224`` -> {"x": ["1..64", 3, 224, 224]}."""
    shapes = {}
    for text in texts:
        name, equals, extents = text.rpartition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not NAME=EXTENTS", param_hint="--shape")
        shapes[name] = [int(extent) if extent.strip().isdigit() else extent.strip() for extent in extents.split(",") if extent.strip()]
    return shapes


def parse_pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` options as a dictionary."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option)
        pairs[name] = value
    return pairs


def read_array(path: str) -> np.ndarray:
    """A ``.npy`` file, or a raw ``.pb`` TensorProto."""
    if path.endswith(".pb"):
        import onnx
        from onnx import numpy_helper

        return numpy_helper.to_array(onnx.load_tensor(path))
    try:
        return np.load(path, allow_pickle=False)
    except ValueError as error:
        raise InputError(f"{path} is no NumPy array: {error}", hint="write it with numpy.save") from error


def parse_sizes(texts: Sequence[str]) -> dict[str, int]:
    """``batch=4`` -> {"batch": 4}."""
    found = {}
    for name, value in parse_pairs(texts, "--size").items():
        if not value.isdigit():
            raise click.BadParameter(f"{value!r} is no number", param_hint="--size")
        found[name] = int(value)
    return found


def read_inputs(executable, inputs: Sequence[str], sizes: Sequence[str], *, rest: bool = False) -> dict[str, np.ndarray]:
    """The arrays of ``--input`` options; ``random`` draws one. ``rest``: inputs that are not given are drawn too."""
    from tcompile.accuracy import random_inputs

    given = parse_pairs(inputs, "--input")
    arrays = {name: read_array(path) for name, path in given.items() if path != "random"}
    wanted = [spec for spec in executable.inputs if spec.name not in arrays and (rest or spec.name in given)]
    missing = [spec.name for spec in executable.inputs if spec.name not in given and not getattr(spec, "optional", False)]
    if missing and not rest:
        raise InputError(f"input {missing[0]!r} is missing", hint=f"--input {missing[0]}=x.npy, or --input {missing[0]}=random")
    unknown = [name for name in given if name not in {spec.name for spec in executable.inputs}]
    if unknown:
        raise InputError(f"there is no input {unknown[0]!r}", hint=f"inputs: {', '.join(spec.name for spec in executable.inputs)}")
    return arrays | random_inputs(wanted, _sizes_of(executable, arrays) | parse_sizes(sizes))


def _sizes_of(executable, arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """The symbols that given arrays decide."""
    found = {}
    for spec in executable.inputs:
        if spec.name in arrays:
            pairs = zip(spec.shape or (), arrays[spec.name].shape, strict=False)
            found.update({extent: value for extent, value in pairs if isinstance(extent, str)})
    return found


input_option = click.option(
    "--input", "inputs", multiple=True, metavar="NAME=FILE", help="An input: a .npy file, a TensorProto (.pb), or the word random."
)
size_option = click.option(
    "--size", "sizes", multiple=True, metavar="SYMBOL=N", help="A symbolic dimension of random inputs; 2 by default."
)
shape_option = click.option("--shape", "shapes", multiple=True, metavar="NAME=EXTENTS", help="Fix or bound an input: x=1..64,3,224,224.")
winograd_option = click.option(
    "--no-winograd", is_flag=True, help="Convolutions as they are defined: slower, rounding least, a NaN spreads no further."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
threads_option = click.option("--threads", type=click.IntRange(1), help="Worker threads; all cores by default.")


device_option = click.option("--device", metavar="cuda:N", help="Run on a GPU; an .onnx file is compiled for it.")
precision_option = click.option(
    "--precision",
    type=click.Choice(["f32", "tf32", "fp16", "bf16"]),
    help="On GPUs: what factors of float32 products may be rounded to, for tensor cores; f32 by default, which is exact.",
)


def open_model(path: str, threads: int | None = None, device: str | None = None):
    """Loads an artifact, or compiles an ONNX file."""
    if path.endswith(".onnx"):
        with progress_bars(quiet=False) as progress:
            return tcompile.compile(path, threads=threads, device=device, progress=progress)
    return tcompile.load(path, threads=threads, device=device)
