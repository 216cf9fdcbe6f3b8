"""A kernel under construction: its parameters stand for graph values, its body is a ``Nest``.

A draft works on the operands of one node, a fused one included: the region's inputs are taken for the
operands they stand for, scalar constants and dims become part of the code, everything else is a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tcompile.codegen.access import ravel
from tcompile.codegen.in_place import in_place_pairs
from tcompile.codegen.inline import Element, Inliner, Source, Stored
from tcompile.codegen.nest import Nest
from tcompile.errors import InvalidModelError
from tcompile.ir.dims import DimLike, Ranges, Shape, floordiv, product
from tcompile.ir.dtypes import I32
from tcompile.ir.graph import Node, Value
from tcompile.ir.loops import Access, Expr, Kernel, Param


@dataclass
class Scope:
    """What a lowering may know of its surroundings.

    ``scalars`` holds the producers of operands that are worth repeating in every kernel: constants of one element
    and dims. ``storage`` is the shape of memory where it is not the value's; ``one_pitch`` the symbols in it that are equal to
    others where two values are in place (``codegen/pitch.py``).
    """

    ranges: Ranges = field(default_factory=dict)
    scalars: Mapping[Value, Node] = field(default_factory=dict)
    storage: Mapping[Value, Shape] = field(default_factory=dict)
    one_pitch: Mapping[str, DimLike] = field(default_factory=dict)

    def shape(self, value: Value) -> Shape:
        """The shape that a value's memory is addressed by."""
        return self.storage.get(value, value.shape)


class Draft:
    """One kernel being written for ``node``; ``finish`` gives the kernel and the values of its parameters."""

    def __init__(self, name: str, node: Node, scope: Scope) -> None:
        self.name, self.node, self.scope = name, node, scope
        self.nest = Nest(scope.ranges)
        self.flops: DimLike = 0
        self.tags: dict[str, str] = {}
        self.written_once: set[Value] = set()  # outputs of which the builder knows that no element is written twice
        self._params: dict[Value, Param] = {}
        self._words: dict[Value, Param] = {}
        self._operands = _region_operands(node)
        producers = {**scope.scalars, **(node.regions[0].producers() if node.op == "fused" else {})}
        self.inliner = Inliner(self.nest, producers, missing=self._source)

    def operand(self, value: Value) -> Value:
        """The value outside of a fused region that a region input stands for."""
        return self._operands.get(value, value)

    def read(self, value: Value) -> str:
        """The name of the parameter that holds a value, for loads at its row-major positions."""
        self._without_gaps(self.operand(value))
        return self._param(self.operand(value), Access.IN)

    def words(self, value: Value) -> str:
        """The name of a parameter that holds a value as i32 words, each of several elements: a whole number of words."""
        operand = self.operand(value)
        self._without_gaps(operand)
        if operand not in self._words:
            count = floordiv(product(operand.shape), I32.bits // operand.dtype.bits)
            self._words[operand] = Param(self.nest.fresh("p"), I32, (count,), Access.IN, operand.dtype)
        return self._words[operand].name

    def write(self, value: Value, access: Access = Access.OUT) -> str:
        """The name of the parameter that receives a value, for stores at its row-major positions."""
        self._without_gaps(value)
        return self._param(value, access)

    def element(self, value: Value, indices: Shape, guard: Expr | None = None) -> Expr:
        """The expression of one element."""
        return self.inliner.value(value, indices, guard)

    def bind(self, value: Value, element: Element) -> None:
        """Elements of ``value`` come from a callback from now on."""
        self.inliner.bind(value, element)

    def store(self, value: Value, indices: Shape, element: Expr) -> None:
        """Writes one element of an output."""
        self.nest.store(self._param(value, Access.OUT), ravel(indices, self.scope.shape(value)), element)

    def finish(self) -> tuple[Kernel, tuple[Value, ...]]:
        """The kernel, inputs before outputs, and the values its parameters stand for."""
        entries = sorted((*self._params.items(), *self._words.items()), key=lambda item: item[1].access is not Access.IN)
        params, body = tuple(param for _, param in entries), self.nest.block()
        once = [self._params[value].name for value in self.written_once if value in self._params]
        aliases = in_place_pairs(params, body, self.nest.independent, once, self.scope.one_pitch)
        # what is also read as words does not die where its elements are read
        aliases = tuple((i, o) for i, o in aliases if entries[i][0] not in self._words)
        kernel = Kernel(self.name, params, (), body, aliases, self.flops, self.tags)
        return kernel, tuple(value for value, _ in entries)

    def _param(self, value: Value, access: Access) -> str:
        if value not in self._params:
            self._params[value] = Param(self.nest.fresh("p"), value.dtype, (product(self.scope.shape(value)),), access)
        return self._params[value].name

    def _source(self, value: Value) -> Source:
        operand = self.operand(value)
        if operand is not value and operand in self.scope.scalars:
            return _Elsewhere(lambda at, guard: self.inliner.value(operand, at, guard))
        return Stored(self._param(operand, Access.IN), operand, self.scope.shape(operand))

    def _without_gaps(self, value: Value) -> None:
        if value in self.scope.storage:
            message = f"{self.name} addresses {value.name} by position, but its memory has gaps"
            raise InvalidModelError(message, hint="use element and store")


class _Elsewhere:
    """A region input that stands for a scalar worth repeating."""

    def __init__(self, element: Callable[[Shape, Expr | None], Expr]) -> None:
        self.at = element


def _region_operands(node: Node) -> dict[Value, Value]:
    if node.op != "fused":
        return {}
    (region,) = node.regions
    return dict(zip(region.inputs, node.inputs, strict=True))
