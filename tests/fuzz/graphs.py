"""Draws a graph, and compares what three implementations make of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper

import tcompile
from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_import import import_model
from tcompile.passes.canonicalise import Canonicalise
from tests.fuzz import control, elementwise, shapes, sums
from tests.fuzz.draw import GraphDraw, Reject, Tracked, small_values, stays_exact
from tests.fuzz.registry import OPERATIONS

try:
    import onnxruntime
except ImportError:  # a peer where it is installed
    onnxruntime = None

assert control and elementwise and shapes and sums  # imported to register their operations

KINDS = [TensorProto.FLOAT] * 6 + [TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.INT32]
KINDS += [TensorProto.UINT8, TensorProto.INT8, TensorProto.BOOL]
OTHER_EXTENTS = (0, 1, 1, 2, 3, 6, 11, 13, 31, 64)
RUNS = 3  # at other sizes

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Drawn:
    """A model, its values to compare, and the inputs of runs: at the sizes it was drawn for, and at others."""

    model: onnx.ModelProto
    outputs: tuple[Tracked, ...]
    first: Arrays
    others: tuple[Arrays, ...]
    empty: bool  # whether some value has no elements whatever the sizes: what makes it is not compiled, nor checked

    def __repr__(self) -> str:
        return onnx.printer.to_text(self.model)


def draw_graph(data: st.DataObject, most: int = 10) -> Drawn:
    """One to three inputs and up to ``most`` operations."""
    g = GraphDraw(data)
    for _ in range(g.integer(1, 3)):
        _attempt(g, lambda g: g.input(g.pick(KINDS), g.pick((0, 1, 2, 2, 3, 3, 4, 4))))
    for _ in range(g.integer(1, most)):
        _attempt(g, g.pick(OPERATIONS))
    if not g.nodes:
        _attempt(g, lambda g: g.input(TensorProto.FLOAT, 2))
        g.emit("Identity", (g.values[-1],), g.values[-1])
    others = [{name: g.pick(OTHER_EXTENTS) for name in g.sizes} for _ in range(RUNS if g.sizes else 0)]
    seed = g.integer(0, 1000)
    feeds = [_feeds(g, sizes, seed + k) for k, sizes in enumerate((g.sizes, *others))]
    return Drawn(g.model(), tuple(g.outputs()), feeds[0], tuple(feeds[1:]), any(value.size == 0 for value in g.values))


def _attempt(g: GraphDraw, operation) -> None:
    """An operation; where it is rejected, the graph is as before."""
    before = len(g.nodes), len(g.inputs), len(g.initializers), len(g.values)
    used = set(g.used)
    try:
        operation(g)
    except Reject:
        for items, length in zip((g.nodes, g.inputs, g.initializers, g.values), before, strict=True):
            del items[length:]
        g.used = used


def _feeds(g: GraphDraw, sizes: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        value.name: small_values(rng, value.kind, [extent if isinstance(extent, int) else sizes[extent] for extent in declared])
        for value, declared in g.inputs
    }


def check(drawn: Drawn, threads: int = 1, *, bounds: bool = False) -> None:
    """Raises AssertionError where compiled code, the interpreter or ONNX Runtime disagree by more than rounding explains.

    ``bounds``: of a checked build, whose runs stop at an access outside of a buffer.
    """
    graph, exe = import_model(drawn.model), tcompile.compile(drawn.model, threads=threads, bounds=bounds)
    exact = interpret(graph, drawn.first, float64=True)
    for who, results in (("interpreter", interpret(graph, drawn.first)), ("compiled", exe.run(drawn.first)), ("peer", peer(drawn))):
        for value in drawn.outputs if results is not None else ():
            if who == "peer" and results[value.name].size == value.size == 0:
                continue  # of scans without turns it knows the rank only
            assert results[value.name].shape == value.shape, f"{who}: {value.name} is {results[value.name].shape}, expected {value.shape}"
            assert_near(who, value, results[value.name], exact[value.name])
    for inputs in drawn.others:
        _check_other_sizes(drawn, graph, exe, inputs)


def _check_other_sizes(drawn: Drawn, graph, exe, inputs: Arrays) -> None:
    """At other sizes constants may not fit any more: then both stop, unless what stops the interpreter is of no use."""
    try:
        expected = interpret(graph, inputs, float64=True)
    except tcompile.Error:
        try:
            exe.run(inputs)
        except tcompile.Error as stop:
            assert "a bug of the compiler" not in str(stop), stop
            return
        if drawn.empty:
            return
        expected = interpret(Canonicalise().apply(graph), inputs, float64=True)
    got = exe.run(inputs)
    growth = _growth(drawn.first, inputs)
    for value in drawn.outputs:
        assert got[value.name].shape == expected[value.name].shape
        if stays_exact(value, growth):
            assert_near("compiled, other sizes", value, got[value.name], expected[value.name])


def _growth(first: Arrays, inputs: Arrays) -> float:
    """How many times longer the axes are, all together: as many times may sums over them be larger."""
    axes = {(a, b) for name, x in first.items() for a, b in zip(x.shape, inputs[name].shape, strict=True)}
    return math.prod(max(1.0, b / max(a, 1)) for a, b in axes)


def assert_near(who: str, value: Tracked, got: np.ndarray, exact: np.ndarray) -> None:
    """Equal where the value is exact, else within four times the noise that is expected."""
    assert got.dtype == helper.tensor_dtype_to_np_dtype(value.kind), f"{who}: {value.name} has dtype {got.dtype}"
    mine, theirs = got.astype(np.float64), exact.astype(np.float64)
    limit = 4 * value.noise
    with np.errstate(invalid="ignore"):  # the largest of no elements is -inf
        off = np.where(mine == theirs, 0.0, np.abs(mine - theirs))
    worst = float(off.max(initial=0.0))
    assert worst <= limit, f"{who}: {value.name} is off by {worst:.3g}, more than {limit:.3g}: {value}"


def peer(drawn: Drawn) -> dict[str, np.ndarray] | None:
    """What ONNX Runtime computes; None where it is not there or refuses the model."""
    if onnxruntime is None:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(drawn.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # its exceptions have no common base: a type it has no kernel for
        return None
    try:
        results = session.run(None, dict(drawn.first))
    except Exception as error:
        if "is not supported" in str(error) or any(node.op_type == "Loop" for node in drawn.model.graph.node):
            return None  # a type it has no kernel for; of scans without turns it does not know the extents: what follows may not fit
        raise
    return dict(zip([output.name for output in session.get_outputs()], results, strict=True))
