"""The ONNX package's own operator test cases, run through the importer and the interpreter."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx.backend.test.case.test_case import TestCase

from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model


@cache
def node_cases() -> dict[str, TestCase]:
    """All cases of single operators by name."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in collect_testcases(None)}


def run_case(case: TestCase, *, atol: float | None = None) -> None:
    """Imports and interprets a case; raises AssertionError where an output is wrong (by more than the case's tolerance)."""
    for inputs, outputs in case.data_sets:
        graph = import_model(case.model, _shapes(case.model, inputs))
        given = {}
        for info, item in zip(case.model.graph.input, inputs, strict=False):
            given.update(_flattened(info.name, item) if item is not None else ())
        got = interpret(graph, {value.name: given[value.name] for value in graph.inputs})
        for info, wanted in zip(case.model.graph.output, outputs, strict=True):
            for name, array in _flattened(info.name, wanted):
                assert_close(name, got[name], array, rtol=case.rtol, atol=case.atol if atol is None else atol)


def _shapes(model: onnx.ModelProto, inputs: Sequence[Any]) -> dict[str, Any]:
    """What the importer must be told of sequences and optionals."""
    shapes: dict[str, Any] = {}
    for info, item in zip(model.graph.input, inputs, strict=False):
        if item is None:
            shapes[info.name] = None
        elif isinstance(item, list):
            shapes[info.name] = [array.shape for _, array in _flattened(info.name, item)]
    return shapes


def _array(array: Any) -> np.ndarray:
    return onnx.numpy_helper.to_array(array) if isinstance(array, onnx.TensorProto) else np.asarray(array)


def _flattened(name: str, item: Any) -> list[tuple[str, np.ndarray]]:
    if isinstance(item, Sequence):
        return [pair for k, element in enumerate(item) for pair in _flattened(f"{name}[{k}]", element)]
    return [(name, _array(item))]


def assert_close(name: str, got: np.ndarray, wanted: np.ndarray, *, rtol: float = 1e-3, atol: float = 1e-7) -> None:
    """Equal type and shape; equal elements for integers, within the tolerance for floats (NaN equals NaN)."""
    assert got.dtype == wanted.dtype, f"{name}: {got.dtype} instead of {wanted.dtype}"
    assert got.shape == wanted.shape, f"{name}: shape {got.shape} instead of {wanted.shape}"
    if got.dtype.kind in "biu" or "int" in str(got.dtype):
        np.testing.assert_array_equal(got, wanted, name)
        return
    if got.dtype in (np.float16, ml_dtypes.bfloat16):  # two units in the last place
        rtol, atol = max(rtol, 2 * float(ml_dtypes.finfo(got.dtype).eps)), max(atol, 1e-3)
    np.testing.assert_allclose(got.astype(np.float64), wanted.astype(np.float64), rtol, atol, err_msg=name)
