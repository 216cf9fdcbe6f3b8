"""Reductions, and rows: several reductions over the same axes with elementwise work before, between and after.

    reduce, arg_reduce, fused[rows]

    for each row (the kept axes):
        acc = identity; for each element of the row: acc = acc (+) x         one stage per reduction
        for each element of the row: out = f(x, acc, ...)                     outputs

A row value that later stages need again is recomputed where it is cheap and kept in a row buffer where it is
not (exp). The order of the sums is the schedule's to fix (``codegen/schedule.py``), independent of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tcompile.codegen.access import ravel, reshaped
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.inline import Bound
from tcompile.codegen.scalar import accumulator, cast, compare, const, identity, index_value, op, rounded, select
from tcompile.errors import InvalidModelError
from tcompile.ir.dims import DimLike, Shape, nonnegative, product
from tcompile.ir.dtypes import BOOL, I64, DType
from tcompile.ir.graph import Node, Value
from tcompile.ir.loops import Const, Expr, Load, Op, Space, Status

# Elementwise work per element from which a row value is kept instead of computed again.
_KEEP_FROM_COST = 8
_COSTS = {
    **dict.fromkeys(("exp", "log", "sin", "cos", "tanh", "sigmoid", "silu", "erf", "log1p", "expm1", "tan", "sinh", "cosh"), 12),
    **dict.fromkeys(("asin", "acos", "atan", "atan2", "asinh", "acosh", "atanh", "pow", "fmod"), 20),
    **dict.fromkeys(("div", "sqrt", "rsqrt", "recip", "mod"), 4),
}


@dataclass(frozen=True)
class Rows:
    """The iteration space: a shape whose ``axes`` are reduced."""

    shape: Shape
    axes: tuple[int, ...]

    @property
    def kept(self) -> tuple[int, ...]:
        return tuple(k for k in range(len(self.shape)) if k not in self.axes)

    @property
    def outer(self) -> Shape:
        return tuple(self.shape[k] for k in self.kept)

    @property
    def inner(self) -> Shape:
        return tuple(self.shape[k] for k in self.axes)

    def indices(self, row: Shape, element: Shape) -> Shape:
        """The indices into ``shape``."""
        merged: list[DimLike] = [0] * len(self.shape)
        for k, index in zip(self.kept, row, strict=True):
            merged[k] = index
        for k, index in zip(self.axes, element, strict=True):
            merged[k] = index
        return tuple(merged)


class RowLoops:
    """How a kernel goes through rows and the elements of a row: one after the other, for a schedule to change."""

    def __init__(self, draft: Draft, rows: Rows) -> None:
        self.draft, self.rows, self.nest = draft, rows, draft.nest

    @contextmanager
    def around(self) -> Iterator[Shape]:
        """The loops over rows; yields the row's indices."""
        with self.nest.loops(self.rows.outer, independent=True) as row:
            yield row

    @contextmanager
    def elements(self) -> Iterator[Shape]:
        """The loops over the elements of the current row, for what each stores."""
        with self.nest.loops(self.rows.inner, independent=True) as at:
            yield at

    @contextmanager
    def once(self) -> Iterator[None]:
        """What is done once for the row."""
        yield

    def fold(self, fn: str, dtype: DType, element: Callable[[Shape], Expr], keep: Callable[[Shape], None] | None = None) -> Expr:
        """Reduces one row: the loop over its elements with one accumulator. ``keep`` runs inside the loop first."""
        nest = self.nest
        wide = accumulator(dtype)
        total = nest.alloc(wide, (1,), Space.REGISTER)
        nest.store(total, 0, identity(fn, wide))
        with nest.loops(self.rows.inner, folds=True) as at:
            if keep is not None:
                keep(at)
            nest.store(total, 0, op(fn, Load(total, (0,), wide), cast(element(at), wide)))
        return nest.let(Load(total, (0,), wide))

    def keeps(self, cost: int, loads: bool) -> bool:
        """Whether a row value that takes this work, and reads operands or not, is kept rather than computed again."""
        return cost >= _KEEP_FROM_COST

    def kept(self, dtype: DType) -> RowBuffer:
        """A buffer for a value of every element of the row."""
        return RowBuffer(self, self.nest.alloc(dtype, (product(self.rows.inner),)), dtype)


class RowBuffer:
    """A value of each element of the current row."""

    def __init__(self, loops: RowLoops, name: str, dtype: DType) -> None:
        self.loops, self.name, self.dtype = loops, name, dtype

    def put(self, at: Shape, value: Expr) -> None:
        """Stores that of one element."""
        self.loops.nest.store(self.name, ravel(at, self.loops.rows.inner), value)

    def get(self, at: Shape, guard: Expr | None) -> Expr:
        """Loads that of one element."""
        return Load(self.name, (ravel(at, self.loops.rows.inner),), self.dtype, guard)


Loops = Callable[[Draft, Rows], RowLoops]


def lower_reduce(node: Node, scope: Scope, loops: Loops = RowLoops) -> list[Draft]:
    """One bare reduction."""
    (source,) = node.inputs
    draft = Draft(f"reduce_{node.attrs['fn']}", node, scope)
    rows = Rows(source.shape, tuple(node.attrs["axes"]))
    way = loops(draft, rows)
    with way.around() as row:
        total = way.fold(node.attrs["fn"], source.dtype, lambda at: draft.element(source, rows.indices(row, at)))
        with way.once():
            draft.store(node.output, row, rounded(total, node.output.dtype))
    draft.flops = source.type.size
    return [draft]


def lower_rows(node: Node, scope: Scope, loops: Loops = RowLoops) -> list[Draft]:
    """A fused region of reductions over the same axes."""
    return [_RowsLowering(node, scope, loops).draft]


class _RowsLowering:
    def __init__(self, node: Node, scope: Scope, loops: Loops) -> None:
        self.node = node
        self.region = node.regions[0]
        self.reductions = [inner for inner in self.region.nodes if inner.op == "reduce"]
        self.rows = self._row_space()
        self.draft = Draft("rows_" + "_".join(dict.fromkeys(inner.attrs["fn"] for inner in self.reductions)), node, scope)
        self.producers = self.region.producers()
        self.results = dict(zip(self.region.outputs, node.outputs, strict=True))
        self.way = loops(self.draft, self.rows)
        with self.way.around() as row:
            self.row = row
            self._stages()
        functions = sum(inner.op in ("map", "reduce") for inner in self.region.nodes)
        self.draft.flops = product(self.rows.shape) * functions

    def _row_space(self) -> Rows:
        if not self.reductions:
            raise InvalidModelError(f"fused rows ({', '.join(self.node.source)}) has no reduction")
        first = self.reductions[0]
        return Rows(first.inputs[0].shape, tuple(first.attrs["axes"]))

    def _stages(self) -> None:
        """One loop per reduction, then one for the outputs of full size, and the outputs of one element a row."""
        stages: list[Node | None] = [*self.reductions, None]
        roots = [[stage.inputs[0]] if stage else self._full_outputs() for stage in stages]
        needs = [self._needs(stage_roots) for stage_roots in roots]
        for k, stage in enumerate(stages):
            later: set[Value] = set().union(*needs[k + 1 :])
            keep = self._worth_keeping(needs[k], later, roots[k + 1 :])
            if stage is None:
                self._write_outputs()
                continue
            fn, source = stage.attrs["fn"], stage.inputs[0]
            buffers = {value: self.way.kept(value.dtype) for value in keep}
            total = self.way.fold(fn, source.dtype, lambda at, source=source: self._at(source, at), self._keeper(buffers))
            for value, buffer in buffers.items():
                self._bind_kept(value, buffer)
            self._bind_total(stage, rounded(total, stage.output.dtype))

    def _at(self, value: Value, element: Shape) -> Expr:
        """A value at an element of the current row, through a reshape where its shape is not the row space's."""
        indices = self.rows.indices(self.row, element)
        if value.shape != self.rows.shape:
            indices = reshaped(indices, self.rows.shape, value.shape, self.draft.nest.ranges)
        return self.draft.element(value, indices)

    def _keeper(self, buffers: dict[Value, RowBuffer]) -> Callable[[Shape], None]:
        def keep(at: Shape) -> None:
            for value, buffer in buffers.items():
                element = self._at(value, at)
                buffer.put(at, element)

        return keep

    def _bind_kept(self, value: Value, buffer: RowBuffer) -> None:
        def element(at: Shape, guard: Expr | None) -> Expr:
            full = at if value.shape == self.rows.shape else reshaped(at, value.shape, self.rows.shape, self.draft.nest.ranges)
            self._must_be_row([full[k] for k in self.rows.kept], self.rows.outer, value)
            return buffer.get(tuple(full[k] for k in self.rows.axes), guard)

        self.draft.bind(value, element)

    def _bind_total(self, stage: Node, total: Expr) -> None:
        def element(at: Shape, guard: Expr | None) -> Expr:
            self._must_be_row(at, stage.output.shape, stage.output)
            return total

        self.draft.bind(stage.output, element)
        output = self.results.get(stage.output)
        if output is not None:
            with self.way.once():
                self.draft.store(output, reshaped(self.row, self.rows.outer, output.shape, self.draft.nest.ranges), total)

    def _must_be_row(self, at: Iterable[DimLike], shape: Shape, value: Value) -> None:
        """Reductions may differ in axes of extent 1: rows are compared by their position."""
        at = tuple(at)
        if product(self.rows.shape) == 0:
            return  # no row is ever computed, and reshapes of nothing map indices as they like
        if at != tuple(self.row) and ravel(at, shape) != ravel(self.row, self.rows.outer):
            where = ", ".join(map(str, at))
            raise InvalidModelError(
                f"fused rows ({', '.join(self.node.source)}): {value.name} is read at ({where}), another row than its own",
                hint="the fusion pass must keep reads of reductions within their row",
            )

    def _full_outputs(self) -> list[Value]:
        size = product(self.rows.shape)
        return [value for value in self.results if value.type.size == size and not self._is_total(value)]

    def _is_total(self, value: Value) -> bool:
        return any(value is stage.output for stage in self.reductions)

    def _write_outputs(self) -> None:
        full = self._full_outputs()
        for value, output in self.results.items():
            if value not in full and not self._is_total(value):
                indices = reshaped(self.row, self.rows.outer, value.shape, self.draft.nest.ranges)
                with self.way.once():
                    self.draft.store(output, indices, self.draft.element(value, indices))
        if not full:
            return
        with self.way.elements() as at:
            elements = [(value, self._at(value, at)) for value in full]
            for value, element in elements:
                self.draft.store(self.results[value], self._indices_of(value, at), element)

    def _indices_of(self, value: Value, at: Shape) -> Shape:
        indices = self.rows.indices(self.row, at)
        return indices if value.shape == self.rows.shape else reshaped(indices, self.rows.shape, value.shape, self.draft.nest.ranges)

    # Which row values are kept ------------------------------------------------------------------------

    def _needs(self, roots: Iterable[Value]) -> set[Value]:
        """All values of full size that a stage computes."""
        found: set[Value] = set()
        todo = list(roots)
        while todo:
            value = todo.pop()
            node = self.producers.get(value)
            if value in found or (node is not None and node.op == "reduce") or value.type.size != product(self.rows.shape):
                continue
            found.add(value)
            todo.extend(node.inputs if node is not None else ())
        return found

    def _worth_keeping(self, mine: set[Value], later: set[Value], later_roots: list[list[Value]]) -> list[Value]:
        """Expensive values that this stage and a later one compute, as far down as the later one reads them."""
        shared = mine & later
        roots = {value for group in later_roots for value in group}
        read = {operand for value in later - shared if value in self.producers for operand in self.producers[value].inputs}
        frontier = [value for value in shared if value in read or value in roots]
        order = {value: k for k, value in enumerate((*self.region.inputs, *(one for node in self.region.nodes for one in node.outputs)))}
        kept = [value for value in frontier if not self._is_kept(value) and self.way.keeps(self._cost(value), self._reads(value))]
        return sorted(kept, key=order.__getitem__)

    def _reads(self, value: Value) -> bool:
        """Whether computing one element anew loads an operand of the row's size."""
        seen: set[Value] = set()
        todo = [value]
        while todo:
            value = todo.pop()
            node = self.producers.get(value)
            if value in seen or self._is_kept(value) or (node is not None and node.op in ("reduce", "constant")):
                continue
            seen.add(value)
            if node is None and value.type.size == product(self.rows.shape):
                return True
            todo.extend(node.inputs if node is not None else ())
        return False

    def _is_kept(self, value: Value) -> bool:
        return isinstance(self.draft.inliner.sources.get(value), Bound)

    def _cost(self, value: Value) -> int:
        """Work to compute one element anew."""
        seen: set[Value] = set()
        todo, total = [value], 0
        while todo:
            node = self.producers.get(todo.pop())
            if node is None or node.op == "reduce" or node.output in seen or self._is_kept(node.output):
                continue
            seen.add(node.output)
            if node.output.type.size == product(self.rows.shape):
                total += _COSTS.get(node.attrs.get("fn"), 1) if node.op == "map" else 10 if "gather" in node.op else 0
            todo.extend(node.inputs)
        return total


def lower_arg_reduce(node: Node, scope: Scope, loops: Loops = RowLoops) -> list[Draft]:
    """The position of the extremum: its value first, then the first (or last) position that holds it.

    NaN is the extremum of any row that has one (min and max propagate it).
    """
    (source,) = node.inputs
    fn, last = node.attrs["fn"], node.attrs["last"]
    draft = Draft(f"arg_{fn}", node, scope)
    rows = Rows(source.shape, (node.attrs["axis"],))
    (extent,) = rows.inner
    way = loops(draft, rows)
    with way.around() as row:
        if not nonnegative(extent - 1, draft.nest.ranges):
            draft.nest.check(compare("ge", extent, 1), Status.SHAPE)

        def element(at: Shape) -> Expr:
            return draft.element(source, rows.indices(row, at))

        best = way.fold(fn, source.dtype, element)
        nowhere = const(-1 if last else (1 << 62), I64)

        def position(at: Shape) -> Expr:
            return select(_same(cast(element(at), best.dtype), best), index_value(at[0]), nowhere)

        found = way.fold("max" if last else "min", I64, position)
        with way.once():
            draft.store(node.output, row, found)
    draft.flops = source.type.size * 2
    return [draft]


def _same(a: Expr, b: Expr) -> Expr:
    equal = op("eq", a, b)
    if not a.dtype.is_float or isinstance(a, Const):
        return equal
    return Op("or", (equal, Op("and", (op("isnan", a), op("isnan", b)), BOOL)), BOOL)
