"""Every operator test case of the ONNX package gives the expected result, or is refused for the reason given here."""

from __future__ import annotations

import re

import pytest

from tcompile.errors import UnsupportedError
from tcompile.ir.onnx_import import check_model
from tests.onnx_import.node_cases import node_cases, run_case

# Cases that are refused, by a pattern of their names and a part of the reason.
REFUSED = {
    r"test_(equal_string|regex|string_|strnormalizer|ai_onnx_ml_label_encoder_(string_int|tensor))": "STRING",
    r"test_loop13_seq": "length only the run knows",
    r"test_loop16_seq_none": "carries an optional",
    r"test_sequence_insert_at_front": "computed at run time",
    r"test_if_opt": "differ in kind",
    r"test_image_decoder": "operator is not supported",
    r"test_split_to_sequence_1": "computed at run time",
}

# Cases whose expected values hold the rounding noise of the program that made them.
NOISY = re.compile(r"test_dft_inverse")

# Cases whose expected values come from another random generator.
RANDOM = re.compile(r"test_(bernoulli|training_dropout(_default)?(_mask)?$)")


def refusal(name: str) -> str | None:
    """The reason why a case is refused, None where it must pass."""
    return next((reason for pattern, reason in REFUSED.items() if re.match(pattern, name)), None)


@pytest.mark.parametrize("name", [name for name in node_cases() if refusal(name) is None and not RANDOM.match(name)])
def test_gives_the_expected_result(name: str) -> None:
    run_case(node_cases()[name], atol=1e-6 if NOISY.match(name) else None)


@pytest.mark.parametrize("name", [name for name in node_cases() if refusal(name) is not None])
def test_is_refused_with_the_reason_or_passes(name: str) -> None:
    try:
        run_case(node_cases()[name])
    except UnsupportedError as error:
        assert refusal(name) in str(error)


@pytest.mark.parametrize("name", [name for name in node_cases() if RANDOM.match(name)])
def test_random_operators_import(name: str) -> None:
    assert check_model(node_cases()[name].model) == []
