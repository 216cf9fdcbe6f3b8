"""Which ONNX operators the host can run (``runtime/host_*.py`` implement them), and when it must."""

from __future__ import annotations

import onnx

from tcompile.ir.onnx_host_types import STRING

_ML, _MICROSOFT = "ai.onnx.ml", "com.microsoft"

# Operators that always run on the host: no tensor of numbers comes out of them, or none goes in.
ALWAYS = {
    *(("", op) for op in ("ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit")),
    *((_ML, op) for op in ("CastMap", "CategoryMapper", "DictVectorizer", "ZipMap")),
    (_MICROSOFT, "Tokenizer"),
}

# Operators that the host runs where the importer does not resolve them when compiling.
RESOLVED = {
    *(("", f"Sequence{op}") for op in ("At", "Construct", "Empty", "Erase", "Insert", "Length")),
    *(("", op) for op in ("ConcatFromSequence", "SplitToSequence")),
    *(("", op) for op in ("Optional", "OptionalHasElement", "OptionalGetElement")),
    *(("", op) for op in ("Cast", "CastLike", "TfIdfVectorizer")),
    *((_ML, op) for op in ("ArrayFeatureExtractor", "LabelEncoder", "OneHotEncoder")),
}

# Operators that only move elements, or compare them: the host runs them on strings, sequences and optionals.
MOVING = {
    ("", op)
    for op in (
        "Compress", "Concat", "Equal", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape",
        "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unique", "Unsqueeze", "Where",
    )
}  # fmt: skip

CONTROL = {("", "If"), ("", "Loop"), ("", "SequenceMap")}


def always(node: onnx.NodeProto, domain: str) -> bool:
    """Whether a node runs on the host, whatever its operands are."""
    return (domain, node.op_type) in ALWAYS


def able(node: onnx.NodeProto, domain: str, *, on_host_values: bool) -> bool:
    """Whether the host can run a node; operators that move elements only where strings or sequences go through them."""
    key = (domain, node.op_type)
    if key in MOVING:
        return on_host_values
    if key in (("", "Cast"), ("", "CastLike")) and not on_host_values:
        return any(attribute.name == "to" and attribute.i == STRING for attribute in node.attribute)
    return key in ALWAYS or key in RESOLVED or key in CONTROL
