"""Small ONNX models for tests, written in ONNX's textual form."""

from __future__ import annotations

import onnx


def model(body: str, opset: int = 21, imports: str = "") -> onnx.ModelProto:
    """The model of a textual graph, such as ``g (float[2] x) => (float[2] y) { y = Relu(x) }``."""
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}{imports}]>\n{body}')
