"""If, Loop and SequenceMap that Python runs, because strings, sequences or optionals go through them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TypeProto

from tcompile.errors import InvalidModelError, UnsupportedError
from tcompile.ir.host import Branch, ForEach, Repeat, Step
from tcompile.ir.onnx_host_block import cut
from tcompile.ir.onnx_host_names import HostImport, Names, Place
from tcompile.ir.onnx_host_types import BOOL, INT64, element_of, join, sequence, stacked, tensor, without_names

_MAX_ROUNDS = 16
Types = dict[str, TypeProto]
Found = tuple[Step | None, Types]


def control_step(shared: HostImport, node: onnx.NodeProto, label: str, names: Names, place: Place) -> Found | None:
    """The step of a control flow operator with its blocks cut, and the types of its outputs; None for another operator.

    The step is None where something in its blocks failed: then there are problems.
    """
    if node.domain not in ("", "ai.onnx"):
        return None
    build = {"If": _branch, "Loop": _repeat, "SequenceMap": _for_each}.get(node.op_type)
    return None if build is None else build(shared, node, label, names, place)


def _graph(node: onnx.NodeProto, name: str) -> onnx.GraphProto:
    found = [attribute.g for attribute in node.attribute if attribute.name == name]
    if not found:
        raise InvalidModelError(f"{node.op_type} needs the attribute {name}")
    return found[0]


def _need_count(count: int, needed: int, who: str, what: str) -> None:
    """Raises InvalidModelError for another number of inputs or outputs than the node needs."""
    if count != needed:
        raise InvalidModelError(f"{who} {count} {what}, and needs {needed}")


def _outputs(node: onnx.NodeProto) -> tuple[str | None, ...]:
    return tuple(name or None for name in node.output)


def _typed(node: onnx.NodeProto, types: Sequence[TypeProto]) -> Types:
    return {name: type_ for name, type_ in zip(node.output, types, strict=False) if name}


def _branch(shared: HostImport, node: onnx.NodeProto, label: str, names: Names, place: Place) -> Found:
    blocks, types = [], []
    for branch in ("then_branch", "else_branch"):
        block, given = cut(shared, _graph(node, branch), names, {}, (*place, branch))
        blocks.append(block)
        types.append(given)
    if any(None in given for given in types):
        return None, {}
    _need_count(len(node.input), 1, "If has", "inputs")
    _need_count(len(types[1]), len(types[0]), "else_branch has", "outputs")
    joined = [join(a, b) for a, b in zip(*types, strict=True)]
    return Branch(label, node.input[0], *blocks, _outputs(node)), _typed(node, joined)


def _repeat(shared: HostImport, node: onnx.NodeProto, label: str, names: Names, place: Place) -> Found:
    body, inputs = _graph(node, "body"), list(node.input) + [""] * (2 - len(node.input))
    trip, condition, *carried = inputs
    types = [names.type_of(name) for name in carried]
    formal = [info.name for info in body.input]
    _need_count(len(formal), 2 + len(types), "the body has", "inputs")
    if len(body.output) < 1 + len(types):
        raise InvalidModelError(f"the body has {len(body.output)} outputs, and needs a condition and {len(types)} carried values")
    for _ in range(_MAX_ROUNDS):
        segments = len(shared.segments)
        given = dict(zip(formal, (tensor(INT64, []), tensor(BOOL, []), *types), strict=True))
        block, results = cut(shared, body, names, given, place)
        if None in results:
            return None, {}
        joined = [join(a, b) for a, b in zip(types, results[1 : 1 + len(types)], strict=True)]
        if joined == types:
            scans = [stacked(type_) for type_ in results[1 + len(types) :]]
            step = Repeat(label, trip or None, condition or None, tuple(carried), block, _outputs(node))
            return step, _typed(node, [*joined, *scans])
        del shared.segments[segments:]
        types = joined
    raise UnsupportedError("the types of the values that the loop carries do not settle")


def _for_each(shared: HostImport, node: onnx.NodeProto, label: str, names: Names, place: Place) -> Found:
    body, types = _graph(node, "body"), [names.type_of(name) for name in node.input]
    _need_count(len(body.input), len(types), "the body has", "inputs")
    rows = [element_of(type_) if type_.HasField("sequence_type") else type_ for type_ in types]
    given = dict(zip((info.name for info in body.input), map(_without_sharing, rows), strict=True))
    block, results = cut(shared, body, names, given, place)
    if None in results:
        return None, {}
    return ForEach(label, tuple(node.input), block, _outputs(node)), _typed(node, [sequence(type_) for type_ in results])


def _without_sharing(type_: TypeProto) -> TypeProto:
    return without_names(type_) if type_.HasField("tensor_type") else type_
