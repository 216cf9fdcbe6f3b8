"""Verifies one model of the public set; prints one JSON line with ``status`` (agrees, wrong, refused, error) and ``detail``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import tcompile
from tcompile.accuracy import Comparison, largest_error
from tcompile.benchmarks.model_set import Model
from tcompile.errors import UnsupportedError
from tcompile.verify import reference, run_onnxruntime

GOLDEN_TOLERANCE = 1e-4  # of the largest magnitude: golden data came from other float32 implementations
# Of the largest magnitude: where all weights are one number, their roundings in Winograd's values do not average out.
LIGHT_TOLERANCE = 1e-5
UNFAITHFUL = 1e-4  # above this, a framework's export is no longer the framework's own function: compare with ONNX Runtime


def verify_public(model: Model) -> dict:
    """Against the float64 interpreter and ONNX Runtime, and golden data where there is some; beside it what fast algorithms cost."""
    path, (inputs, golden) = str(model.path), golden_data(model)
    executable = tcompile.compile(path, host_ops=False)
    expected = reference(path, sizes=model.inputs.sizes, inputs=inputs, draws=model.inputs.draws)
    rows = expected.compare(executable)
    worst = max(rows, key=lambda row: row.error / max(row.largest, 1e-30))
    detail = (
        f"error {worst.error:.2g} of {worst.largest:.3g}, ONNX Runtime's {'-' if worst.peer_error is None else f'{worst.peer_error:.2g}'}"
    )
    if any(call["record"].get("template") in ("winograd", "strassen") for call in executable.report()["calls"]):
        direct = {row.output: row.error for row in expected.compare(tcompile.compile(path, host_ops=False, winograd=False))}
        detail += f", without Winograd {direct[worst.output]:.2g}"
    allowed = LIGHT_TOLERANCE if model.group == "light" else 0.0
    agrees = all(row.agrees or row.error <= allowed * row.largest for row in rows)
    if golden:
        error, largest = largest_error(next(iter(executable.run(inputs).values())), golden[0])
        agrees = agrees and error <= GOLDEN_TOLERANCE * largest
        detail += f", golden {error:.2g} of {largest:.3g}"
    return {"status": "agrees" if agrees else "wrong", "detail": detail if agrees else f"{detail}; {wrong_outputs(rows)}"}


def wrong_outputs(rows: list[Comparison]) -> str:
    """The names of outputs that do not agree."""
    return "wrong: " + ", ".join(row.output for row in rows if not row.agrees)


def golden_data(model: Model) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Recorded inputs and outputs of a trained model, where the set has some."""
    import onnx
    from onnx import numpy_helper

    folders = {"mnist_cntk": "mnist", "super_resolution": "super_resolution"}
    if model.name in folders:
        folder = model.path.parent / "testdata" / folders[model.name]
        graph = onnx.load(model.path).graph
        given, result = (numpy_helper.to_array(onnx.load_tensor(str(folder / f"{stem}_0.pb"))) for stem in ("input", "output"))
        missing = len(graph.input[0].type.tensor_type.shape.dim) - given.ndim  # a recording may lack the batch axes
        return {graph.input[0].name: given[(None,) * missing]}, [result]
    recorded = model.path.with_suffix(".io.npz")
    if recorded.exists():
        with np.load(recorded) as data:
            return {"input": data["input"]}, [data[name] for name in data if name != "input"]
    return {}, []


def verify_framework(model: Model) -> dict:
    """Against the outputs that the framework itself gave (ONNX Runtime's where the exporter was unfaithful).

    Recorded outputs of ONNX Runtime may come from a quantised product of its own making; then the model as written decides.
    """
    with np.load(model.path.with_suffix(".npz"), allow_pickle=True) as data:
        inputs = {name.removeprefix("in."): data[name] for name in data if name.startswith("in.")}
        expected = [data[f"out.{k}"] for k in range(sum(name.startswith("out.") for name in data))]
        peer = [data.get(f"ort.{k}", array) for k, array in enumerate(expected)]
    executable = tcompile.compile(str(model.path))
    got = [as_matrix(value) for value in executable.run({spec.name: inputs[spec.name] for spec in executable.inputs}).values()]
    wanted = [orts if relative(theirs, orts) > UNFAITHFUL else theirs for theirs, orts in zip(expected, peer, strict=True)]
    worst = max(map(relative, got, wanted))
    if worst <= UNFAITHFUL or not any(a is b for a, b in zip(wanted, peer, strict=True)):
        return {"status": "agrees" if worst <= UNFAITHFUL else "wrong", "detail": f"error {worst:.2g} of the largest value"}
    plain = run_onnxruntime(str(model.path), inputs, as_written=True)
    again = max(map(relative, got, plain.values())) if plain else float("inf")
    detail = f"error {again:.2g} of the largest value against ONNX Runtime without optimisations, {worst:.2g} with"
    return {"status": "agrees" if again <= UNFAITHFUL else "wrong", "detail": detail}


def as_matrix(value: np.ndarray | list) -> np.ndarray:
    """The maps of a ZipMap as rows of their values, as recorded outputs hold them; arrays as they are."""
    return np.array([list(row.values()) for row in value]) if isinstance(value, list) and value and isinstance(value[0], dict) else value


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest error over the largest magnitude (over 1e-6 where that is smaller); strings are equal or not."""
    if expected.dtype.kind in "OU":
        return 0.0 if np.array_equal(got, expected) else float("inf")
    error, largest = largest_error(got, expected)
    return error / max(largest, 1e-6)


def main() -> None:
    """Prints the result."""
    model = Model(Path(sys.argv[1]), sys.argv[2])
    try:
        result = verify_framework(model) if model.group == "frameworks" else verify_public(model)
    except UnsupportedError as error:
        result = {"status": "refused", "detail": " ".join(str(error).split())[:400]}
    except Exception as error:
        result = {"status": "error", "detail": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
