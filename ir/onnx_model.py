"""Reading ONNX files: the protobuf, and tensors as arrays (those in files memory-mapped)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import numpy_helper

from tcompile.errors import InvalidModelError, UnsupportedError
from tcompile.ir import dtypes
from tcompile.ir.onnx_wire import INSIDE, without_data
from tcompile.ir.spill import release

ModelLike = str | os.PathLike | bytes | onnx.ModelProto


@dataclass(eq=False)
class ModelFiles:
    """The file of a model and the folder that its external data is relative to; None where they are not known."""

    model: Path | None = None
    folder: Path | None = None
    _maps: dict[Path, np.ndarray] = field(default_factory=dict)

    def bytes_of(self, path: Path) -> np.ndarray:
        """A file's bytes, mapped once."""
        if path not in self._maps:
            self._maps[path] = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        return self._maps[path]


NO_FILES = ModelFiles()


def load_model(model: ModelLike) -> tuple[onnx.ModelProto, ModelFiles]:
    """The model and its files. The data of a file's large tensors is not read: ``read_tensor`` maps it.

    Raises InvalidModelError for what is no ONNX model; OSError for a file that cannot be read.
    """
    if isinstance(model, onnx.ModelProto):
        return model, ModelFiles()
    path = None if isinstance(model, bytes) else Path(model)
    files = ModelFiles() if path is None else ModelFiles(path, path.parent)
    start = model[:32] if path is None else files.bytes_of(path)[:32].tobytes()
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(model if path is None else _slim(files.bytes_of(path)))
    except DecodeError as error:
        raise InvalidModelError(f"{path or 'the model'} is not an ONNX file", hint=_other_format(start)) from error
    if not all(isinstance(text, str) for text in _texts(proto)):  # protobuf hands out the bytes of what is no UTF-8
        raise InvalidModelError(f"{path or 'the model'} holds a name that is no UTF-8 text", hint="export the model again")
    if not proto.HasField("graph"):
        raise InvalidModelError(f"{path or 'the model'} holds no graph", hint=_other_format(start))
    return proto, files


def _texts(message: Message) -> Iterator[str | bytes]:
    """All strings of a message and of those in it."""
    for entry, value in message.ListFields():
        if entry.type == FieldDescriptor.TYPE_STRING:
            yield from (value,) if isinstance(value, str | bytes) else value
        elif entry.type == FieldDescriptor.TYPE_MESSAGE:
            for part in (value,) if isinstance(value, Message) else value:
                yield from _texts(part)


# What files of other formats begin with, at which place, and what to do with them.
_FORMATS = (
    (0, b"PK\x03\x04", "it is a zip: a compiled artifact is run with tcompile run, a PyTorch model is exported with torch.onnx.export"),
    (0, b"\x80", "it is a pickle: export the PyTorch model with torch.onnx.export"),
    (0, b"\x89HDF", "it is an HDF5 file: convert the Keras model with tf2onnx"),
    (4, b"TFL3", "it is a TensorFlow Lite file: convert it with tf2onnx"),
    (8, b'{"', "it is a safetensors file, which holds weights but no operators: export the model itself"),
    (0, b"version https://git-lfs", "it is a Git LFS pointer: fetch the file itself with git lfs pull"),
)


def _other_format(start: bytes) -> str:
    found = (hint for place, magic, hint in _FORMATS if start[place : place + len(magic)] == magic)
    return next(found, "export the model to ONNX first")


def _slim(file: np.ndarray) -> bytes:
    data = memoryview(file)
    slim = without_data(data)
    release(file)
    return bytes(data) if slim is None else slim


def read_tensor(tensor: onnx.TensorProto, files: ModelFiles = NO_FILES) -> np.ndarray:
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
        return _read_external(tensor, dtype, files, name)
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidModelError(f"tensor {name}: its data does not fit {dtype}{list(tensor.dims)}: {error}") from error
    return np.ascontiguousarray(array, dtype.numpy).reshape(tuple(tensor.dims))


def read_sparse(sparse: onnx.SparseTensorProto, files: ModelFiles = NO_FILES) -> np.ndarray:
    """The dense array of a sparse tensor."""
    values, indices = read_tensor(sparse.values, files), read_tensor(sparse.indices, files)
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


def _read_external(tensor: onnx.TensorProto, dtype: dtypes.DType, files: ModelFiles, name: str) -> np.ndarray:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    shape = tuple(tensor.dims)
    packed = dtype.bits < 8 and dtype.kind != "b"
    storage = np.dtype(np.uint8) if packed else dtype.numpy
    size = (-(-math.prod(shape) * dtype.bits // 8) if packed else math.prod(shape)) * storage.itemsize
    if INSIDE in fields and files.model is not None:
        path, offset = files.model, _number(fields, INSIDE, name)
        if _number(fields, "length", name) != size:
            raise InvalidModelError(f"tensor {name}: its data does not fit {dtype}{list(shape)}: {fields['length']} bytes, not {size}")
    else:
        path, offset = _external_file(fields.get("location", ""), files.folder, name), _number(fields, "offset", name)
    if offset < 0 or offset + size > path.stat().st_size:
        raise InvalidModelError(f"tensor {name}: {size} bytes at {offset} lie outside {path.name!r}")
    if not size:
        return np.zeros(shape, dtype.numpy)
    raw = files.bytes_of(path)[offset : offset + size].view(storage)
    return _unpack(raw, dtype, math.prod(shape)).reshape(shape) if packed else raw.reshape(shape)


def _external_file(location: str, folder: Path | None, name: str) -> Path:
    """The file of external data, which must be below the model's folder."""
    if folder is None:
        raise InvalidModelError(
            f"tensor {name} has its data in {location!r}, which is relative to an unknown folder", hint="pass the path of the model file"
        )
    path = folder / location
    if not location or Path(location).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise InvalidModelError(f"tensor {name}: external data {location!r} is not below the model's folder")
    if not path.is_file():
        raise InvalidModelError(f"tensor {name}: its data file {location!r} is missing", hint=f"put it beside the model, in {folder}")
    return path


def _number(fields: Mapping[str, str], key: str, name: str) -> int:
    try:
        return int(fields.get(key, "0"))
    except ValueError as error:
        raise InvalidModelError(f"tensor {name}: its external {key} {fields[key]!r} is no number") from error


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
