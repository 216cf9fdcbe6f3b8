"""The standard ``onnx.backend.base.Backend``, so that ONNX's own test suite drives the compiler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.backend.base import Backend, BackendRep, namedtupledict

from tcompile.api import compile
from tcompile.runtime import Executable, HostedExecutable, HostSpec, TensorSpec


class TCompileRep(BackendRep):
    """A compiled model; ``run`` takes arrays in the order of the model's inputs, or a dictionary."""

    def __init__(self, executable: Executable | HostedExecutable) -> None:
        self.executable = executable

    def run(self, inputs: Any, **_: Any) -> tuple[Any, ...]:
        """Returns the outputs as a named tuple in graph order."""
        if not isinstance(inputs, dict):
            inputs = {spec.name: _value(value, spec) for spec, value in zip(self.executable.inputs, inputs, strict=True)}
        outputs = self.executable.run(inputs)
        return namedtupledict("Outputs", list(outputs))(*outputs.values())


def _value(value: Any, spec: TensorSpec | HostSpec) -> Any:
    """Tensors as arrays; sequences, optionals and maps as they are."""
    return np.asarray(value) if isinstance(spec, TensorSpec) else value


class TCompileBackend(Backend):
    """Compiles for the CPU of this machine."""

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **options: Any) -> TCompileRep:
        """Compiles a model."""
        super().prepare(model, device)
        return TCompileRep(compile(model, **options))

    @classmethod
    def run_node(
        cls, node: onnx.NodeProto, inputs: Sequence[np.ndarray], device: str = "CPU", outputs_info: Any = None, **options: Any
    ) -> tuple[np.ndarray, ...]:
        """Runs one node on arrays; the opset is ``opset_version`` or the newest."""
        arrays = [np.asarray(array) for array in inputs]
        names = [name for name in node.input if name]
        opset = options.pop("opset_version", onnx.defs.onnx_opset_version())
        graph = helper.make_graph(
            [node],
            "node",
            [
                helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
                for n, a in zip(names, arrays, strict=True)
            ],
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, opset)])
        return TCompileRep(compile(model, **options)).run(arrays)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """CPU only."""
        return device.split(":")[0] == "CPU"


prepare = TCompileBackend.prepare
run_node = TCompileBackend.run_node
run_model = TCompileBackend.run_model
supports_device = TCompileBackend.supports_device
