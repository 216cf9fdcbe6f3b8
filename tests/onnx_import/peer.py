"""Single operators compared with ONNX Runtime, under static and under symbolic shapes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model


@dataclass(frozen=True, eq=False)
class Single:
    """One node. ``inputs`` holds arrays (None: omitted); ``constants`` are the positions of initializers.

    ``free`` maps an input's position to the axes that become symbols.
    """

    op: str
    inputs: Sequence[np.ndarray | None]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    constants: Collection[int] = ()
    outputs: int = 1
    opset: int = 17
    domain: str = ""
    free: Mapping[int, Collection[int]] = field(default_factory=dict)
    rtol: float = 1e-4
    atol: float = 1e-5

    def model(self) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        """The model and its inputs."""
        names = [f"x{k}" if array is not None else "" for k, array in enumerate(self.inputs)]
        node = helper.make_node(self.op, names, [f"y{k}" for k in range(self.outputs)], domain=self.domain, **self.attrs)
        arrays = {name: np.asarray(array) for name, array in zip(names, self.inputs, strict=True) if array is not None}
        constants = [numpy_helper.from_array(arrays[f"x{k}"], f"x{k}") for k in self.constants]
        feeds = {name: array for name, array in arrays.items() if int(name[1:]) not in self.constants}
        infos = [self._info(name, array) for name, array in feeds.items()]
        results = [helper.make_value_info(name, onnx.TypeProto()) for name in node.output]
        graph = helper.make_graph([node], "single", infos, results, constants)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10), feeds

    def _info(self, name: str, array: np.ndarray) -> onnx.ValueInfoProto:
        axes = self.free.get(int(name[1:]), ())
        shape = [f"{name}_{axis}" if axis in axes else extent for axis, extent in enumerate(array.shape)]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)


def check(single: Single) -> None:
    """Raises AssertionError where an output differs from ONNX Runtime's."""
    model, feeds = single.model()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    wanted = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)
    graph = import_model(model)
    got = interpret(graph, {value.name: feeds[value.name] for value in graph.inputs})
    for (name, ours), theirs in zip(got.items(), wanted, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
        np.testing.assert_allclose(ours, theirs, single.rtol, single.atol, err_msg=name)
