"""The small operators of ai.onnx.ml: linear models, scalers, encoders, and ZipMap.

Strings exist at import time, or as codes into a constant table (``CodedStrings``); what needs more is refused.
"""

from __future__ import annotations

import numpy as np

from tcompile.ir import dtypes
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import CodedStrings, HostConstant, Item, OpContext
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.onnx_scores import best_class, class_labels, floats_of, label_item, post_transform, two_columns
from tcompile.ir.terms import Term, as_term, full, join

_ML = "ai.onnx.ml"
_DENSE = 4  # a table of keys may have this many places per key


def _features(ctx: OpContext) -> Term:
    """Operand 0 as floats [n, features]; a vector is one row."""
    x = floats_of(Term(ctx.builder, ctx.input(0)))
    return x.expand(0) if x.rank == 1 else x


def _plane_scores(ctx: OpContext, x: Term) -> Term:
    """x times the rows of ``coefficients``, plus ``intercepts``."""
    coefficients = np.array(ctx.attr("coefficients"), np.float32).reshape(-1, x.shape[1])
    scores = x.dot(as_term(x.b, coefficients, x.dtype), contract=((1,), (1,)))
    intercepts = ctx.attr("intercepts", None)
    return scores if not intercepts else scores + as_term(x.b, np.array(intercepts, np.float32), x.dtype)


@onnx_op("LinearRegressor", domain=_ML)
def linear_regressor(ctx: OpContext) -> Value:
    """LinearRegressor (ai.onnx.ml 1)."""
    return post_transform(ctx, _plane_scores(ctx, _features(ctx))).convert(dtypes.F32).value


@onnx_op("LinearClassifier", domain=_ML)
def linear_classifier(ctx: OpContext) -> tuple[Item, Value]:
    """LinearClassifier (ai.onnx.ml 1); one plane for two classes is the second class's score."""
    scores = _plane_scores(ctx, _features(ctx))
    labels = class_labels(ctx, "classlabels_ints")
    if scores.shape[1] == 1 and labels is not None and len(labels) == 2:
        second = (scores > 0).reshape(scores.shape[0]).convert(dtypes.I64)
        return label_item(ctx, labels, second), two_columns(scores, ctx, probabilities=True).convert(dtypes.F32).value
    return label_item(ctx, labels, best_class(scores)), post_transform(ctx, scores).convert(dtypes.F32).value


@onnx_op("Scaler", domain=_ML)
def scaler(ctx: OpContext) -> Value:
    """Scaler (ai.onnx.ml 1): (x - offset) * scale per feature."""
    x = floats_of(Term(ctx.builder, ctx.input(0)))
    offset, scale = (as_term(x.b, np.array(ctx.attr(name), np.float32), x.dtype) for name in ("offset", "scale"))
    return ((x - offset) * scale).convert(dtypes.F32).value


@onnx_op("Normalizer", domain=_ML)
def normalizer(ctx: OpContext) -> Value:
    """Normalizer (ai.onnx.ml 1): rows divided by their MAX, L1 or L2 norm; rows of zeros stay."""
    x = floats_of(Term(ctx.builder, ctx.input(0)))
    last, kind = x.rank - 1, ctx.attr("norm", "MAX")
    size = x.map("abs")
    norm = size.max(last, keepdims=True) if kind == "MAX" else size.sum(last, keepdims=True) if kind == "L1" else _euclidean(x, last)
    return (x / norm.equals(0).where(1.0, norm)).convert(dtypes.F32).value


def _euclidean(x: Term, axis: int) -> Term:
    return (x * x).sum(axis, keepdims=True).map("sqrt")


@onnx_op("Binarizer", domain=_ML)
def binarizer(ctx: OpContext) -> Value:
    """Binarizer (ai.onnx.ml 1)."""
    x = Term(ctx.builder, ctx.input(0))
    return (x > ctx.attr("threshold", 0.0)).convert(x.dtype).value


@onnx_op("Imputer", domain=_ML)
def imputer(ctx: OpContext) -> Value:
    """Imputer (ai.onnx.ml 1): replaces one value (NaN is one) per feature."""
    x = Term(ctx.builder, ctx.input(0))
    kind = "float" if x.dtype.is_float else "int64"
    values = np.array(ctx.attr(f"imputed_value_{kind}s"))
    old = ctx.attr(f"replaced_value_{kind}", 0)
    missing = x.map("isnan") if isinstance(old, float) and np.isnan(old) else x.equals(old)
    return missing.where(as_term(x.b, values, x.dtype), x).value


@onnx_op("FeatureVectorizer", domain=_ML)
def feature_vectorizer(ctx: OpContext) -> Value:
    """FeatureVectorizer (ai.onnx.ml 1): operands side by side, each cut or filled with zeros to its dimension."""
    parts = []
    sizes = ctx.attr("inputdimensions", None) or [None] * ctx.input_count
    for value, size in zip(ctx.tensors(), sizes, strict=True):
        x = Term(ctx.builder, value).convert(dtypes.F32)
        x = x.expand(1) if x.rank == 1 else x
        parts.append(x if size is None else _resized(x, size))
    return join(parts, 1).value


def _resized(x: Term, size: int) -> Term:
    rows, width = x.shape
    if isinstance(width, int) and width >= size:
        return x.part(1, 0, size)
    return join([x, full(x.b, (rows, size - width), 0, x.dtype)], 1)


@onnx_op("ArrayFeatureExtractor", domain=_ML)
def array_feature_extractor(ctx: OpContext) -> Item:
    """ArrayFeatureExtractor (ai.onnx.ml 1): columns of the last axis; a vector counts as one row."""
    b = ctx.builder
    indices = Term(b, ctx.input(1)).convert(dtypes.I64)
    size = indices.shape[0] if indices.rank == 1 else _size(indices)
    flat = indices.reshape(size)
    item = ctx.item(0)
    if isinstance(item, HostConstant) and item.array.size == item.array.shape[-1]:
        return CodedStrings(tuple(item.array.reshape(-1)), flat.reshape(1, size).value)
    x = Term(b, ctx.input(0))
    picked = x.take(flat, x.rank - 1)
    return picked.value if x.rank > 1 else picked.reshape(1, size).value


def _size(x: Term):
    total = 1
    for extent in x.shape:
        total = total * extent
    return total


@onnx_op("ZipMap", domain=_ML)
def zip_map(ctx: OpContext) -> Value:
    """ZipMap (ai.onnx.ml 1): the matrix itself; its columns are the keys in order."""
    return ctx.input(0)


# Encoders -------------------------------------------------------------------------------------------------------


@onnx_op("OneHotEncoder", domain=_ML)
def one_hot_encoder(ctx: OpContext) -> Value:
    """OneHotEncoder (ai.onnx.ml 1): f32 [..., categories]; an unknown category gives zeros."""
    b, item = ctx.builder, ctx.item(0)
    texts = ctx.attr("cats_strings", None)
    if isinstance(item, CodedStrings):
        names = [_text(text) for text in texts]
        places = np.array([names.index(text) if text in names else -1 for text in item.table], np.int64)
        x, categories = Term(b, b.constant(places)).take(Term(b, item.codes), 0), np.arange(len(names))
    else:
        x, categories = Term(b, ctx.input(0)), np.array(ctx.attr("cats_int64s"), np.int64)
        x = x.convert(dtypes.I64)
    return x.expand(x.rank).equals(as_term(b, categories, dtypes.I64)).convert(dtypes.F32).value


def _text(text: str | bytes) -> str:
    return text.decode() if isinstance(text, bytes) else text


@onnx_op("LabelEncoder", domain=_ML)
def label_encoder(ctx: OpContext) -> Item:
    """LabelEncoder (ai.onnx.ml 1: classes_strings; 2, 4: keys and values): a look-up, with a default for unknown keys."""
    keys, values, default = _mapping(ctx)
    item = ctx.item(0)
    if isinstance(item, HostConstant | CodedStrings):
        return _encode_strings(ctx, item, keys, values, default)
    x = Term(ctx.builder, ctx.input(0))
    codes = _code(x, keys, nan_matches=ctx.opset >= 4)
    table = [*values, default]
    if values.dtype == object:
        return CodedStrings(tuple(map(_text, table)), codes.value)
    return Term(x.b, x.b.constant(np.array(table, values.dtype))).take(codes, 0).value


def _mapping(ctx: OpContext) -> tuple[np.ndarray, np.ndarray, object]:
    """Keys, values and the default value."""
    if ctx.opset < 2:
        texts = np.array([_text(text) for text in ctx.attr("classes_strings")], object)
        places = np.arange(len(texts), dtype=np.int64)
        if isinstance(ctx.item(0), Value):
            return places, texts, ctx.attr("default_string", "_Unused")
        return texts, places, ctx.attr("default_int64", -1)
    keys, values = _column(ctx, "keys"), _column(ctx, "values")
    tensor = ctx.attr("default_tensor", None)
    if tensor is not None:
        return keys, values, tensor.reshape(-1)[0]
    name, fallback = {"f": ("default_float", -0.0), "i": ("default_int64", -1)}.get(values.dtype.kind, ("default_string", "_Unused"))
    return keys, values, ctx.attr(name, fallback)


def _column(ctx: OpContext, name: str) -> np.ndarray:
    for suffix, dtype in (("floats", np.float32), ("int64s", np.int64), ("strings", object)):
        listed = ctx.attr(f"{name}_{suffix}", None)
        if listed:
            return np.array([_text(item) for item in listed] if dtype is object else listed, dtype)
    tensor = ctx.attr(f"{name}_tensor", None)
    if tensor is None:
        ctx.invalid(f"it has no {name}")
    return np.asarray(tensor).reshape(-1)


def _encode_strings(ctx: OpContext, item: HostConstant | CodedStrings, keys: np.ndarray, values: np.ndarray, default: object) -> Item:
    """Strings known at import time, or codes: the table is mapped, the codes stay."""
    table = item.table if isinstance(item, CodedStrings) else tuple(item.array.reshape(-1))
    known = {_text(key): value for key, value in zip(keys, values, strict=True)}
    mapped = [known.get(_text(text), default) for text in table]
    b = ctx.builder
    if isinstance(item, HostConstant):
        array = np.array(mapped, values.dtype).reshape(item.array.shape)
        return HostConstant(array) if values.dtype == object else b.known(array, dtypes.from_numpy(values.dtype))
    if values.dtype == object:
        return CodedStrings(tuple(map(_text, mapped)), item.codes)
    return Term(b, b.constant(np.array(mapped, values.dtype))).take(Term(b, item.codes), 0).value


def _code(x: Term, keys: np.ndarray, *, nan_matches: bool) -> Term:
    """The position of each element among the keys; their number for what is none of them."""
    b, count = x.b, len(keys)
    if keys.dtype.kind in "iu" and x.dtype.is_integer and np.ptp(keys) < _DENSE * count + 1024:
        low, span = int(keys.min()), int(np.ptp(keys)) + 1
        table = np.full(span + 1, count, np.int64)
        table[keys - low] = np.arange(count)  # the last of equal keys counts
        wide = x.convert(dtypes.I64)
        inside = (wide >= low) & (wide < low + span)
        return as_term(b, table).take(inside.where(wide - low, span), 0)
    column = as_term(b, keys, x.dtype)
    same = x.expand(x.rank).equals(column)
    if nan_matches and keys.dtype.kind == "f" and np.isnan(keys).any():
        same = same | (x.map("isnan").expand(x.rank) & as_term(b, np.isnan(keys)))
    found = Term(b, b.emit("arg_reduce", same.convert(dtypes.I32).value, fn="max", axis=x.rank, last=True))
    return same.reduce("or", [x.rank]).where(found, count)
