"""The operator page: which ONNX operators are imported, on which element types ONNX's suite tries them, what passes.

Built from the record of passing cases; cases that are not in it are run, so that the page says why they fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx

from tcompile.ir.dtypes import from_onnx
from tcompile.ir.onnx_host_ops import ALWAYS, MOVING, RESOLVED
from tcompile.ir.onnx_registry import registered
from tcompile.ir.onnx_scope import OLDEST_OPSET
from tests.conformance_dtypes import section
from tests.conformance_judge import NOISY, RANDOM

Key = tuple[str, str]  # domain, operator


@dataclass
class Row:
    """One operator: the opsets of its forms, and its cases."""

    opsets: list[int] = field(default_factory=list)
    dtypes: set[str] = field(default_factory=set)
    cases: Counter[int] = field(default_factory=Counter)  # by opset
    passed: Counter[int] = field(default_factory=Counter)
    ulp: float | None = None


def page(cases: Mapping[str, onnx.ModelProto | None], passing: Mapping[str, float | None], reasons: Mapping[str, str]) -> str:
    """The page in Markdown. ``cases``: the model of each case of one operator, None for the others; ``passing``: their errors in ulp."""
    passed = sum(key in passing for key in cases)
    parts = [
        "# ONNX operators",
        f"ONNX {onnx.__version__}'s backend suite: {passed} of {len(cases)} cases pass, each through a saved artifact that a process"
        " without the compiler\nloads. `python3 -m tests.conformance --page FILE` writes this page from `tests/conformance_passing.txt`.",
        "Opsets are those in which the operator's form changed and that are imported; the newest holds up to the newest opset of the"
        " installed `onnx`.\nElement types are those of the passing cases' tensors; more are supported than ONNX's suite tries. Operators"
        " marked *host*\nrun in Python, always or where a value is a string, or a sequence that only the run knows.",
        "Errors are the largest of the cases that are measured, in units in the last place, against float64 arithmetic: the unit of"
        " an element is that of its own\nmagnitude, but of no less than 1/1024 of its tensor's largest one: where large terms cancel,"
        " as in a mean near 0, an error of one unit of a term counts\nup to a thousand. Integers are exact. Where a case has several"
        " steps in a narrow type, such as a function's body in f16, the rounding of each step counts.",
        _table(_rows(cases, passing)),
        _failures(cases, passing, reasons),
        section(model for model in cases.values() if model is not None and len(model.graph.node) == 1),
        _judged(),
    ]
    return "\n\n".join(parts) + "\n"


def _rows(cases: Mapping[str, onnx.ModelProto | None], passing: Mapping[str, float | None]) -> dict[Key, Row]:
    rows = {key: Row(_opsets(key)) for key in {*registered(), *_defined_by_functions(), *ALWAYS}}
    for case, model in cases.items():
        key = None if model is None else _operator(case, cases)
        if key is None:
            continue
        row = rows.setdefault(key, Row(_opsets(key)))
        opset = _opset(model, key[0])
        row.cases[opset] += 1
        if case in passing:
            row.passed[opset] += 1
            row.dtypes.update(_dtypes(model))
            if passing[case] is not None:
                row.ulp = max(row.ulp or 0.0, passing[case])
    return rows


def _operator(case: str, cases: Mapping[str, onnx.ModelProto | None]) -> Key | None:
    """The operator that a case tests; an expanded one tests the operator whose function body it is."""
    base = case.split("_expanded")[0]
    model = cases.get(base) or cases[case]
    nodes = [node for node in model.graph.node if node.op_type != "Constant"] or list(model.graph.node)
    return (_plain(nodes[0].domain), nodes[0].op_type) if len(nodes) == 1 else None


def _opset(model: onnx.ModelProto, domain: str) -> int:
    return next((entry.version for entry in model.opset_import if _plain(entry.domain) == domain), 0)


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _opsets(key: Key) -> list[int]:
    """The opsets in which the operator got a new form, from the oldest that is imported on."""
    since = sorted({schema.since_version for schema in _schemas() if (_plain(schema.domain), schema.name) == key})
    older = [version for version in since if version <= OLDEST_OPSET]
    if key[0]:
        return since
    return [*older[-1:], *(version for version in since if version > OLDEST_OPSET)]


def _schemas() -> Iterable[onnx.defs.OpSchema]:
    if not _SCHEMAS:
        _SCHEMAS.extend(onnx.defs.get_all_schemas_with_history())
    return _SCHEMAS


_SCHEMAS: list[onnx.defs.OpSchema] = []


def _defined_by_functions() -> Iterator[Key]:
    """Operators that are imported because ONNX defines them by others."""
    for schema in onnx.defs.get_all_schemas():
        if not schema.deprecated and (schema.has_function or schema.has_context_dependent_function):
            yield _plain(schema.domain), schema.name


def _dtypes(model: onnx.ModelProto) -> Iterator[str]:
    """The element types of the model's inputs and outputs."""
    for info in (*model.graph.input, *model.graph.output):
        number = info.type.tensor_type.elem_type
        if number:
            yield "string" if number == onnx.TensorProto.STRING else str(from_onnx(number))


def _table(rows: Mapping[Key, Row]) -> str:
    lines = ["| operator | opsets | element types tried | cases passed | by opset | error (ulp) |", "|---|---|---|---|---|---|"]
    for key in sorted(rows, key=lambda key: (key[0] not in ("", "ai.onnx.ml"), key[0], key[1])):
        row, (domain, op) = rows[key], key
        name = f"{f'{domain}.' if domain else ''}{op}{' (*host*)' if key in ALWAYS | RESOLVED | MOVING else ''}"
        tried = f"{row.passed.total()} of {row.cases.total()}" if row.cases else "no case"
        cells = [name, ", ".join(map(str, row.opsets)), ", ".join(sorted(row.dtypes)), tried, _by_opset(row), _error(row.ulp)]
        lines.append(f"| {' | '.join(cell or '-' for cell in cells)} |")
    return "\n".join(lines)


def _by_opset(row: Row) -> str:
    return ", ".join(f"{opset}: {row.passed[opset]}" for opset in sorted(row.cases))


def _error(ulp: float | None) -> str:
    return "" if ulp is None else f"{ulp:.2g}"


def _failures(cases: Iterable[str], passing: set[str], reasons: Mapping[str, str]) -> str:
    failing = [key for key in cases if key not in passing]
    if not failing:
        return "## Cases that do not pass\n\nNone."
    return "\n".join(("## Cases that do not pass", "", *(f"- `{key}`: {reasons.get(key, 'not run')}" for key in failing)))


def _judged() -> str:
    """The cases that ONNX's own criterion cannot judge."""
    lines = ["## Cases that are judged otherwise than by ONNX's runner", ""]
    lines += [f"- `{key}`: within {tolerance:g} of 0, where NumPy's rounding noise is expected" for key, tolerance in NOISY.items()]
    lines += [f"- `{key}`: random; by shape, element type, range and mean" for key in RANDOM]
    return "\n".join(lines)
