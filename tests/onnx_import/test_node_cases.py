"""Every operator test case of the ONNX package gives the expected result, some with host ops."""

from __future__ import annotations

import re

import pytest

from tcompile.errors import UnsupportedError
from tcompile.ir.host import HostProgram
from tcompile.ir.interpret import interpret
from tcompile.ir.onnx_host import import_program
from tcompile.ir.onnx_import import check_model, import_model
from tests.conformance import plain
from tests.conformance_judge import Case, judge
from tests.onnx_import.hosted import run_program
from tests.onnx_import.node_cases import node_cases, run_case

# Cases that no Graph holds: strings, images, and sequences that only the run knows.
HOST = re.compile(
    r"test_(equal_string|regex|string_|strnormalizer|ai_onnx_ml_label_encoder_(string_int|tensor)|loop13_seq|loop16_seq_none"
    r"|sequence_insert|if_opt|if_seq|image_decoder|split_to_sequence|sequence_map|identity_(opt|sequence)|optional_)"
)

# Cases that the importer alone refuses: the host runs them.
REFUSED = re.compile(
    r"test_(equal_string|regex|string_|strnormalizer|ai_onnx_ml_label_encoder_(string_int|tensor)|loop13_seq|loop16_seq_none"
    r"|sequence_insert_at_front|if_opt|image_decoder|split_to_sequence_1)"
)

# Cases whose expected values hold the rounding noise of the program that made them.
NOISY = re.compile(r"test_dft_inverse")

# Cases whose expected values come from another random generator.
RANDOM = re.compile(r"test_(bernoulli|training_dropout(_default)?(_mask)?$)")


@pytest.mark.parametrize("name", [name for name in node_cases() if not REFUSED.match(name) and not RANDOM.match(name)])
def test_gives_the_expected_result(name: str) -> None:
    run_case(node_cases()[name], atol=1e-6 if NOISY.match(name) else None)


@pytest.mark.parametrize("name", [name for name in node_cases() if HOST.match(name)])
def test_gives_the_expected_result_with_host_ops(name: str) -> None:
    case = node_cases()[name]
    program = import_program(case.model)
    for inputs, expected in case.data_sets:
        given = dict(zip((info.name for info in case.model.graph.input), map(plain, inputs), strict=False))
        got = run_program(program, given) if isinstance(program, HostProgram) else interpret(program, given)
        judge(Case(name, "node", case.rtol, case.atol), list(given.values()), list(got.values()), list(map(plain, expected)))


@pytest.mark.parametrize("name", [name for name in node_cases() if REFUSED.match(name)])
def test_is_refused_where_host_ops_are(name: str) -> None:
    with pytest.raises(UnsupportedError):
        import_model(node_cases()[name].model)


@pytest.mark.parametrize("name", [name for name in node_cases() if RANDOM.match(name)])
def test_random_operators_import(name: str) -> None:
    assert check_model(node_cases()[name].model) == []
