"""ImageDecoder, by Pillow."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from tcompile.errors import Error
from tcompile.runtime.host_ops import HostNode, host_op

_MODES = {"RGB": ("RGB", 3), "BGR": ("RGB", 3), "Grayscale": ("L", 1)}


@host_op("ImageDecoder")
def image_decoder(inputs: list[Any], node: HostNode) -> np.ndarray:
    """ImageDecoder (opset 20): the bytes of an image file to u8 [height, width, channels]; what is no image is empty."""
    try:
        from PIL import Image
    except ImportError as error:
        raise Error("decoding images needs Pillow", hint="pip install pillow") from error
    form = node.get("pixel_format", "RGB")
    mode, channels = _MODES[form]
    try:
        with Image.open(io.BytesIO(inputs[0].tobytes())) as image:
            pixels = np.asarray(image.convert(mode))
    except (OSError, SyntaxError, ValueError):  # what Pillow raises for bytes that it cannot read
        return np.zeros((0, 0, channels), np.uint8)
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    return np.ascontiguousarray(pixels[:, :, ::-1] if form == "BGR" else pixels)
