"""Inputs and outputs by name: what every kind of executable asks of a caller in the same words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tcompile.errors import InputError
from tcompile.runtime.specs import TensorSpec


class NamedTensors:
    """The signature of a model: ``inputs`` and ``outputs`` tell names, types and shapes."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    _output_names: list[str]

    def _by_name(self, values: Sequence[Any]) -> dict[str, Any]:
        if isinstance(values, np.ndarray) or not isinstance(values, Sequence) or len(values) != len(self.inputs):
            got = len(values) if isinstance(values, list | tuple) else f"a {type(values).__name__}"
            names = ", ".join(spec.name for spec in self.inputs)
            raise InputError(f"inputs are {got}, expected {len(self.inputs)}", hint=f"a dict of {names}, or a list")
        return {spec.name: value for spec, value in zip(self.inputs, values, strict=True)}

    def _refuse_names(self, inputs: Mapping[str, Any]) -> None:
        known = [spec.name for spec in self.inputs]
        missing = [name for name in known if name not in inputs]
        if missing:
            spec = self.inputs[known.index(missing[0])]
            raise InputError(f"input '{spec.name}' is missing", hint=f"it is {spec}")
        self._known_among(list(inputs), known, "input")

    def _positions(self, donated: Iterable[str]) -> frozenset[int]:
        names = [spec.name for spec in self.inputs]
        wanted = [donated] if isinstance(donated, str) else list(donated)
        self._known_among(wanted, names, "input")
        return frozenset(map(names.index, wanted))

    def _known(self, names: Iterable[str], what: str) -> list[str]:
        wanted = [names] if isinstance(names, str) else list(names)
        self._known_among(wanted, self._output_names, what)
        return wanted

    def _known_among(self, names: Iterable[str], known: list[str], what: str) -> None:
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(str(name), known, 1)
                hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known)}"
                raise InputError(f"the model has no {what} '{name}'", hint=hint)


def tensor_report(spec: TensorSpec) -> dict[str, object]:
    """A tensor as a report holds it."""
    return {"name": spec.name, "dtype": spec.element.name, "shape": list(spec.shape)}
