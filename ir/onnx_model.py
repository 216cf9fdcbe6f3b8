"""Reading ONNX files: the protobuf, and tensors as arrays (external data memory-mapped)."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from tcompile.errors import InvalidModelError, UnsupportedError
from tcompile.ir import dtypes

ModelLike = str | os.PathLike | bytes | onnx.ModelProto


def load_model(model: ModelLike) -> tuple[onnx.ModelProto, Path | None]:
    """The model and the folder that its external data is relative to.

    Raises InvalidModelError for what is no ONNX model; OSError for a file that cannot be read.
    """
    if isinstance(model, onnx.ModelProto):
        return model, None
    data = model if isinstance(model, bytes) else Path(model).read_bytes()
    folder = None if isinstance(model, bytes) else Path(model).parent
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise InvalidModelError(f"{'the model' if folder is None else model} is not an ONNX file: {error}") from error
    if not proto.HasField("graph"):
        raise InvalidModelError(f"{'the model' if folder is None else model} holds no graph", hint="is it an ONNX model?")
    return proto, folder


def read_tensor(tensor: onnx.TensorProto, folder: Path | None = None) -> np.ndarray:
    """The array of a tensor; strings come as an object array of str.

    Raises InvalidModelError where data and shape disagree, UnsupportedError for an element type that is not supported.
    """
    name = tensor.name or "(unnamed)"
    if any(extent < 0 for extent in tensor.dims):
        raise InvalidModelError(f"tensor {name} has a negative extent in {list(tensor.dims)}")
    if tensor.data_type == onnx.TensorProto.STRING:
        return _read_strings(tensor, name)
    dtype = dtypes.from_onnx(tensor.data_type)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return _read_external(tensor, dtype, folder, name)
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidModelError(f"tensor {name}: its data does not fit {dtype}{list(tensor.dims)}: {error}") from error
    return np.ascontiguousarray(array, dtype.numpy).reshape(tuple(tensor.dims))


def read_sparse(sparse: onnx.SparseTensorProto, folder: Path | None = None) -> np.ndarray:
    """The dense array of a sparse tensor."""
    values, indices = read_tensor(sparse.values, folder), read_tensor(sparse.indices, folder)
    shape = tuple(sparse.dims)
    flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
    if flat.shape != values.shape or np.any((flat < 0) | (flat >= math.prod(shape))):
        raise InvalidModelError(f"sparse tensor {sparse.values.name}: its indices do not fit the shape {list(shape)}")
    dense = np.zeros(math.prod(shape), values.dtype)
    dense[flat] = values
    return dense.reshape(shape)


def _read_strings(tensor: onnx.TensorProto, name: str) -> np.ndarray:
    if len(tensor.string_data) != math.prod(tensor.dims):
        raise InvalidModelError(f"tensor {name} holds {len(tensor.string_data)} strings for shape {list(tensor.dims)}")
    array = np.empty(len(tensor.string_data), object)
    array[:] = [item.decode("utf-8", "replace") for item in tensor.string_data]
    return array.reshape(tuple(tensor.dims))


def _read_external(tensor: onnx.TensorProto, dtype: dtypes.DType, folder: Path | None, name: str) -> np.ndarray:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    if folder is None:
        raise InvalidModelError(
            f"tensor {name} has its data in {location!r}, which is relative to an unknown folder", hint="pass the path of the model file"
        )
    path = folder / location
    if not location or Path(location).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidModelError(f"tensor {name}: external data {location!r} is not below the model's folder")
    if not path.is_file():
        raise InvalidModelError(f"tensor {name}: its data file {location!r} is missing", hint=f"put it beside the model, in {folder}")
    shape = tuple(tensor.dims)
    packed = dtype.bits < 8 and dtype.kind != "b"
    count = -(-math.prod(shape) * dtype.bits // 8) if packed else math.prod(shape)
    storage = np.dtype(np.uint8) if packed else dtype.numpy
    try:
        offset = int(fields.get("offset", "0"))
    except ValueError as error:
        raise InvalidModelError(f"tensor {name}: its external offset {fields['offset']!r} is no number") from error
    if offset < 0 or offset + count * storage.itemsize > path.stat().st_size:
        raise InvalidModelError(f"tensor {name}: {count * storage.itemsize} bytes at {offset} lie outside {location!r}")
    if not count:
        return np.zeros(shape, dtype.numpy)
    raw = np.memmap(path, storage, "r", offset, (count,))
    return _unpack(raw, dtype, math.prod(shape)).reshape(shape) if packed else raw.reshape(shape)


def _unpack(raw: np.ndarray, dtype: dtypes.DType, count: int) -> np.ndarray:
    """Sub-byte elements, the first in the low bits, as one element per byte."""
    if dtype.bits not in (2, 4):
        raise UnsupportedError(f"external tensors of {dtype} are not supported")
    shifts = np.arange(0, 8, dtype.bits, dtype=np.uint8)
    fields = ((raw[:, None] >> shifts) & ((1 << dtype.bits) - 1)).reshape(-1)[:count].astype(np.uint8)
    if dtype.kind == "i":
        sign = 1 << (dtype.bits - 1)
        return ((fields.astype(np.int8) ^ sign) - sign).astype(dtype.numpy)
    return fields.astype(dtype.numpy) if dtype.kind == "u" else fields.view(dtype.numpy)
