"""Reads assembly: the innermost loops of a function, their vector FMAs and their accesses to the stack."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(r"^(\.?L\w+):")
_X86 = {
    "jump": re.compile(r"^\tj\w+\t(\.?L\w+)$"),
    "fma": re.compile(r"^\tvfn?m(?:add|sub)\d+ps\t.*%[yz]mm"),
    "stack": re.compile(r"\(%rsp\b"),
    "vector": re.compile(r"%[xyz]mm"),
}
_AARCH64 = {
    "jump": re.compile(r"^\t(?:b(?:\.\w+)?|cbn?z|tbn?z)\t(?:.*, )?(\.?L\w+)$"),
    "fma": re.compile(r"^\tfml[as]\tv\d+\.4s"),
    "stack": re.compile(r"\[sp\b"),
    "vector": re.compile(r"\b[qdsv]\d+"),
}


@dataclass(frozen=True)
class InnerLoop:
    """One innermost loop: how many vector FMAs of f32 it does a turn, and how many instructions touch the stack, with vectors or at all."""

    fmas: int
    stack: int
    spills: int
    instructions: int


def inner_loops(assembly: str, arch: str) -> list[InnerLoop]:
    """The innermost loops of an assembly text: from a label to the last jump back to it, with no other loop between."""
    patterns = _AARCH64 if arch == "aarch64" else _X86
    lines = assembly.splitlines()
    labels = {match[1]: k for k, line in enumerate(lines) if (match := _LABEL.match(line))}
    ends: dict[int, int] = {}
    for k, line in enumerate(lines):
        match = patterns["jump"].match(line)
        if match and labels.get(match[1], k) < k:
            ends[labels[match[1]]] = k
    spans = sorted(ends.items())
    innermost = [(start, end) for start, end in spans if not any(start < other < end for other, _ in spans)]
    return [_counted(lines[start:end], patterns) for start, end in innermost]


def _counted(lines: list[str], patterns: dict[str, re.Pattern]) -> InnerLoop:
    body = [line for line in lines if line.startswith("\t") and not line.startswith("\t.")]
    fmas = sum(bool(patterns["fma"].match(line)) for line in body)
    stack = [line for line in body if patterns["stack"].search(line)]
    return InnerLoop(fmas, len(stack), sum(bool(patterns["vector"].search(line)) for line in stack), len(body))
