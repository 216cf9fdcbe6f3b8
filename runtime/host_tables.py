"""Operators of ai.onnx.ml that look things up, and those that make or read maps. A map is a dict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any

import numpy as np

from tcompile.runtime.host_ops import ML, OURS, HostNode, host_op, objects


@host_op("Lookup", domain=OURS)
def lookup(inputs: list[Any], node: HostNode) -> np.ndarray:
    """Strings by their positions in the attribute ``table``."""
    return objects([node.get("table")[code] for code in inputs[0].reshape(-1).tolist()], inputs[0].shape)


def _mapped(x: np.ndarray, table: Mapping[Any, Any], default: Any, dtype: Any) -> np.ndarray:
    """Each element's value in a table."""
    items = [table.get(key, default) for key in x.reshape(-1).tolist()]
    return objects(items, x.shape) if dtype is object else np.array(items, dtype).reshape(x.shape)


@host_op("LabelEncoder", domain=ML)
def label_encoder(inputs: list[Any], node: HostNode) -> np.ndarray:
    """LabelEncoder (ai.onnx.ml 1: classes_strings; 2, 4: keys and values): the last of equal keys counts, NaN equals NaN."""
    x = inputs[0]
    if node.opset < 2:
        classes = node.get("classes_strings")
        if x.dtype == object:
            return _mapped(x, {text: k for k, text in enumerate(classes)}, node.get("default_int64", -1), np.int64)
        return _mapped(x, dict(enumerate(classes)), node.get("default_string", "_Unused"), object)
    keys, values = _column(node, "keys"), _column(node, "values")
    default = _default(node, values.dtype)
    table = dict(zip(map(_key, keys.tolist()), values.tolist(), strict=True))
    if x.dtype.kind == "f":
        x = objects([_key(item) for item in x.reshape(-1).tolist()], x.shape)
    return _mapped(x, table, default, object if values.dtype == object else values.dtype)


def _key(item: Any) -> Any:
    """A key of a table: all NaNs are one."""
    return "NaN" if isinstance(item, float) and item != item else item


def _column(node: HostNode, name: str) -> np.ndarray:
    for suffix, dtype in (("floats", np.float32), ("int64s", np.int64), ("strings", object)):
        listed = node.get(f"{name}_{suffix}")
        if listed:
            return np.array(listed, dtype)
    return np.asarray(node.get(f"{name}_tensor")).reshape(-1)


def _default(node: HostNode, dtype: np.dtype) -> Any:
    tensor = node.get("default_tensor")
    if tensor is not None:
        return np.asarray(tensor).reshape(-1)[0]
    name, fallback = {"f": ("default_float", -0.0), "i": ("default_int64", -1)}.get(dtype.kind, ("default_string", "_Unused"))
    return node.get(name, fallback)


@host_op("CategoryMapper", domain=ML)
def category_mapper(inputs: list[Any], node: HostNode) -> np.ndarray:
    """CategoryMapper (ai.onnx.ml 1): strings to integers, or back."""
    texts, numbers = node.get("cats_strings"), node.get("cats_int64s")
    if inputs[0].dtype == object:
        return _mapped(inputs[0], dict(zip(texts, numbers, strict=True)), node.get("default_int64", -1), np.int64)
    return _mapped(inputs[0], dict(zip(numbers, texts, strict=True)), node.get("default_string", "_Unused"), object)


@host_op("OneHotEncoder", domain=ML)
def one_hot_encoder(inputs: list[Any], node: HostNode) -> np.ndarray:
    """OneHotEncoder (ai.onnx.ml 1): f32 [..., categories]; an unknown category gives zeros, or an error."""
    x = inputs[0]
    names = node.get("cats_strings") if x.dtype == object else node.get("cats_int64s")
    keys = x.reshape(-1).tolist() if x.dtype == object else x.reshape(-1).astype(np.int64).tolist()
    places = {name: k for k, name in enumerate(names)}
    found = [places.get(key, len(names)) for key in keys]
    if len(names) in found and not node.get("zeros", 1):
        raise ValueError(f"{keys[found.index(len(names))]!r} is none of the categories")
    result = np.zeros((len(keys), len(names) + 1), np.float32)
    result[np.arange(len(keys)), found] = 1  # the last column takes those of no category
    return result[:, :-1].reshape(*x.shape, len(names))


@host_op("ArrayFeatureExtractor", domain=ML)
def array_feature_extractor(inputs: list[Any], node: HostNode) -> np.ndarray:
    """ArrayFeatureExtractor (ai.onnx.ml 1): columns of the last axis; a vector counts as one row."""
    x = inputs[0].reshape(1, -1) if inputs[0].ndim == 1 else inputs[0]
    return np.take(x, inputs[1].reshape(-1).astype(np.int64), x.ndim - 1)


# Maps -----------------------------------------------------------------------------------------------------------


def _labels(node: HostNode, texts: str, numbers: str) -> Iterable[Any]:
    return node.get(texts) or node.get(numbers)


@host_op("ZipMap", domain=ML)
def zip_map(inputs: list[Any], node: HostNode) -> list[dict[Any, Any]]:
    """ZipMap (ai.onnx.ml 1): a map from label to value for each row of [n, labels]; a vector is one row."""
    labels = list(_labels(node, "classlabels_strings", "classlabels_int64s"))
    rows = inputs[0].reshape(-1, inputs[0].shape[-1]).tolist()
    if rows and len(rows[0]) != len(labels):
        raise ValueError(f"{len(rows[0])} values in a row for {len(labels)} labels")
    return list(map(dict, map(zip, repeat(labels), rows)))


@host_op("DictVectorizer", domain=ML)
def dict_vectorizer(inputs: list[Any], node: HostNode) -> np.ndarray:
    """DictVectorizer (ai.onnx.ml 1): [1, vocabulary], 0 where the map has no such key."""
    words = list(_labels(node, "string_vocabulary", "int64_vocabulary"))
    given = inputs[0]
    values = list(given.values())
    kind = object if any(isinstance(value, str) for value in values) else np.asarray(values or [0.0]).dtype
    dtype = {"i": np.int64, "f": np.float32}.get(np.dtype(kind).kind, kind)
    if values and isinstance(values[0], np.generic):
        dtype = values[0].dtype
    blank = "" if dtype is object else 0
    return np.array([[given.get(word, blank) for word in words]], dtype)


@host_op("CastMap", domain=ML)
def cast_map(inputs: list[Any], node: HostNode) -> np.ndarray:
    """CastMap (ai.onnx.ml 1): [1, n] of a map's values by ascending keys, or each at the place of its key."""
    given = dict(sorted(inputs[0].items()))
    text = node.get("cast_to", "TO_FLOAT") == "TO_STRING"
    dtype = object if text else np.int64 if node.get("cast_to") == "TO_INT64" else np.float32
    read = str if text else float if dtype is np.float32 else int
    if node.get("map_form", "DENSE") == "DENSE":
        return np.array([[read(value) for value in given.values()]], dtype)
    row = [("" if text else 0)] * node.get("max_map", 1)
    for key, value in given.items():
        row[key] = read(value)
    return np.array([row], dtype)
