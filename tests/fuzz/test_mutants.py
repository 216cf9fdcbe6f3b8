"""Malformed models and artifacts end in a result or a ``tcompile.Error``. ``python -m tests.fuzz --mutants N`` runs longer."""

from __future__ import annotations

from collections import Counter

from tests.fuzz.mutants import Worker, mutants


def test_malformed_files_are_refused_or_run():
    worker, counts = Worker(), Counter()
    for mutant in mutants(120, seed=5, folders=()):
        what, detail = worker.outcome(mutant)
        assert what in ("accepted", "refused"), f"{what}: a mutant of {mutant.origin}: {detail}"
        counts[what] += 1
    assert counts["accepted"] > 10 and counts["refused"] > 10  # both ways are tried
