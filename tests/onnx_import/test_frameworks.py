"""Files that the frameworks' own exporters wrote, against the outputs of the frameworks.

Runs over the folder that the environment variable TCOMPILE_FRAMEWORK_MODELS names: each NAME.onnx stands beside a
NAME.npz with the inputs (``in.NAME``) and the framework's outputs (``out.K``), or ONNX Runtime's (``ort.K``) where an
exporter did not reproduce its framework.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from tcompile.errors import UnsupportedError
from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model

FOLDER = Path(os.environ.get("TCOMPILE_FRAMEWORK_MODELS", "."))
NAMES = sorted(path.stem for path in FOLDER.glob("*.onnx") if path.with_suffix(".npz").exists())
STRINGS = {"skl_columntransformer_strings_dyn": "STRING", "skl_iris_stringlabels_dyn": "string"}  # name -> what the refusal names
UNFAITHFUL = ("mxnet_oddlayers", "tflite_digits_int8", "torch_linear")

pytestmark = pytest.mark.skipif(not NAMES, reason="TCOMPILE_FRAMEWORK_MODELS names no folder with models")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in STRINGS])
def test_model(name):
    data = np.load(FOLDER / f"{name}.npz")
    graph = import_model(FOLDER / f"{name}.onnx")
    got = list(interpret(graph, {value.name: data[f"in.{value.name}"] for value in graph.inputs}).values())
    unfaithful = name.startswith(UNFAITHFUL) and "ort.0" in data.files
    for k, ours in enumerate(got):
        wanted = data[f"{'ort' if unfaithful else 'out'}.{k}"]
        assert ours.shape == wanted.shape
        scale = max(float(np.max(np.abs(wanted), initial=0)), 1e-30)
        np.testing.assert_allclose(ours.astype(np.float64), wanted.astype(np.float64), rtol=0, atol=scale * (1e-2 if unfaithful else 1e-4))


@pytest.mark.parametrize("name", [name for name in NAMES if name in STRINGS])
def test_strings_are_refused_by_name(name):
    with pytest.raises(UnsupportedError, match=STRINGS[name]):
        import_model(FOLDER / f"{name}.onnx")
