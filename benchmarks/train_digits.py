"""Trains the demo's digits classifier and writes ``tcompile/demo/digits.onnx`` and ``digits.npz``.

A small convolutional network in NumPy (two 3x3 convolutions, one dense layer, softmax cross-entropy, Adam) on the
8x8 digits that ship with scikit-learn. One image in five is held out; only those go into ``digits.npz``.

    python -m tcompile.benchmarks.train_digits tcompile/demo
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper

EPOCHS, BATCH, RATE = 40, 32, 2e-3
CHANNELS = (16, 32)


def patches(x: np.ndarray) -> np.ndarray:
    """im2col of a padded 3x3 convolution: [N, C, H, W] -> [N, H, W, C*9]."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = sliding_window_view(padded, (3, 3), axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(x.shape[0], *x.shape[2:], -1)


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convolution and ReLU; returns the result [N, O, H, W] and the patches for the gradient."""
    columns = patches(x)
    y = columns @ weight.reshape(weight.shape[0], -1).T + bias
    return np.maximum(y, 0).transpose(0, 3, 1, 2), columns


def convolve_gradient(grad: np.ndarray, y: np.ndarray, columns: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, ...]:
    """Gradients of ``convolve`` with respect to its input, weight and bias."""
    grad = (grad * (y > 0)).transpose(0, 2, 3, 1)
    flipped = weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    grad_x = patches(grad.transpose(0, 3, 1, 2)) @ flipped.reshape(flipped.shape[0], -1).T
    grad_weight = np.einsum("nhwo,nhwk->ok", grad, columns).reshape(weight.shape)
    return grad_x.transpose(0, 3, 1, 2), grad_weight, grad.sum((0, 1, 2))


def halve(x: np.ndarray) -> np.ndarray:
    """2x2 average pooling with stride 2."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))


def halve_gradient(grad: np.ndarray) -> np.ndarray:
    """Gradient of ``halve``."""
    return grad.repeat(2, axis=2).repeat(2, axis=3) / 4


def forward(p: dict[str, np.ndarray], x: np.ndarray) -> tuple[np.ndarray, tuple]:
    """Logits [N, 10] of images [N, 1, 8, 8], and what the gradient needs."""
    y1, c1 = convolve(x, p["conv1.weight"], p["conv1.bias"])
    y2, c2 = convolve(halve(y1), p["conv2.weight"], p["conv2.bias"])
    flat = halve(y2).reshape(len(x), -1)
    return flat @ p["dense.weight"] + p["dense.bias"], (y1, c1, y2, c2, flat)


def gradients(p: dict[str, np.ndarray], x: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Gradients of the mean cross-entropy with respect to every parameter."""
    logits, (y1, c1, y2, c2, flat) = forward(p, x)
    grad = np.exp(logits - logits.max(1, keepdims=True))
    grad /= grad.sum(1, keepdims=True)
    grad[np.arange(len(x)), labels] -= 1
    grad /= len(x)
    g = {"dense.weight": flat.T @ grad, "dense.bias": grad.sum(0)}
    back = halve_gradient((grad @ p["dense.weight"].T).reshape(len(x), CHANNELS[1], 2, 2))
    back, g["conv2.weight"], g["conv2.bias"] = convolve_gradient(back, y2, c2, p["conv2.weight"])
    _, g["conv1.weight"], g["conv1.bias"] = convolve_gradient(halve_gradient(back), y1, c1, p["conv1.weight"])
    return g


def initial(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """He-initialised parameters."""
    shapes = {"conv1": (CHANNELS[0], 1, 3, 3), "conv2": (CHANNELS[1], CHANNELS[0], 3, 3), "dense": (CHANNELS[1] * 4, 10)}
    p = {}
    for name, shape in shapes.items():
        fan_in = shape[0] if name == "dense" else int(np.prod(shape[1:]))
        p[f"{name}.weight"] = (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)
        p[f"{name}.bias"] = np.zeros(10 if name == "dense" else shape[0], np.float32)
    return p


def train(images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Adam over mini-batches."""
    rng = np.random.default_rng(0)
    p = initial(rng)
    mean = {k: np.zeros_like(v) for k, v in p.items()}
    square = {k: np.zeros_like(v) for k, v in p.items()}
    step = 0
    for _ in range(EPOCHS):
        order = rng.permutation(len(images))
        for start in range(0, len(order), BATCH):
            batch, step = order[start : start + BATCH], step + 1
            for k, g in gradients(p, images[batch], labels[batch]).items():
                mean[k] += 0.1 * (g - mean[k])
                square[k] += 0.001 * (g * g - square[k])
                p[k] -= np.float32(RATE) * (mean[k] / (1 - 0.9**step)) / (np.sqrt(square[k] / (1 - 0.999**step)) + 1e-8)
    return p


def to_onnx(p: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The network as an ONNX model: images u8 [batch, 8, 8] with values 0..16 -> probabilities f32 [batch, 10]."""
    constants = {**p, "range": np.float32(16), "image_shape": np.array([0, 1, 8, 8], np.int64)}
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Reshape", ["images", "image_shape"], ["planes"], "planes"),
        helper.make_node("Cast", ["planes"], ["levels"], "levels", to=TensorProto.FLOAT),
        helper.make_node("Div", ["levels", "range"], ["scaled"], "scale"),
        helper.make_node("Conv", ["scaled", "conv1.weight", "conv1.bias"], ["c1"], "conv1", **conv),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("AveragePool", ["r1"], ["p1"], "pool1", **pool),
        helper.make_node("Conv", ["p1", "conv2.weight", "conv2.bias"], ["c2"], "conv2", **conv),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("AveragePool", ["r2"], ["p2"], "pool2", **pool),
        helper.make_node("Flatten", ["p2"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "dense.weight", "dense.bias"], ["logits"], "dense"),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, producer_name="tcompile", opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def main(out: Path) -> None:
    """Trains, reports the held-out accuracy, writes both files."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = digits.images.astype(np.uint8).reshape(-1, 8, 8), digits.target.astype(np.int64)
    held_out = np.arange(len(images)) % 5 == 0
    scaled = images[:, None].astype(np.float32) / 16
    p = train(scaled[~held_out], labels[~held_out])
    accuracy = (forward(p, scaled[held_out])[0].argmax(1) == labels[held_out]).mean()
    print(f"held-out accuracy {accuracy:.1%} on {held_out.sum()} images")
    onnx.save(to_onnx(p), out / "digits.onnx")
    np.savez_compressed(out / "digits.npz", images=images[held_out], labels=labels[held_out].astype(np.uint8))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
