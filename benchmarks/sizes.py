"""One artifact for every size: a model compiled once for ranges of its dimensions, run at several sizes against ONNX Runtime.

    python -m tcompile.benchmarks.sizes PATH      (one model; ``python -m benchmarks.models --sizes FOLDER`` runs them all)

The sizes hold 1, primes and the ends of the ranges. A size outside of them must be refused by an error that names the dimension.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import tcompile
from tcompile.accuracy import Draw, largest_error, random_inputs
from tcompile.benchmarks.model_set import TOKENS
from tcompile.errors import Error, InputError

TOLERANCE = 1e-4  # of the largest magnitude: both sides add in float32, in orders of their own

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Ranged:
    """A model's declared extents by input, the sizes of its symbols that it is run at, what is refused, how inputs are drawn."""

    shapes: Mapping[str, tuple[int | str, ...]]
    sizes: tuple[Sizes, ...]
    outside: tuple[tuple[str, int], ...]
    draws: Mapping[str, Draw] | None = None


def _bert(names: tuple[str, ...]) -> Ranged:
    tokens = {"input_ids": TOKENS, "attention_mask": Draw(1, 2)}
    pairs = ((1, 1), (1, 127), (2, 31), (4, 13), (3, 256))
    sizes = tuple({"batch": batch, "seq": seq} for batch, seq in pairs)
    return Ranged(dict.fromkeys(names, ("batch=1..4", "seq=1..256")), sizes, (("batch", 5), ("seq", 257), ("batch", 0)), tokens)


def _batch(name: str, symbol: str, rest: tuple[int, ...], draws: Mapping[str, Draw] | None = None) -> Ranged:
    sizes = tuple({symbol: size} for size in (1, 2, 5, 7, 12))
    return Ranged({name: ("1..12", *rest)}, sizes, ((symbol, 0), (symbol, 13)), draws)


BYTES = {"bytes": Draw(0, 256)}
RANGED: dict[str, Ranged] = {
    "resnet50_dynb": _batch("input", "batch", (3, 224, 224)),
    "bert_base_dyn": _bert(("input_ids", "attention_mask", "token_type_ids")),
    "minilm_l6_v2": _bert(("input_ids", "attention_mask", "token_type_ids")),
    "magika_fast_v2_1": _batch("bytes", "unk__132", (1024,), BYTES),
    "magika_standard_v2_0": _batch("bytes", "unk__132", (4096,), BYTES),
    "super_resolution": _batch("input", "batch_size", (1, 224, 224)),
    "lstm_gru_tagger": Ranged(
        {"tokens": ("1..9", "1..101")},
        tuple({"batch": batch, "seq": seq} for batch, seq in ((1, 1), (1, 97), (3, 24), (9, 13), (9, 101))),
        (("batch", 10), ("seq", 102), ("batch", 0)),
        {"tokens": Draw(0, 1000)},
    ),
}


def check_sizes(path: str, ranged: Ranged) -> list[str]:
    """Compiles once and runs every size; returns a line a run. Raises AssertionError naming the size that is wrong."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    peer = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    executable = tcompile.compile(path, shapes=ranged.shapes)
    lines = []
    for number, sizes in enumerate(ranged.sizes):
        inputs = random_inputs(executable.inputs, sizes, ranged.draws, seed=number)
        got = executable.run(inputs)
        expected = dict(zip([spec.name for spec in peer.get_outputs()], peer.run(None, inputs), strict=True))
        worst = max(_relative(got[name], array) for name, array in expected.items())
        assert worst <= TOLERANCE, f"at {_text(sizes)} outputs are off by {worst:.2g} of the largest value"
        lines.append(f"{_text(sizes)}: {worst:.1g}")
    return [*lines, *(_refused(executable, name, size, ranged) for name, size in ranged.outside)]


def _relative(got: np.ndarray, expected: np.ndarray) -> float:
    error, largest = largest_error(got, expected)
    return error / max(largest, 1e-6)


def _refused(executable, name: str, size: int, ranged: Ranged) -> str:
    """Runs a size outside of its range, which must stop with an error that names the dimension."""
    try:
        executable.run(random_inputs(executable.inputs, {**ranged.sizes[0], name: size}, ranged.draws))
    except InputError as error:
        assert name in str(error) and str(size) in str(error), f"an error that does not say {name} and {size}: {error}"
        return f"{name}={size}: refused"
    raise AssertionError(f"{name}={size} is outside of the range and was run")


def _text(sizes: Sizes) -> str:
    return " ".join(f"{name}={size}" for name, size in sizes.items())


def main() -> None:
    """Prints one JSON line as ``verify_one`` does."""
    path = Path(sys.argv[1])
    try:
        result = {"status": "agrees", "detail": "; ".join(check_sizes(str(path), RANGED[path.stem]))}
    except AssertionError as error:
        result = {"status": "wrong", "detail": str(error)}
    except Error as error:
        result = {"status": "error", "detail": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
