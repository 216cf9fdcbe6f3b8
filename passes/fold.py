"""Constant folding: nodes whose operands are known are evaluated now.

Runs after canonicalisation, together with its rules, because each exposes work for the other. Evaluation is the ops' own
NumPy meaning, so a folded value is what the run would have computed.

    %w: f32[8, 4] = constant {...}                           %t: f32[4, 8] = constant {...}
    %t: f32[4, 8] = transpose(%w) {perm = (1, 0)}    -->

Folding must not blow up memory or the artifact: a node is folded when its results are small, or not much larger than the
operands that it makes unnecessary (dequantised int8 weights are four times as large). A broadcast stays a broadcast, but for the
weights of a convolution or a matrix product: those are packed, as all others are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tcompile.errors import ExecutionError
from tcompile.ir import dims
from tcompile.ir.dims import DimError
from tcompile.ir.graph import Graph, Node
from tcompile.ir.ops import evaluate
from tcompile.ir.spill import release
from tcompile.passes.canonicalise import canonical
from tcompile.passes.rewrite import Context, Patch, Rule, patch, rule

KEPT = ("constant", "broadcast", "fused", "if", "loop", "bind_dim", "dim")


@dataclass(frozen=True)
class FoldConstants:
    """The pass. Results up to ``limit`` bytes fold, and those up to ``growth`` times the operands' bytes."""

    name: str = "fold-constants"
    limit: int = 1 << 16
    growth: float = 4.0
    extra: tuple[Rule, ...] = ()  # rules that work on what folding makes visible

    def apply(self, graph: Graph) -> Graph:
        """The graph with known values computed."""
        return canonical(graph, (rule("*")(lambda node, context: self._fold(node, context)), known_dim, whole_weights, *self.extra))

    def _fold(self, node: Node, context: Context) -> Patch | None:
        arrays = self._operands(node, context)
        if arrays is None:
            return None
        try:
            results = evaluate(node.op, arrays, node.attrs)
        except (ExecutionError, DimError):
            return None  # it stops, or its shape depends on the run: the run will say so
        b = context.build(node)
        found = patch("constant operands", b, *(b.constant(np.asarray(result, order="C")) for result in results))
        for array in arrays:
            release(array)
        return found

    def _operands(self, node: Node, context: Context) -> list[np.ndarray] | None:
        """The operands' arrays, where all are known and folding pays."""
        if node.op in KEPT or not all(value.type.is_static for value in node.outputs):
            return None
        arrays = [context.constant(value) for value in node.inputs]
        if any(array is None for array in arrays):
            return None
        wanted = sum(math.prod(value.shape) * value.dtype.bytes for value in node.outputs)
        given = sum(array.nbytes for array in arrays)
        return arrays if wanted <= max(self.limit, self.growth * given) else None


@rule("dim")
def known_dim(node: Node, context: Context) -> Patch | None:
    # expressions that ranges prove constant are constants
    exprs = tuple(dims.simplify(expr, context.ranges) for expr in node.attrs["exprs"])
    b = context.build(node)
    if all(isinstance(expr, int) for expr in exprs):
        return patch("known dimensions", b, b.constant(np.array(exprs, np.int64).reshape(node.attrs["shape"])))
    if exprs == node.attrs["exprs"]:
        return None
    return patch("simpler dimensions", b, b.emit("dim", exprs=exprs, shape=node.attrs["shape"]))


@rule("conv", "dot_general")
def whole_weights(node: Node, context: Context) -> Patch | None:
    # conv(x, broadcast(c)) == conv(x, w), where w has every element of its own
    x, weights = node.inputs
    producer = context.producer(weights)
    if producer is None or producer.op != "broadcast" or node.attrs.get("batch", ((), ())) != ((), ()):
        return None
    array = context.constant(weights)
    if array is None or context.constant(x) is not None:
        return None
    b = context.build(node)
    return patch("weights that repeat a number", b, b.emit(node.op, x, b.constant(np.ascontiguousarray(array)), **node.attrs))
