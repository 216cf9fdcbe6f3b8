"""ONNX Gradient: reverse-mode differentiation over the core ops that the importer has made so far.

Each rule gives the gradients of a node's operands from that of its result; a constant has none. Where a function has
no derivative, the rules take what training frameworks take: 0 for abs at 0, all of it to the first of two equal extremes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from tcompile.errors import UnsupportedError
from tcompile.ir import dims
from tcompile.ir.graph import Node, Value
from tcompile.ir.onnx_builder import ImportBuilder
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term, full

# rule(node, operands, result, gradient of the result) -> gradients of the operands, None for one that has none
Rule = Callable[[Node, Sequence[Term], Term, Term], Sequence[Term | None]]


@onnx_op("Gradient", domain="ai.onnx.preview.training")
def gradient(ctx: OpContext) -> list[Value]:
    """Gradient (ai.onnx.preview.training 1) of the sum of ``y``'s elements; other tensors may be fed than those it names."""
    names = [*ctx.attr("xs"), *(ctx.attr("zs", None) or ())]
    named = [_tensor(ctx, name) for name in names]
    y, fed = _tensor(ctx, ctx.attr("y")), [ctx.input(k) for k in range(len(names))]
    if fed != named:
        y = _evaluated_with(ctx.builder, y, dict(zip(named, fed, strict=True)))
    found = _gradients(ctx, y, fed)
    return [found[x] if x in found else full(ctx.builder, x.shape, 0, x.dtype).value for x in fed[: len(ctx.attr("xs"))]]


def _tensor(ctx: OpContext, name: str) -> Value:
    value = ctx.scope.lookup(name)
    if not isinstance(value, Value) or not value.dtype.is_float:
        ctx.fail(f"{name} is no tensor of floats")
    return value


def _evaluated_with(b: ImportBuilder, y: Value, fed: Mapping[Value, Value]) -> Value:
    """y computed anew from other values."""
    table = dict(fed)
    for node in list(b.nodes):
        if any(value in table for value in node.inputs) and not any(value in fed for value in node.outputs):
            outputs = b.emit_all(node.op, [table.get(value, value) for value in node.inputs], dict(node.attrs), node.regions)
            table.update(zip(node.outputs, outputs, strict=True))
    return table.get(y, y)


def _gradients(ctx: OpContext, y: Value, xs: Iterable[Value]) -> dict[Value, Value]:
    """The gradient of y with respect to each value on the way from xs to it."""
    b, path = ctx.builder, set(xs)
    nodes = []
    for node in b.nodes:
        if any(value in path for value in node.inputs):
            path.update(node.outputs)
            nodes.append(node)
    found = {y: full(b, y.shape, 1, y.dtype)} if y in path else {}
    for node in reversed(nodes):
        if any(value in found for value in node.outputs) and not set(node.outputs) & set(xs):
            _step(b, node, path, found)
    return {value: term.value for value, term in found.items()}


def _step(b: ImportBuilder, node: Node, path: set[Value], found: dict[Value, Term]) -> None:
    """Adds what a node hands on to the gradients of its operands."""
    rule = _FUNCTIONS.get(node.attrs["fn"]) if node.op == "map" else _RULES.get(node.op)
    if rule is None:
        what = f"{node.op} {node.attrs.get('fn', '')}".strip()
        raise UnsupportedError(f"the gradient of {what} ({', '.join(node.source)}) is not known")
    operands = [Term(b, value) for value in node.inputs]
    for value, part in zip(node.inputs, rule(node, operands, Term(b, node.output), found[node.output]), strict=True):
        if part is not None and value in path and value.dtype.is_float:
            found[value] = found[value] + part if value in found else part


# Elementwise functions ----------------------------------------------------------------------------------------


def _unary(derivative: Callable[[Term, Term], Term]) -> Rule:
    """A function of one operand by its derivative in terms of operand and result."""
    return lambda node, operands, result, g: [g * derivative(operands[0], result)]


def _extreme(node: Node, operands: Sequence[Term], result: Term, g: Term) -> list[Term]:
    first = operands[0].equals(result)
    return [first.where(g, 0.0), first.where(g.lift(0.0), g)]


def _power(node: Node, operands: Sequence[Term], result: Term, g: Term) -> list[Term]:
    # d a^b = b a^(b-1) da + a^b log(a) db
    a, b = operands
    logarithm = (a > 0).where(a, 1.0).map("log")
    return [g * b * a.map("pow", b - 1.0), g * result * logarithm]


_FUNCTIONS: dict[str, Rule] = {
    "add": lambda node, operands, result, g: [g, g],
    "sub": lambda node, operands, result, g: [g, -g],
    "mul": lambda node, operands, result, g: [g * operands[1], g * operands[0]],
    "div": lambda node, operands, result, g: [g / operands[1], -g * result / operands[1]],
    "fma": lambda node, operands, result, g: [g * operands[1], g * operands[0], g],
    "where": lambda node, operands, result, g: [None, operands[0].where(g, 0.0), operands[0].where(g.lift(0.0), g)],
    "max": _extreme,
    "min": _extreme,
    "pow": _power,
    "neg": lambda node, operands, result, g: [-g],
    "abs": _unary(lambda x, y: x.map("sign")),
    "sqrt": _unary(lambda x, y: 0.5 / y),
    "rsqrt": _unary(lambda x, y: -0.5 * y * y * y),
    "recip": _unary(lambda x, y: -y * y),
    "exp": _unary(lambda x, y: y),
    "expm1": _unary(lambda x, y: y + 1.0),
    "log": _unary(lambda x, y: 1.0 / x),
    "log1p": _unary(lambda x, y: 1.0 / (x + 1.0)),
    "sin": _unary(lambda x, y: x.map("cos")),
    "cos": _unary(lambda x, y: -x.map("sin")),
    "tan": _unary(lambda x, y: y * y + 1.0),
    "asin": _unary(lambda x, y: (1.0 - x * x).map("rsqrt")),
    "acos": _unary(lambda x, y: -(1.0 - x * x).map("rsqrt")),
    "atan": _unary(lambda x, y: 1.0 / (x * x + 1.0)),
    "sinh": _unary(lambda x, y: x.map("cosh")),
    "cosh": _unary(lambda x, y: x.map("sinh")),
    "tanh": _unary(lambda x, y: 1.0 - y * y),
    "asinh": _unary(lambda x, y: (x * x + 1.0).map("rsqrt")),
    "acosh": _unary(lambda x, y: (x * x - 1.0).map("rsqrt")),
    "atanh": _unary(lambda x, y: 1.0 / (1.0 - x * x)),
    "sigmoid": _unary(lambda x, y: y * (1.0 - y)),
    "erf": _unary(lambda x, y: (x * x).map("neg").map("exp") * (2 / math.sqrt(math.pi))),
    **dict.fromkeys(("sign", "floor", "ceil", "round", "trunc"), lambda node, operands, result, g: [None]),
}


# Movement, sums and products ----------------------------------------------------------------------------------


def _broadcast(node: Node, operands: Sequence[Term], result: Term, g: Term) -> list[Term]:
    """The sum over all places that an element went to."""
    (x,), kept = operands, node.attrs["axes"]
    new = [axis for axis in range(result.rank) if axis not in kept]
    total = g.sum(*new) if new else g
    spread = [k for k, axis in enumerate(kept) if x.shape[k] == 1 and result.shape[axis] != 1]
    unproved = [k for k, axis in enumerate(kept) if x.shape[k] not in (1, result.shape[axis])]
    if unproved:
        raise UnsupportedError("the gradient of a broadcast whose extents only the run knows is not known")
    return [total.sum(*spread, keepdims=True) if spread else total]


def _transpose(node: Node, operands: Sequence[Term], result: Term, g: Term) -> list[Term]:
    perm = node.attrs["perm"]
    return [g.transpose(*(perm.index(axis) for axis in range(len(perm))))]


def _slice(node: Node, operands: Sequence[Term], result: Term, g: Term) -> list[Term]:
    x, start, step = operands[0], node.attrs["start"], node.attrs["step"]
    if any(one != 1 for one in step):
        raise UnsupportedError("the gradient of a slice with steps is not known")
    high = tuple(extent - first - size for extent, first, size in zip(x.shape, start, g.shape, strict=True))
    zero = x.b.constant(0, x.dtype)
    return [Term(x.b, x.b.emit("pad", g.value, zero, low=tuple(start), high=high, mode="constant"))]


def _concat(node: Node, operands: Sequence[Term], result: Term, g: Term) -> list[Term]:
    axis, start, parts = node.attrs["axis"], 0, []
    for operand in operands:
        parts.append(g.part(axis, start, operand.shape[axis]))
        start = start + operand.shape[axis]
    return parts


def _pad(node: Node, operands: Sequence[Term], result: Term, g: Term) -> list[Term | None]:
    if node.attrs["mode"] != "constant":
        raise UnsupportedError(f"the gradient of a pad of mode {node.attrs['mode']} is not known")
    for axis, (low, extent) in enumerate(zip(node.attrs["low"], operands[0].shape, strict=True)):
        g = g.part(axis, low, extent)
    return [g, *[None] * (len(operands) - 1)]


def _gather(node: Node, operands: Sequence[Term], result: Term, g: Term) -> list[Term | None]:
    """Adds each row of the gradient to the row that it came from."""
    x, indices = operands
    axis = node.attrs["axis"]
    count = dims.product(indices.shape)
    flat = g.reshape(*x.shape[:axis], count, *x.shape[axis + 1 :])
    order = [axis, *(k for k in range(x.rank) if k != axis)]
    zeros = full(x.b, [x.shape[k] for k in order], 0, x.dtype)
    rows, moved = indices.reshape(count, 1), flat.transpose(*order)
    total = Term(x.b, x.b.emit("scatter_nd", zeros.value, rows.value, moved.value, combiner="add"))
    return [total.transpose(*(order.index(k) for k in range(x.rank))), None]


def _reduce(node: Node, operands: Sequence[Term], result: Term, g: Term) -> list[Term]:
    x, axes, fn = operands[0], node.attrs["axes"], node.attrs["fn"]
    kept = [1 if axis in axes else extent for axis, extent in enumerate(x.shape)]
    spread = g.reshape(*kept).broadcast(*x.shape)
    if fn == "add":
        return [spread]
    if fn not in ("max", "min"):
        raise UnsupportedError(f"the gradient of a reduction by {fn} is not known")
    ours = x.equals(result.reshape(*kept).broadcast(*x.shape)).convert(x.dtype)
    return [spread * ours / ours.reduce("add", axes, keepdims=True)]


def _dot(node: Node, operands: Sequence[Term], result: Term, g: Term) -> list[Term]:
    """Result axes: batch, free axes of a, free axes of b. Each gradient is the product of g with the other operand."""
    a, b = operands
    batch, contract = node.attrs["batch"], node.attrs["contract"]
    free = [[axis for axis in range(x.rank) if axis not in (*batch[side], *contract[side])] for side, x in enumerate(operands)]
    count = len(batch[0])
    ours = [range(count, count + len(free[0])), range(count + len(free[0]), g.rank)]
    parts = []
    for side, other in ((0, b), (1, a)):
        product = g.dot(other, batch=(range(count), batch[1 - side]), contract=(ours[1 - side], free[1 - side]))
        # axes of the product: batch, this operand's free axes, the other operand's contracted axes in their order
        pairs = sorted(zip(contract[1 - side], contract[side], strict=True))
        order = [*batch[side], *free[side], *(mine for _, mine in pairs)]
        parts.append(product.transpose(*(order.index(axis) for axis in range(len(order)))))
    return parts


_RULES: dict[str, Rule] = {
    "convert": lambda node, operands, result, g: [g.convert(operands[0].dtype)],
    "broadcast": _broadcast,
    "reshape": lambda node, operands, result, g: [g.reshape(*operands[0].shape)],
    "transpose": _transpose,
    "slice": _slice,
    "concat": _concat,
    "pad": _pad,
    "gather": _gather,
    "reduce": _reduce,
    "dot_general": _dot,
}
