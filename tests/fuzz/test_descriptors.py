"""The runtime in C refuses damaged descriptors or reads them whole, and touches no memory that is not its own."""

from __future__ import annotations

import re

import pytest

from tests.fuzz.descriptors import MODELS, build, compiler, open_mutants


@pytest.mark.skipif(compiler() is None, reason="no C compiler with AddressSanitizer")
def test_damaged_descriptors(tmp_path):
    said = open_mutants(build(tmp_path), tmp_path, count=1000, seed=3)
    assert said.keys() == MODELS.keys()
    for line in said.values():
        opened, refused = map(int, re.fullmatch(r"(\d+) opened, (\d+) refused", line).groups())
        assert opened > 50 and refused > 200 and opened + refused == 1000  # both ways are tried
