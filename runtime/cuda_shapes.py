"""What the shapes of inputs decide: the values of entry symbols, checked against the plan's ranges and each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tcompile.errors import InputError
from tcompile.runtime.cuda_expressions import Expression
from tcompile.runtime.cuda_plan import Buffer, CudaPlan
from tcompile.runtime.pitch import Rows

Shapes = Sequence[tuple[int, ...]]
First = dict[str, tuple[Buffer, int]]  # the first input and axis that have a symbol
Ranged = tuple[str, Expression, Expression | None]


def bind_shapes(plan: CudaPlan, shapes: Shapes, rows: Rows) -> dict[str, int]:
    """The entry symbols for inputs of these shapes. ``rows``: of pitches that are longer than their tensors, by symbol number.

    Raises InputError naming the input and axis that does not fit.
    """
    buffers = [plan.buffers[number] for number in plan.inputs]
    values: dict[str, int] = {}
    first: First = {}
    for buffer, shape in zip(buffers, shapes, strict=True):
        if len(shape) != len(buffer.shape):
            raise InputError(f"input '{buffer.name}' has {len(shape)} dimensions, expected {len(buffer.shape)}")
        for axis, (text, extent) in enumerate(zip(buffer.text, shape, strict=True)):
            if isinstance(text, str) and text in plan.entry and text not in values:
                values[text], first[text] = extent, (buffer, axis)
    _bind_pitches(plan, values, rows)
    for symbol in plan.symbols[: plan.entry_symbols]:
        _check_range(plan, symbol, values, first)
    for buffer, shape in zip(buffers, shapes, strict=True):
        for axis, got in enumerate(shape):
            _check_extent(buffer, axis, got, values, first)
    return values


def _bind_pitches(plan: CudaPlan, values: dict[str, int], rows: Rows) -> None:
    """What the caller's arrays have, else the longest extent of a tensor with the symbol."""
    order = [name for name, *_ in plan.symbols]
    for number in (*plan.inputs, *plan.outputs):
        buffer = plan.buffers[number]
        if buffer.pitch is not None:
            axis, name = buffer.pitch
            extent = buffer.shape[axis].value(values) if buffer.shape[axis].symbols <= values.keys() else 0
            values[name] = max(values.get(name, 0), rows.get(order.index(name), extent))


def _check_range(plan: CudaPlan, symbol: Ranged, values: Mapping[str, int], first: First) -> None:
    name, low, high = symbol
    if name not in values:
        raise InputError(f"no input tells the dimension {name}")
    value = values[name]
    if low.value(values) <= value and (high is None or value <= high.value(values)):
        return
    shown_low, shown_high = plan.bounds[name]
    if name not in first:
        raise InputError(
            f"a pitch of {value} rows, where at least {shown_low} is expected", hint="the arrays have fewer rows than the tensors in them"
        )
    buffer, axis = first[name]
    wanted = f"{name} in {shown_low}..{'' if shown_high is None else shown_high}"
    message = f"input '{buffer.name}' has extent {value} on axis {axis}, where {wanted} is expected"
    raise InputError(message, hint="compile the model with a wider range for this dimension")


def _check_extent(buffer: Buffer, axis: int, got: int, values: Mapping[str, int], first: First) -> None:
    expected, text = buffer.shape[axis].value(values), buffer.text[axis]
    if got == expected and got >= 0:
        return
    head = f"input '{buffer.name}' has extent {got} on axis {axis}, expected"
    if isinstance(text, int):
        raise InputError(f"{head} {expected}", hint="the model was compiled for this extent; compile with a range to let it vary")
    source = f" as in input '{first[text][0].name}'" if text in first else ""
    raise InputError(f"{head} {text} = {expected}{source}", hint="dimensions of one name must agree")


def output_shapes(plan: CudaPlan, values: Mapping[str, int]) -> list[tuple[int, ...]]:
    """The outputs' shapes; -1 for an extent that ``values`` do not decide. Raises InputError for a negative one."""
    found = []
    for number, name in zip(plan.outputs, plan.output_names, strict=True):
        shape = tuple(extent.value(values) if extent.symbols <= values.keys() else -1 for extent in plan.buffers[number].shape)
        if plan.buffers[number].role != "growing" and min(shape, default=0) < 0:
            raise InputError(f"output '{name}' has no valid size for these inputs")
        found.append(shape)
    return found
