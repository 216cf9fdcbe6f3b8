"""Models of one operation, to time single kernels: ``tcompile bench-op``.

Each builder takes an ``Ask`` and gives an ONNX model (opset 17) of float32 with random weights. Convolutions and products
count their operations (a multiply-add is two); the others their output or input elements once, as their limit is memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tcompile.errors import InputError

OPSET = 17
Shape = tuple[int, ...]
Builder = Callable[["Ask"], "Model"]


@dataclass(frozen=True)
class Ask:
    """What is asked for. ``shape``: of the first input; what an operation has no use for is ignored.

    ``other``: the second operand's shape (matmul, elementwise). ``constant``: whether a product's second operand is a weight.
    ``function``: the ONNX operator of elementwise, reduce and pool.
    """

    shape: Shape
    channels: int | None = None
    kernel: Shape = (3,)
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    pad: int | None = None
    other: Shape | None = None
    constant: bool = True
    function: str | None = None
    axes: Shape = (-1,)
    perm: Shape | None = None


@dataclass
class Model:
    """Nodes and weights in the making. ``inputs`` and the output ``y`` are float32."""

    inputs: dict[str, Shape]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, op: str, inputs: Sequence[str], output: str = "y", **attributes: object) -> Model:
        """One more node."""
        self.nodes.append(helper.make_node(op, list(inputs), [output], f"{op.lower()}_{output}", **attributes))
        return self

    def weight(self, name: str, shape: Sequence[int]) -> str:
        """A constant of standard normal values, scaled by the square root of what is summed."""
        rng, terms = np.random.default_rng(len(self.weights)), math.prod(shape[1:]) or 1
        self.weights[name] = (rng.standard_normal(shape) / math.sqrt(terms)).astype(np.float32)
        return name

    def integers(self, name: str, values: Sequence[int]) -> str:
        """A constant of int64."""
        self.weights[name] = np.array(values, np.int64)
        return name

    def proto(self) -> onnx.ModelProto:
        """The ONNX model."""
        graph = helper.make_graph(
            self.nodes,
            "single",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in self.inputs.items()],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def build(name: str, ask: Ask) -> onnx.ModelProto:
    """The model of an operation of ``OPERATIONS``. Raises InputError where the shapes do not fit it."""
    if name not in OPERATIONS:
        raise InputError(f"no operation is called {name!r}", hint=f"one of {', '.join(OPERATIONS)}")
    try:
        return OPERATIONS[name](ask).proto()
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError) as error:
        raise InputError(f"{name} of {ask}: {str(error).splitlines()[0]}") from error


def _rank(ask: Ask, rank: int, meaning: str) -> None:
    if len(ask.shape) != rank:
        raise InputError(f"the shape {','.join(map(str, ask.shape))} has {len(ask.shape)} extents", hint=f"--shape {meaning}")


def _window(ask: Ask, rank: int) -> dict[str, list[int]]:
    """Attributes of a sliding window; padding keeps the size at stride 1 unless it is given."""
    kernel = list(ask.kernel) * rank if len(ask.kernel) == 1 else list(ask.kernel)
    pads = [(extent - 1) * ask.dilation // 2 if ask.pad is None else ask.pad for extent in kernel]
    return {"kernel_shape": kernel, "strides": [ask.stride] * rank, "pads": pads * 2}


def _convolution(ask: Ask, rank: int, op: str = "Conv") -> Model:
    _rank(ask, rank + 2, "batch,channels," + ",".join(["height", "width"] if rank == 2 else ["length"]))
    window, inputs, outputs = _window(ask, rank), ask.shape[1], ask.channels or ask.shape[1]
    if inputs % ask.groups or outputs % ask.groups:
        raise InputError(f"{inputs} and {outputs} channels do not divide into {ask.groups} groups")
    model = Model({"x": ask.shape})
    shape = (inputs, outputs // ask.groups) if op == "ConvTranspose" else (outputs, inputs // ask.groups)
    weight = model.weight("w", (*shape, *window["kernel_shape"]))
    return model.add(op, ["x", weight, model.weight("b", (outputs,))], group=ask.groups, dilations=[ask.dilation] * rank, **window)


def _depthwise(ask: Ask) -> Model:
    _rank(ask, 4, "batch,channels,height,width")
    return _convolution(Ask(**{**vars(ask), "channels": ask.shape[1], "groups": ask.shape[1]}), 2)


def _matmul(ask: Ask) -> Model:
    other = ask.other or (*ask.shape[:-2], ask.shape[-1], ask.channels or ask.shape[-1])
    model = Model({"a": ask.shape} if ask.constant else {"a": ask.shape, "b": other})
    return model.add("MatMul", ["a", model.weight("b", other) if ask.constant else "b"])


def _attention(ask: Ask) -> Model:
    """softmax(q k' / sqrt(depth)) v, as exporters write it."""
    _rank(ask, 4, "batch,heads,sequence,depth")
    model = Model({"q": ask.shape, "k": ask.shape, "v": ask.shape})
    model.weights["scale"] = np.array(1 / math.sqrt(ask.shape[-1]), np.float32)
    model.add("Transpose", ["k"], "kt", perm=[0, 1, 3, 2]).add("MatMul", ["q", "kt"], "s").add("Mul", ["s", "scale"], "t")
    return model.add("Softmax", ["t"], "p", axis=-1).add("MatMul", ["p", "v"])


def _layernorm(ask: Ask) -> Model:
    model = Model({"x": ask.shape})
    return model.add("LayerNormalization", ["x", model.weight("scale", ask.shape[-1:]), model.weight("bias", ask.shape[-1:])], axis=-1)


def _elementwise(ask: Ask) -> Model:
    function = ask.function or "Relu"
    if onnx.defs.get_schema(function, OPSET).min_input < 2:
        return Model({"x": ask.shape}).add(function, ["x"])
    return Model({"x": ask.shape, "z": ask.other or ask.shape}).add(function, ["x", "z"])


def _gelu(ask: Ask) -> Model:
    """x / 2 * (1 + erf(x / sqrt 2)), as exporters write it."""
    model = Model({"x": ask.shape})
    model.weights |= {name: np.array(value, np.float32) for name, value in (("r", math.sqrt(2)), ("one", 1), ("half", 0.5))}
    model.add("Div", ["x", "r"], "a").add("Erf", ["a"], "e").add("Add", ["e", "one"], "p")
    return model.add("Mul", ["x", "p"], "m").add("Mul", ["m", "half"])


def _reduce(ask: Ask) -> Model:
    function, model = ask.function or "ReduceMean", Model({"x": ask.shape})
    if function == "ReduceSum":  # since opset 13 its axes are an input
        return model.add(function, ["x", model.integers("axes", ask.axes)], keepdims=1)
    return model.add(function, ["x"], axes=list(ask.axes), keepdims=1)


def _pool(ask: Ask) -> Model:
    _rank(ask, 4, "batch,channels,height,width")
    return Model({"x": ask.shape}).add(ask.function or "MaxPool", ["x"], **_window(ask, 2))


def _transpose(ask: Ask) -> Model:
    return Model({"x": ask.shape}).add("Transpose", ["x"], perm=list(ask.perm or range(len(ask.shape))[::-1]))


def _resize(ask: Ask) -> Model:
    _rank(ask, 4, "batch,channels,height,width")
    model = Model({"x": ask.shape})
    model.weights["scales"] = np.array([1, 1, ask.stride, ask.stride], np.float32)
    return model.add("Resize", ["x", "", "scales"], mode=ask.function or "linear")


def _lstm(ask: Ask) -> Model:
    _rank(ask, 3, "sequence,batch,inputs")
    model, hidden = Model({"x": ask.shape}), ask.channels or ask.shape[-1]
    weights = [model.weight("w", (1, 4 * hidden, ask.shape[-1])), model.weight("r", (1, 4 * hidden, hidden))]
    return model.add("LSTM", ["x", *weights], hidden_size=hidden)


OPERATIONS: dict[str, Builder] = {
    "conv1d": lambda ask: _convolution(ask, 1),
    "conv2d": lambda ask: _convolution(ask, 2),
    "conv_transpose2d": lambda ask: _convolution(ask, 2, "ConvTranspose"),
    "depthwise": _depthwise,
    "matmul": _matmul,
    "attention": _attention,
    "softmax": lambda ask: Model({"x": ask.shape}).add("Softmax", ["x"], axis=ask.axes[0]),
    "layernorm": _layernorm,
    "elementwise": _elementwise,
    "gelu": _gelu,
    "reduce": _reduce,
    "pool": _pool,
    "transpose": _transpose,
    "resize": _resize,
    "lstm": _lstm,
}
