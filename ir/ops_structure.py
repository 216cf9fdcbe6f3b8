"""Core ops that make or bridge values: constant, dim, bind_dim, map, convert, bitcast, iota, rng_bits."""

from __future__ import annotations

import math

import numpy as np

from tcompile.errors import ExecutionError
from tcompile.ir import dtypes, elementwise
from tcompile.ir.casts import bitcast, convert, wrap
from tcompile.ir.dtypes import I64, U32
from tcompile.ir.graph import TensorType
from tcompile.ir.opspec import (
    Arrays,
    Attrs,
    Env,
    OpSpec,
    RuleError,
    Tolerance,
    Types,
    concrete,
    need,
    need_axis,
    need_extents,
    need_scalar,
    register,
)
from tcompile.ir.random import philox_bits

_COMPUTED = Tolerance(ulp=4)


def _infer_constant(types: Types, attrs: Attrs, regions: object) -> Types:
    value = attrs["value"]
    return (TensorType(dtypes.from_numpy(value.dtype), value.shape),)


register(
    OpSpec(
        "constant",
        "constant() {value}: an array, possibly memory-mapped; never written.",
        operands=(0, 0),
        attrs={"value": "array"},
        infer=_infer_constant,
        evaluate=lambda arrays, attrs, regions, env: (attrs["value"],),
    )
)


def _infer_dim(types: Types, attrs: Attrs, regions: object) -> Types:
    need(math.prod(attrs["shape"]) == len(attrs["exprs"]), f"{math.prod(attrs['shape'])} expressions", len(attrs["exprs"]))
    return (TensorType(I64, attrs["shape"]),)


def _evaluate_dim(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    return (np.array(concrete(attrs["exprs"], env), np.int64).reshape(attrs["shape"]),)


register(
    OpSpec(
        "dim",
        "dim() {exprs, shape}: the values of dimension expressions as an i64 tensor of a constant shape, in order.",
        operands=(0, 0),
        attrs={"exprs": "dims", "shape": "ints"},
        infer=_infer_dim,
        evaluate=_evaluate_dim,
    )
)


def _infer_bind_dim(types: Types, attrs: Attrs, regions: object) -> Types:
    need_scalar(types[0], I64, "the dimension")
    return ()


def _evaluate_bind_dim(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    value = int(arrays[0])
    if value < 0:
        raise ExecutionError(f"bind_dim: the dimension {attrs['symbol']} is {value}", hint="a dimension is at least 0")
    env[attrs["symbol"]] = value
    return ()


register(
    OpSpec(
        "bind_dim",
        "bind_dim(i64 scalar) {symbol}: no output; later nodes may use the symbol, whose range the graph holds.",
        operands=(1, 1),
        attrs={"symbol": "str"},
        infer=_infer_bind_dim,
        evaluate=_evaluate_bind_dim,
    )
)


def _infer_map(types: Types, attrs: Attrs, regions: object) -> Types:
    shape = types[0].shape
    if any(type_.shape != shape for type_ in types):
        raise RuleError("operands of one shape", ", ".join(map(str, types)))
    return (TensorType(elementwise.result_dtype(attrs["fn"], [type_.dtype for type_ in types]), shape),)


register(
    OpSpec(
        "map",
        "map(operands...) {fn}: a function of ir/elementwise.py on tensors of one shape.",
        operands=(1, 3),
        attrs={"fn": "str"},
        infer=_infer_map,
        evaluate=lambda arrays, attrs, regions, env: (elementwise.apply(attrs["fn"], arrays),),
        tolerance=_COMPUTED,  # each function has its own: elementwise.TABLE[fn].ulp
    )
)

register(
    OpSpec(
        "convert",
        "convert(x) {dtype, saturate}: another element type, as ir/casts.py says; saturate matters for f8 kinds only.",
        operands=(1, 1),
        attrs={"dtype": "dtype", "saturate": "bool"},
        defaults={"saturate": True},
        infer=lambda types, attrs, regions: (TensorType(attrs["dtype"], types[0].shape),),
        evaluate=lambda arrays, attrs, regions, env: (convert(arrays[0], attrs["dtype"], saturate=attrs["saturate"]),),
    )
)


def _infer_bitcast(types: Types, attrs: Attrs, regions: object) -> Types:
    source, target = types[0].dtype, attrs["dtype"]
    need(source.bits == target.bits and "b" not in (source.kind, target.kind), f"a number type of {source.bits} bits", target)
    return (TensorType(target, types[0].shape),)


register(
    OpSpec(
        "bitcast",
        "bitcast(x) {dtype}: the same bits as another number type of the same width.",
        operands=(1, 1),
        attrs={"dtype": "dtype"},
        infer=_infer_bitcast,
        evaluate=lambda arrays, attrs, regions, env: (bitcast(arrays[0], attrs["dtype"]),),
    )
)


def _infer_iota(types: Types, attrs: Attrs, regions: object) -> Types:
    need_axis(attrs["axis"], len(attrs["shape"]))
    need_extents(attrs["shape"])
    need(attrs["dtype"].kind != "b", "a number type", attrs["dtype"])
    return (TensorType(attrs["dtype"], attrs["shape"]),)


def _evaluate_iota(arrays: Arrays, attrs: Attrs, regions: object, env: Env) -> Arrays:
    shape, axis = concrete(attrs["shape"], env), attrs["axis"]
    index = np.arange(shape[axis], dtype=np.int64)
    line = convert(index, attrs["dtype"]) if attrs["dtype"].is_float else wrap(index, attrs["dtype"])
    return (np.broadcast_to(line.reshape([-1 if k == axis else 1 for k in range(len(shape))]), shape),)


register(
    OpSpec(
        "iota",
        "iota() {shape, axis, dtype}: out[i...] = i[axis]; integers wrap.",
        operands=(0, 0),
        attrs={"shape": "dims", "axis": "int", "dtype": "dtype"},
        infer=_infer_iota,
        evaluate=_evaluate_iota,
    )
)


def _infer_rng_bits(types: Types, attrs: Attrs, regions: object) -> Types:
    need_extents(attrs["shape"])
    return (TensorType(U32, attrs["shape"]),)


register(
    OpSpec(
        "rng_bits",
        "rng_bits() {shape, seed}: random u32; element i is word i%4 of Philox 4x32-10 at counter i//4 under key seed.",
        operands=(0, 0),
        attrs={"shape": "dims", "seed": "int"},
        infer=_infer_rng_bits,
        evaluate=lambda arrays, attrs, regions, env: (philox_bits(concrete(attrs["shape"], env), attrs["seed"]),),
    )
)
