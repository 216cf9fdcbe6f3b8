"""Reports of several compiled parts as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SUMS = ("code_bytes", "weights_bytes", "arena_bytes", "scratch_bytes", "peak_bytes")
_ONE = ("target", "arch", "threads")


def combined(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the parts have together: sizes are added (None where one is not bounded), lists joined, equal notes kept once."""
    found: dict[str, Any] = {name: next((report[name] for report in reports), "") for name in _ONE}
    for name in _SUMS:
        sizes = [report[name] for report in reports]
        found[name] = None if None in sizes else sum(sizes)
    found["growing"] = [site for report in reports for site in report["growing"]]
    found["features"] = list(dict.fromkeys(feature for report in reports for feature in report.get("features", ())))
    found["notes"] = {key: text for report in reports for key, text in report["notes"].items() if len(reports) == 1}
    return found
