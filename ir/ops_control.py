"""Core ops that own regions: if, loop, fused. They evaluate by interpreting their regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tcompile.ir import dims
from tcompile.ir.dims import DimError, DimLike
from tcompile.ir.dtypes import BOOL, I64
from tcompile.ir.graph import Graph, TensorType, Value
from tcompile.ir.opspec import (
    Arrays,
    Attrs,
    Env,
    OpSpec,
    Regions,
    RuleError,
    Types,
    concrete,
    differ,
    need,
    need_scalar,
    register,
)


def _run(region: Graph, arrays: Sequence[np.ndarray], env: Env) -> list[np.ndarray]:
    from tcompile.ir.interpret import run_region  # the interpreter is built on this registry

    return run_region(region, arrays, env)


def _need_inputs(region: Graph, expected: Sequence[TensorType]) -> None:
    got = [value.type for value in region.inputs]
    if got != list(expected):
        raise RuleError(f"the region {region.name} to take ({', '.join(map(str, expected))})", f"({', '.join(map(str, got))})")


def _types(values: Sequence[Value]) -> Types:
    return tuple(value.type for value in values)


# fused ------------------------------------------------------------------------------------------------------


def _infer_fused(types: Types, attrs: Attrs, regions: Regions) -> Types:
    _need_inputs(regions[0], types)
    return _types(regions[0].outputs)


register(
    OpSpec(
        "fused",
        "fused(operands...) {kind} region: one kernel; the region's inputs are the operands.",
        operands=(0, None),
        attrs={"kind": "str"},
        regions=1,
        infer=_infer_fused,
        evaluate=lambda arrays, attrs, regions, env: tuple(_run(regions[0], arrays, env)),
    )
)

# if ---------------------------------------------------------------------------------------------------------


def _infer_if(types: Types, attrs: Attrs, regions: Regions) -> Types:
    need_scalar(types[0], BOOL, "the condition")
    for region in regions:
        _need_inputs(region, types[1:])
    then, otherwise = (_types(region.outputs) for region in regions)
    need(len(then) == len(otherwise), f"{len(then)} outputs of both regions", len(otherwise))
    symbols = {(output, axis): name for output, axis, name in attrs["shape_symbols"]}
    return tuple(_join(output, a, b, symbols) for output, (a, b) in enumerate(zip(then, otherwise, strict=True)))


def _join(output: int, a: TensorType, b: TensorType, symbols: Mapping[tuple[int, int], str]) -> TensorType:
    if a.dtype != b.dtype or a.rank != b.rank:
        raise RuleError(f"output {output} of both regions to have one dtype and rank", f"{a}, {b}")
    shape = []
    for axis, (ours, theirs) in enumerate(zip(a.shape, b.shape, strict=True)):
        if (output, axis) in symbols:
            shape.append(dims.symbol(symbols[output, axis]))
        elif ours == theirs:
            shape.append(ours)
        else:
            raise RuleError(f"a shape symbol for output {output}, axis {axis}, which the regions give unlike extents", f"{a}, {b}")
    return TensorType(a.dtype, tuple(shape))


def _evaluate_if(arrays: Arrays, attrs: Attrs, regions: Regions, env: Env) -> Arrays:
    outputs = _run(regions[0] if bool(arrays[0]) else regions[1], arrays[1:], env)
    for output, axis, name in attrs["shape_symbols"]:
        env[name] = outputs[output].shape[axis]
    return tuple(outputs)


register(
    OpSpec(
        "if",
        "if(cond, captures...) {shape_symbols} then, else: both regions take the captures.\n\n"
        "An output axis on which the regions differ has the symbol that shape_symbols, tuples of (output index, axis, symbol), "
        "gives it; the node binds it.",
        operands=(1, None),
        attrs={"shape_symbols": "tuples"},
        defaults={"shape_symbols": ()},
        regions=2,
        infer=_infer_if,
        evaluate=_evaluate_if,
    )
)

# loop -------------------------------------------------------------------------------------------------------


def _infer_loop(types: Types, attrs: Attrs, regions: Regions) -> Types:
    (region,), count = regions, attrs["carried"]
    need_scalar(types[0], I64, "the trip count")
    need_scalar(types[1], BOOL, "the condition")
    need(0 <= count <= len(types) - 2, f"at most {len(types) - 2} carried values", count)
    changing = {(index, axis): (inner, outer) for index, axis, inner, outer in attrs["shape_symbols"]}
    carried = [_with_symbols(index, type_, changing, inner=True) for index, type_ in enumerate(types[2 : 2 + count])]
    _need_inputs(region, (TensorType(I64, ()), *carried, *types[2 + count :]))
    outputs = _types(region.outputs)
    need(len(outputs) == 1 + count + attrs["scans"], f"{1 + count + attrs['scans']} outputs of the body", len(outputs))
    need_scalar(outputs[0], BOOL, "the body's condition")
    for index, (before, after) in enumerate(zip(carried, outputs[1:], strict=False)):
        _need_carried(index, before, after, changing)
    finals = [_with_symbols(index, type_, changing, inner=False) for index, type_ in enumerate(carried)]
    unlike = {(index, axis): name for index, axis, name in attrs["scan_symbols"]}
    stacks = (_stacked(_scanned(index, type_, unlike), attrs["scan_extent"]) for index, type_ in enumerate(outputs[1 + count :]))
    return (*finals, *stacks)


def _scanned(index: int, type_: TensorType, symbols: Mapping[tuple[int, int], str]) -> TensorType:
    """The type of the elements of a scan as it is known outside of the loop."""
    shape = (dims.symbol(symbols[index, axis]) if (index, axis) in symbols else extent for axis, extent in enumerate(type_.shape))
    return TensorType(type_.dtype, tuple(shape))


def _with_symbols(index: int, type_: TensorType, changing: Mapping[tuple[int, int], tuple[str, str]], *, inner: bool) -> TensorType:
    shape: list[DimLike] = list(type_.shape)
    for axis in range(type_.rank):
        if (index, axis) in changing:
            shape[axis] = dims.symbol(changing[index, axis][0 if inner else 1])
    return TensorType(type_.dtype, tuple(shape))


def _need_carried(index: int, before: TensorType, after: TensorType, changing: Mapping[tuple[int, int], tuple[str, str]]) -> None:
    fits = before.dtype == after.dtype and before.rank == after.rank
    if not fits or any((index, k) not in changing and differ(a, b) for k, (a, b) in enumerate(zip(before.shape, after.shape, strict=True))):
        raise RuleError(f"carried value {index} to stay {before}", after)


def _stacked(type_: TensorType, extent: DimLike | None) -> TensorType:
    if extent is None:
        raise RuleError("a scan_extent", "none")
    return TensorType(type_.dtype, (extent, *type_.shape))


def _evaluate_loop(arrays: Arrays, attrs: Attrs, regions: Regions, env: Env) -> Arrays:
    (region,), count = regions, attrs["carried"]
    limit = int(arrays[0]) if attrs["trip"] is None else concrete((attrs["trip"],), env)[0]
    going, turn = bool(arrays[1]), 0
    carried, captures = list(arrays[2 : 2 + count]), arrays[2 + count :]
    scans: list[list[np.ndarray]] = [[] for _ in range(attrs["scans"])]
    while going and (limit < 0 or turn < limit):
        for index, axis, inner, _ in attrs["shape_symbols"]:
            env[inner] = carried[index].shape[axis]
        env[attrs["counter"]] = turn
        results = _run(region, (np.array(turn, np.int64), *carried, *captures), env)
        going, carried = bool(results[0]), results[1 : 1 + count]
        for stack, element in zip(scans, results[1 + count :], strict=True):
            stack.append(element)
        turn += 1
    _bind_after_loop(attrs, carried, turn, env)
    for index, axis, name in attrs["scan_symbols"]:
        env[name] = scans[index][0].shape[axis] if scans[index] else 0
    stacks = [_stack(stack, value.type, env) for stack, value in zip(scans, region.outputs[1 + count :], strict=True)]
    return (*carried, *stacks)


def _bind_after_loop(attrs: Attrs, carried: Sequence[np.ndarray], turns: int, env: Env) -> None:
    for index, axis, _, outer in attrs["shape_symbols"]:
        env[outer] = carried[index].shape[axis]
    name = loop_scan_symbol(attrs)
    if name is not None:
        env[name] = turns


def loop_scan_symbol(attrs: Attrs) -> str | None:
    """The symbol for the number of turns that a loop node itself binds, if it does."""
    extent = attrs["scan_extent"]
    if extent is None or isinstance(extent, int) or extent == attrs["trip"]:
        return None
    return str(extent) if dims.symbols(extent) == {str(extent)} else None


def _stack(elements: Sequence[np.ndarray], type_: TensorType, env: Env) -> np.ndarray:
    if elements:
        return np.stack(elements)
    try:
        return np.empty((0, *concrete(type_.shape, env)), type_.dtype.numpy)
    except DimError:  # an extent that only a turn would have bound
        return np.empty((0, *(extent if isinstance(extent, int) else 0 for extent in type_.shape)), type_.dtype.numpy)


register(
    OpSpec(
        "loop",
        "loop(trip, cond, carried..., captures...) region(iteration, carried..., captures...) -> (cond, carried..., scans...).\n\n"
        "Runs while the turn is below trip (a negative trip is no limit) and cond holds; outputs are the carried finals, then the\n"
        "scan elements stacked on a new axis 0 of extent scan_extent. The attr trip is the known number of turns, or None: then the\n"
        "operand decides. counter is a symbol: the turn, inside the body. always says that cond is true\n"
        "throughout. shape_symbols: (carried index, axis, inner symbol, outer symbol) of carried extents that change; inner is the\n"
        "extent at the start of a turn, outer that after the loop. scan_symbols: (scan index, axis, symbol) of element extents that\n"
        "the body alone knows; all turns must give the same.",
        operands=(2, None),
        attrs={
            "carried": "int",
            "trip": "dim or none",
            "counter": "str",
            "always": "bool",
            "scans": "int",
            "scan_extent": "dim or none",
            "shape_symbols": "tuples",
            "scan_symbols": "tuples",
        },
        defaults={"shape_symbols": (), "scan_extent": None, "scan_symbols": ()},
        regions=1,
        infer=_infer_loop,
        evaluate=_evaluate_loop,
    )
)
