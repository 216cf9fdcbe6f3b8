"""ONNX RNN, GRU and LSTM: per direction one product of the whole input with W, then a ``loop`` over time.

What a turn computes is a function of its gates; the rest (directions, layouts, lengths, activations) is the same for
all three. A batch entry that has ended keeps its state and gives zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tcompile.ir import dtypes
from tcompile.ir.dims import DimLike
from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_loops import counted_loop
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term, full, join, number

Activation = Callable[[Term], Term]
Activations = Sequence[Activation]


@dataclass(frozen=True)
class Direction:
    """The weights of one direction, in ONNX's shapes without the direction axis; ``bias`` is [2 * gates * hidden]."""

    w: Term
    r: Term
    bias: Term | None
    peepholes: Term | None
    states: list[Term]  # initial H [batch, hidden] (and C)
    activations: list[Activation]
    reverse: bool


@dataclass(frozen=True)
class Cell:
    """One kind of network: ``step(direction, projected, recurrent weights, states, peepholes) -> new states``."""

    gates: int
    states: int
    defaults: tuple[str, ...]
    step: Callable[..., list[Term]]
    late_bias: tuple[int, ...] = ()  # gates whose recurrence bias must not join the projection
    clipped: int = 3  # activations of a direction whose operand ``clip`` bounds: those of gates


@onnx_op("RNN", since=1)
def rnn(ctx: OpContext) -> list[Value | None]:
    """RNN (opset 1, 7, 14, 22)."""
    return _recurrent(ctx, Cell(1, 1, ("Tanh",), _rnn_step))


@onnx_op("GRU", since=1)
def gru(ctx: OpContext) -> list[Value | None]:
    """GRU (opset 1, 3, 7, 14, 22); gates z, r, h."""
    late = bool(ctx.attr("linear_before_reset", 0))
    return _recurrent(ctx, Cell(3, 1, ("Sigmoid", "Tanh"), _gru_late_step if late else _gru_step, (2,) if late else ()))


@onnx_op("LSTM", since=1)
def lstm(ctx: OpContext) -> list[Value | None]:
    """LSTM (opset 1, 7, 14, 22); gates i, o, f, c; peepholes i, o, f."""
    step = _coupled_lstm_step if ctx.attr("input_forget", 0) else _lstm_step
    return _recurrent(ctx, Cell(4, 2, ("Sigmoid", "Tanh", "Tanh"), step, clipped=2))


# Steps ----------------------------------------------------------------------------------------------------------


def _times(h: Term, r: Term) -> Term:
    """h [batch, hidden] with r [rows, hidden] -> [batch, rows]."""
    return h.dot(r, contract=((1,), (1,)))


def _gate(x: Term, k: int, hidden: DimLike) -> Term:
    return x.part(1, k * hidden, hidden)


def _rnn_step(f: Activations, x: Term, r: Term, bias: Term | None, peepholes: Term | None, states: list[Term]) -> list[Term]:
    return [f[0](x + _times(states[0], r))]


def _gru_step(f: Activations, x: Term, r: Term, bias: Term | None, peepholes: Term | None, states: list[Term]) -> list[Term]:
    """h' = (1 - z) g(x_h + (r * h) R_h) + z h"""
    h, hidden = states[0], states[0].shape[1]
    both = x.part(1, 0, 2 * hidden) + _times(h, r.part(0, 0, 2 * hidden))
    z, reset = f[0](_gate(both, 0, hidden)), f[0](_gate(both, 1, hidden))
    candidate = f[1](_gate(x, 2, hidden) + _times(reset * h, r.part(0, 2 * hidden, hidden)))
    return [(1 - z) * candidate + z * h]


def _gru_late_step(f: Activations, x: Term, r: Term, bias: Term | None, peepholes: Term | None, states: list[Term]) -> list[Term]:
    """linear_before_reset: h' = (1 - z) g(x_h + r * (h R_h + b_h)) + z h"""
    h, hidden = states[0], states[0].shape[1]
    again = _times(h, r)
    z = f[0](_gate(x, 0, hidden) + _gate(again, 0, hidden))
    reset = f[0](_gate(x, 1, hidden) + _gate(again, 1, hidden))
    inner = _gate(again, 2, hidden)
    inner = inner if bias is None else inner + bias.part(0, 2 * hidden, hidden)
    return [(1 - z) * f[1](_gate(x, 2, hidden) + reset * inner) + z * h]


def _lstm_step(f: Activations, x: Term, r: Term, bias: Term | None, peepholes: Term | None, states: list[Term]) -> list[Term]:
    return _lstm(f, x, r, peepholes, states, coupled=False)


def _coupled_lstm_step(f: Activations, x: Term, r: Term, bias: Term | None, peepholes: Term | None, states: list[Term]) -> list[Term]:
    return _lstm(f, x, r, peepholes, states, coupled=True)


def _lstm(f: Activations, x: Term, r: Term, peepholes: Term | None, states: list[Term], *, coupled: bool) -> list[Term]:
    """c' = forget * c + input * g(...); h' = output * h(c'). With ``coupled`` gates, forget is 1 - input."""
    h, c = states
    hidden = h.shape[1]
    gates = x + _times(h, r)

    def gate(k: int, cell: Term) -> Term:
        part = _gate(gates, k, hidden)
        return part if peepholes is None else part + peepholes.part(0, k * hidden, hidden) * cell

    entering = f[0](gate(0, c))
    forget = 1 - entering if coupled else f[0](gate(2, c))
    cell = forget * c + entering * f[1](_gate(gates, 3, hidden))
    return [f[0](gate(1, cell)) * f[2](cell), cell]


# Directions and time --------------------------------------------------------------------------------------------


def _recurrent(ctx: OpContext, cell: Cell) -> list[Value | None]:
    """All directions of a network: outputs Y, Y_h (and Y_c)."""
    b = ctx.builder
    batch_first = bool(ctx.attr("layout", 0))
    x = Term(b, ctx.input(0))
    x = x.transpose(1, 0, 2) if batch_first else x
    lengths = _lengths(ctx, x.shape[0])
    runs = [_run(x, direction, cell, lengths) for direction in _directions(ctx, cell, x, batch_first)]
    y = join([stack.expand(1) for stack, _ in runs], 1)  # [time, directions, batch, hidden]
    outputs = [y.transpose(2, 0, 1, 3) if batch_first else y]
    for k in range(cell.states):
        final = join([states[k].expand(0) for _, states in runs], 0)
        outputs.append(final.transpose(1, 0, 2) if batch_first else final)
    return [term.value if ctx.wants(k) else None for k, term in enumerate(outputs)][: ctx.output_count]


def _lengths(ctx: OpContext, time: DimLike) -> Term | None:
    """sequence_lens [batch] as i64; None where every sequence is known to be whole."""
    if not ctx.has(4):
        return None
    table = ctx.constant(4)
    if table is not None and isinstance(time, int) and (table >= time).all():
        return None
    return Term(ctx.builder, ctx.input(4)).convert(dtypes.I64)


def _directions(ctx: OpContext, cell: Cell, x: Term, batch_first: bool) -> list[Direction]:
    b = ctx.builder
    kind = ctx.attr("direction", "forward")
    w, r = Term(b, ctx.input(1)), Term(b, ctx.input(2))
    hidden, count = r.shape[2], 2 if kind == "bidirectional" else 1
    if w.shape[0] != count:
        ctx.invalid(f"direction {kind} needs {count} sets of weights, and W holds {w.shape[0]}")
    activations = _activations(ctx, cell, count)
    size = len(cell.defaults)
    found = []
    for d in range(count):
        bias, peepholes = (None if not ctx.has(k) else Term(b, ctx.input(k)).at(0, d) for k in (3, 7))
        states = [_initial(ctx, 5 + k, d, x.shape[1], hidden, batch_first) for k in range(cell.states)]
        own = activations[d * size : (d + 1) * size]
        reverse = kind == "reverse" or d == 1
        found.append(Direction(w.at(0, d), r.at(0, d), bias, peepholes if cell.states == 2 else None, states, own, reverse))
    return found


def _initial(ctx: OpContext, operand: int, d: int, batch: DimLike, hidden: DimLike, batch_first: bool) -> Term:
    if not ctx.has(operand):
        return full(ctx.builder, (batch, hidden), 0, ctx.input(0).dtype)
    return Term(ctx.builder, ctx.input(operand)).at(1 if batch_first else 0, d).reshape(batch, hidden)


def _run(x: Term, direction: Direction, cell: Cell, lengths: Term | None) -> tuple[Term, list[Term]]:
    """Y [time, batch, hidden] and the final states of one direction."""
    time = x.shape[0]
    projected, late = _project(x, direction, cell)

    def turn(counter: DimLike, states: list[Term], captures: list[Term | None]) -> tuple[list[Term], list[Term]]:
        sequence, r, bias, peepholes, ends = captures
        at = time - 1 - counter if direction.reverse else counter
        now = cell.step(direction.activations, sequence.at(0, at), r, bias, peepholes, states)
        shown = now[0]
        if ends is not None:
            alive = (number(ends.b, at, dtypes.I64) < ends).expand(1)
            shown = alive.where(now[0], 0)
            now = [alive.where(new, old) for new, old in zip(now, states, strict=True)]
        return now, [shown]

    states, (stack,) = counted_loop(x.b, time, direction.states, [projected, direction.r, late, direction.peepholes, lengths], turn)
    return stack.flip(0) if direction.reverse else stack, states


def _project(x: Term, direction: Direction, cell: Cell) -> tuple[Term, Term | None]:
    """x W + W's bias + R's bias [time, batch, gates * hidden]; R's bias apart where a gate needs it later."""
    y = x.dot(direction.w, contract=((2,), (1,)))
    if direction.bias is None:
        return y, None
    rows = direction.w.shape[0]
    first, second = direction.bias.part(0, 0, rows), direction.bias.part(0, rows, rows)
    if not cell.late_bias:
        return y + (first + second), None
    early = rows - rows // cell.gates * len(cell.late_bias)
    kept = second.part(0, 0, early)
    return y + (first + join([kept, full(x.b, (rows - early,), 0, x.dtype)], 0)), second


# Activations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Formula:
    """An activation with its default parameters; None for one that takes none."""

    make: Callable[[float, float], Activation]
    alpha: float | None = None
    beta: float | None = None


def _select(x: Term, low: Term) -> Term:
    """x where it is not below zero, else ``low``."""
    return (x >= 0).where(x, low)


_FORMULAS = {
    "relu": _Formula(lambda a, b: lambda x: x.map("max", 0)),
    "tanh": _Formula(lambda a, b: lambda x: x.map("tanh")),
    "sigmoid": _Formula(lambda a, b: lambda x: x.map("sigmoid")),
    "affine": _Formula(lambda a, b: lambda x: x * a + b, 1.0, 0.0),
    "leakyrelu": _Formula(lambda a, b: lambda x: _select(x, x * a), 0.01),
    "thresholdedrelu": _Formula(lambda a, b: lambda x: (x > a).where(x, 0), 1.0),
    "scaledtanh": _Formula(lambda a, b: lambda x: (x * b).map("tanh") * a, 1.0, 1.0),
    "hardsigmoid": _Formula(lambda a, b: lambda x: (x * a + b).map("max", 0).map("min", 1), 0.2, 0.5),
    "elu": _Formula(lambda a, b: lambda x: _select(x, x.map("expm1") * a), 1.0),
    "softsign": _Formula(lambda a, b: lambda x: x / (x.map("abs") + 1)),
    "softplus": _Formula(lambda a, b: lambda x: x.map("max", 0) + (-x.map("abs")).map("exp").map("log1p")),
}


def _activations(ctx: OpContext, cell: Cell, directions: int) -> list[Activation]:
    """The activations of all directions; alphas and betas go in order to those that take one."""
    defaults = cell.defaults * directions
    names = ctx.attr("activations", None) or list(defaults)
    alphas, betas = list(ctx.attr("activation_alpha", None) or ()), list(ctx.attr("activation_beta", None) or ())
    if len(names) != len(defaults):
        ctx.invalid(f"{len(names)} activations were given and {len(defaults)} are needed")
    clip = ctx.attr("clip", None)
    clips = [clip if k % len(cell.defaults) < cell.clipped else None for k in range(len(names))]
    return [_activation(ctx, name, alphas, betas, bound) for name, bound in zip(names, clips, strict=True)]


def _activation(ctx: OpContext, name: str, alphas: list[float], betas: list[float], clip: float | None) -> Activation:
    formula = _FORMULAS.get(name.lower())
    if formula is None:
        ctx.fail(f"the activation {name} is not known", hint=f"known are {', '.join(_FORMULAS)}")
    alpha = alphas.pop(0) if formula.alpha is not None and alphas else formula.alpha
    beta = betas.pop(0) if formula.beta is not None and betas else formula.beta
    apply = formula.make(alpha, beta)
    return apply if clip is None or clip <= 0 else lambda x: apply(x.map("max", -clip).map("min", clip))
