"""ONNX Einsum as dot_general: labels that one operand alone has are summed first, then operands are joined pairwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tcompile.ir.graph import Value
from tcompile.ir.onnx_context import OpContext
from tcompile.ir.onnx_registry import onnx_op
from tcompile.ir.terms import Term, arange, as_term

Label = str | int  # a letter, or the place of an ellipsis axis counted from the right (negative)


@dataclass(frozen=True, eq=False)
class Labelled:
    """A tensor with one distinct label per axis."""

    x: Term
    labels: tuple[Label, ...]

    def axes(self, labels: Sequence[Label]) -> list[int]:
        return [self.labels.index(label) for label in labels]

    def ordered(self, labels: Sequence[Label]) -> Term:
        """Transposed to an order of all its labels."""
        return self.x.transpose(*self.axes(labels))


@onnx_op("Einsum", since=12)
def einsum(ctx: OpContext) -> Value:
    """Einsum (opset 12, 28) with any number of operands, ellipses and repeated labels."""
    equation = ctx.attr("equation").replace(" ", "")
    left, _, right = equation.partition("->")
    terms = left.split(",")
    tensors = [Term(ctx.builder, value) for value in ctx.tensors()]
    if len(terms) != len(tensors):
        ctx.invalid(f"the equation {equation!r} is for {len(terms)} operands, and {len(tensors)} were given")
    operands = [_diagonals(x, _labels(ctx, term, x.rank)) for term, x in zip(terms, tensors, strict=True)]
    result = _output_labels(ctx, operands, terms, right if "->" in equation else None)
    operands = _without_stretched(operands)
    while len(operands) > 1:
        later = set(result).union(*(operand.labels for operand in operands[2:]))
        operands = [_join(operands[0], operands[1], later), *operands[2:]]
    return _sum_out(operands[0], result).ordered(result).value


def _labels(ctx: OpContext, term: str, rank: int) -> list[Label]:
    head, dots, tail = term.partition("...")
    letters = len(head) + len(tail)
    if rank < letters or (rank > letters and not dots):
        ctx.invalid(f"the term {term!r} does not fit an operand of rank {rank}")
    return [*head, *range(letters - rank, 0), *tail]


def _output_labels(ctx: OpContext, operands: Sequence[Labelled], terms: Sequence[str], right: str | None) -> list[Label]:
    present = {label for operand in operands for label in operand.labels}
    ellipsis = sorted(label for label in present if isinstance(label, int))
    if right is None:
        counts = Counter(letter for term in terms for letter in term if letter != ".")
        return [*ellipsis, *sorted(letter for letter, count in counts.items() if count == 1)]
    head, dots, tail = right.partition("...")
    labels = [*head, *(ellipsis if dots else ()), *tail]
    if len(set(labels)) < len(labels) or not set(labels) <= present:
        ctx.invalid(f"the output {right!r} repeats a label, or names one that no operand has")
    return labels


def _diagonals(x: Term, labels: list[Label]) -> Labelled:
    """Keeps the diagonal of axes that share a label."""
    while (twice := next((label for label in labels if labels.count(label) > 1), None)) is not None:
        first = labels.index(twice)
        second = labels.index(twice, first + 1)
        rest = [k for k in range(x.rank) if k not in (first, second)]
        extent = x.shape[first]
        flat = x.transpose(*rest, first, second).reshape(*(x.shape[k] for k in rest), extent * extent)
        diagonal = as_term(x.b, arange(x.b, extent) * (extent + 1))
        x, labels = flat.take(diagonal, len(rest)), [*(labels[k] for k in rest), twice]
    return Labelled(x, tuple(labels))


def _without_stretched(operands: Sequence[Labelled]) -> list[Labelled]:
    """Drops an axis of extent 1 where another operand has the label with a larger extent: broadcasting needs no axis."""
    large = {label for operand in operands for label, extent in zip(operand.labels, operand.x.shape, strict=True) if extent != 1}
    found = []
    for operand in operands:
        pairs = zip(operand.labels, operand.x.shape, strict=True)
        kept = [(label, extent) for label, extent in pairs if extent != 1 or label not in large]
        found.append(Labelled(operand.x.reshape(*(extent for _, extent in kept)), tuple(label for label, _ in kept)))
    return found


def _sum_out(operand: Labelled, kept: Collection[Label]) -> Labelled:
    """Sums over the labels that are not kept."""
    axes = [axis for axis, label in enumerate(operand.labels) if label not in kept]
    return Labelled(operand.x.sum(*axes), tuple(label for label in operand.labels if label in kept)) if axes else operand


def _join(a: Labelled, b: Labelled, later: Collection[Label]) -> Labelled:
    """The product of two operands, summed over what nothing else needs."""
    a, b = _sum_out(a, {*later, *b.labels}), _sum_out(b, {*later, *a.labels})
    shared = [label for label in a.labels if label in b.labels]
    batch, contract = [label for label in shared if label in later], [label for label in shared if label not in later]
    labels = (*batch, *(label for label in a.labels if label not in shared), *(label for label in b.labels if label not in shared))
    if not contract:
        return Labelled(_spread(a, labels) * _spread(b, labels), labels)
    y = a.x.dot(b.x, batch=(a.axes(batch), b.axes(batch)), contract=(a.axes(contract), b.axes(contract)))
    return Labelled(y, labels)


def _spread(operand: Labelled, labels: Sequence[Label]) -> Term:
    """The axes in the order of ``labels``, with extent 1 where the operand has none."""
    own = [label for label in labels if label in operand.labels]
    x = operand.ordered(own)
    return x.expand(*(k for k, label in enumerate(labels) if label not in own))
