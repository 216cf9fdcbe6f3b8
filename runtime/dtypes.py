"""Element types of a model's inputs and outputs, by their ONNX number.

Types that NumPy lacks come from ``ml_dtypes`` where it is installed. Without it their arrays hold the raw bits, tagged
with the type's name: ``np.dtype((np.uint16, {"bf16": (np.uint16, 0)}))``; 4-bit types hold one element a byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from tcompile.errors import ArtifactError


@dataclass(frozen=True)
class Element:
    """One element type: its name, ONNX's number (``TensorProto.DataType``), and the NumPy type of arrays."""

    name: str
    onnx: int
    numpy: np.dtype

    def __str__(self) -> str:
        return self.name


_PLAIN = {
    1: ("f32", np.float32), 2: ("u8", np.uint8), 3: ("i8", np.int8), 4: ("u16", np.uint16), 5: ("i16", np.int16),
    6: ("i32", np.int32), 7: ("i64", np.int64), 9: ("bool", np.bool_), 10: ("f16", np.float16), 11: ("f64", np.float64),
    12: ("u32", np.uint32), 13: ("u64", np.uint64),
}  # fmt: skip
_EXTENDED = {
    16: ("bf16", "bfloat16", np.uint16),
    17: ("f8e4m3fn", "float8_e4m3fn", np.uint8),
    18: ("f8e4m3fnuz", "float8_e4m3fnuz", np.uint8),
    19: ("f8e5m2", "float8_e5m2", np.uint8),
    20: ("f8e5m2fnuz", "float8_e5m2fnuz", np.uint8),
    21: ("u4", "uint4", np.uint8),
    22: ("i4", "int4", np.uint8),
    23: ("f4e2m1", "float4_e2m1fn", np.uint8),
    24: ("f8e8m0", "float8_e8m0fnu", np.uint8),
    25: ("u2", "uint2", np.uint8),
    26: ("i2", "int2", np.uint8),
}


@cache
def element(number: int) -> Element:
    """The element type of an ONNX number. Raises ArtifactError for one that models do not hold."""
    if number in _PLAIN:
        name, numpy = _PLAIN[number]
        return Element(name, number, np.dtype(numpy))
    if number not in _EXTENDED:
        raise ArtifactError(f"the model has tensors of ONNX element type {number}, which this runtime does not know")
    name, spelled, raw = _EXTENDED[number]
    try:
        import ml_dtypes
    except ImportError:
        return Element(name, number, tagged(name, raw))
    return Element(name, number, np.dtype(getattr(ml_dtypes, spelled)))


def tagged(name: str, raw: type) -> np.dtype:
    """The type of arrays that hold the raw bits of a type that NumPy lacks."""
    return np.dtype((raw, {name: (raw, 0)}))
