"""Problems: graphs of one core op each, drawn at random, gathered into batches that compile and run together.

A ``Problem`` is a function that draws one ``Case`` for a dtype; ``@problem("op", dtypes=..., fn=[...])`` registers it for
every dtype and every combination of its other arguments. A ``Case`` makes operands whose extents may be symbols; a
``Batch`` is the graph of all its cases. Each batch runs ``RUNS`` times, at other values of its symbols each time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tcompile.ir import dims, dtypes
from tcompile.ir.build import Builder
from tcompile.ir.dims import DimLike, Range
from tcompile.ir.dtypes import DType
from tcompile.ir.graph import Graph, Node, Value
from tests.problems.values import Fill, indices_below, numbers

RUNS = 2
EXTENTS = (0, 1, 1, 2, 3, 3, 5, 7, 8, 13, 17)
ALWAYS = (dtypes.F32, dtypes.I64, dtypes.BOOL)
INDEX_TYPES = (dtypes.I64, dtypes.I64, dtypes.I32, dtypes.U8, dtypes.I16)

Draw = Callable[..., None]


@dataclass(frozen=True)
class Problem:
    """One op under one choice of arguments; ``draw(case, dtype, **arguments)`` emits it."""

    op: str
    draw: Draw
    dtype: DType
    arguments: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return f"{self.op}[{', '.join(map(str, (self.dtype, *(value for _, value in self.arguments))))}]"


PROBLEMS: dict[str, list[Problem]] = {}


def problem(op: str, of: Iterable[DType] = dtypes.ALL, where: Callable[..., bool] | None = None, **choices: Iterable[Any]):
    """Registers a drawing function for every dtype and combination of choices that ``where`` allows."""

    def add(draw: Draw) -> Draw:
        for dtype, *values in itertools.product(of, *choices.values()):
            arguments = tuple(zip(choices, values, strict=True))
            if where is None or where(dtype, **dict(arguments)):
                PROBLEMS.setdefault(op, []).append(Problem(op, draw, dtype, arguments))
        return draw

    return add


@dataclass(frozen=True)
class Check:
    """An output to compare: what it came from, for the tolerance and for messages."""

    output: str
    case: Case
    node: Node
    index: int


class Batch:
    """A graph of many cases. ``fills`` makes each input; ``sizes`` holds the symbols' values of each run."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.builder = Builder("batch")
        self.sizes: list[dict[str, int]] = [{} for _ in range(RUNS)]
        self.fills: dict[str, Callable[[np.random.Generator, DType, tuple[int, ...], int], np.ndarray]] = {}
        self.checks: list[Check] = []
        self.results: list[Value] = []

    def add(self, problem: Problem) -> None:
        """Draws one case of a problem."""
        problem.draw(Case(self, str(problem)), problem.dtype, **dict(problem.arguments))

    def graph(self) -> Graph:
        """The graph of all cases."""
        return self.builder.graph(self.results, [check.output for check in self.checks])

    def inputs(self, run: int) -> dict[str, np.ndarray]:
        """The arrays of one run."""
        sizes, rng = self.sizes[run], np.random.default_rng((run, *self.rng.bit_generator.state["state"].values()))
        made = {}
        for value in self.builder.inputs:
            shape = tuple(extent if isinstance(extent, int) else dims.evaluate(extent, sizes) for extent in value.shape)
            made[value.name] = np.asarray(self.fills[value.name](rng, value.dtype, shape, run))
            assert made[value.name].shape == shape and made[value.name].dtype == value.dtype.numpy, value
        return made


@dataclass
class Case:
    """Draws operands and extents of one case, and emits its op."""

    batch: Batch
    label: str
    constants: dict[Value, np.ndarray] = field(default_factory=dict)

    @property
    def rng(self) -> np.random.Generator:
        return self.batch.rng

    @property
    def builder(self) -> Builder:
        return self.batch.builder

    def choice(self, options: Sequence[Any]) -> Any:
        """One of a few."""
        return options[int(self.rng.integers(len(options)))]

    def integer(self, low: int, high: int) -> int:
        """A number in [low, high]."""
        return int(self.rng.integers(low, high, endpoint=True))

    def flag(self, probability: float = 0.5) -> bool:
        """True or False."""
        return bool(self.rng.random() < probability)

    # Extents ------------------------------------------------------------------------------------------

    def extent(self, low: int = 0, among: Sequence[int] = EXTENTS, *, symbolic: float = 0.3) -> DimLike:
        """An extent of at least ``low``: a number, or a symbol with a value for each run."""
        fitting = [n for n in among if n >= low]
        if self.flag(1 - symbolic):
            return self.choice(fitting)
        return self.symbol([self.choice(fitting) for _ in range(RUNS)], low)

    def symbol(self, values: Sequence[int], low: int = 0) -> DimLike:
        """A new symbol with its value in each run."""
        name = f"s{len(self.batch.sizes[0])}"
        for sizes, value in zip(self.batch.sizes, values, strict=True):
            sizes[name] = value
        self.builder.symbols[name] = Range(low, None)
        return dims.symbol(name)

    def shape(self, rank: int | None = None, low: int = 0, *, symbolic: float = 0.3) -> tuple[DimLike, ...]:
        """A shape of a rank (0 to 4), of few elements in every run."""
        rank = self.choice((0, 1, 2, 2, 3, 4)) if rank is None else rank
        shape = tuple(self.extent(low, symbolic=symbolic) for _ in range(rank))
        return shape if self._small(shape) else self.shape(rank, low, symbolic=symbolic)

    def _small(self, shape: Sequence[DimLike]) -> bool:
        return all(abs(np.prod([self.value(extent, run) for extent in shape])) <= 3000 for run in range(RUNS))

    def value(self, extent: DimLike, run: int) -> int:
        """What an extent is in a run."""
        return extent if isinstance(extent, int) else dims.evaluate(extent, self.batch.sizes[run])

    def at_least(self, extent: DimLike) -> int:
        """The smallest value of an extent over the runs."""
        return min(self.value(extent, run) for run in range(RUNS))

    # Operands -----------------------------------------------------------------------------------------

    def operand(self, dtype: DType, shape: Sequence[DimLike], fill: Fill = numbers, *, constant: float = 0.15) -> Value:
        """An input, or now and then a constant where the shape is static."""
        if all(isinstance(extent, int) for extent in shape) and self.flag(constant):
            array = np.asarray(fill(self.rng, dtype, tuple(shape)))
            value = self.builder.constant(array)
            self.constants[value] = array
            return value
        return self.input(dtype, shape, lambda rng, kind, extents, run: fill(rng, kind, extents))

    def input(self, dtype: DType, shape: Sequence[DimLike], fill: Callable[..., np.ndarray]) -> Value:
        """An input that ``fill(rng, dtype, extents, run)`` makes for each run; it tells every symbol of its shape."""
        for extent in shape:
            for name in dims.symbols(extent) - self._told():
                self._input(dtypes.U8, (dims.symbol(name),), lambda rng, kind, extents, run: np.zeros(extents, np.uint8))
        return self._input(dtype, shape, fill)

    def _told(self) -> set[str]:
        return {str(extent) for value in self.builder.inputs for extent in value.shape if extent in map(dims.symbol, dims.symbols(extent))}

    def _input(self, dtype: DType, shape: Sequence[DimLike], fill: Callable[..., np.ndarray]) -> Value:
        name = f"x{len(self.builder.inputs)}"
        self.batch.fills[name] = fill
        return self.builder.input(name, dtype, tuple(shape))

    def indices(self, shape: Sequence[DimLike], extent: DimLike) -> Value:
        """Indices below an extent."""

        def fill(rng: np.random.Generator, kind: DType, got: tuple[int, ...], run: int) -> np.ndarray:
            return indices_below(self.value(extent, run), rng, kind, got)

        return self.input(self.choice(INDEX_TYPES), shape, fill)

    # The op -------------------------------------------------------------------------------------------

    def emit(self, op: str, *inputs: Value, regions: Sequence[Graph] = (), **attrs: Any) -> tuple[Value, ...]:
        """Emits the op and compares all its outputs."""
        outputs = self.builder.emit_all(op, inputs, attrs, regions)
        for index, value in enumerate(outputs):
            self.compare(value, self.builder.nodes[-1], index)
        return outputs

    def compare(self, value: Value, node: Node, index: int = 0) -> None:
        """Compares a value that a node (or what follows it) gave."""
        self.batch.results.append(value)
        self.batch.checks.append(Check(f"y{len(self.batch.checks)}", self, node, index))


def sample(problems: Sequence[Problem], seed: int, period: int = 3) -> list[Problem]:
    """Every dtype, but only a few in all their forms: of the others, each form's turn comes with every third seed."""
    chosen = []
    for number, dtype in enumerate(dict.fromkeys(one.dtype for one in problems)):
        forms = [one for one in problems if one.dtype == dtype]
        step = 1 if dtype in ALWAYS else min(period, len(forms))
        chosen += forms[(number + seed) % step :: step]
    return chosen


def batches(problems: Sequence[Problem], seed: int, size: int = 40) -> Iterator[Batch]:
    """The cases of problems, ``size`` to a batch."""
    for first in range(0, len(problems), size):
        batch = Batch(seed * 1_000_003 + first)
        for one in problems[first : first + size]:
            batch.add(one)
        yield batch
