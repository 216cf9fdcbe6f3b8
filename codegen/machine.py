"""Which CPU features the code of a target needs: what a runtime checks before it runs anything.

Source: x86-64 psABI, section 3.1.1 (micro-architecture levels); names as LLVM spells them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tcompile.errors import UnsupportedError
from tcompile.ir.target import Target

_V1 = ("cmov", "cx8", "fxsr", "mmx", "sse", "sse2")
_V2 = (*_V1, "cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")
_V3 = (*_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
_CPUS = {"x86-64": _V1, "x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4, "generic": ()}


@dataclass(frozen=True)
class Machine:
    """What runs the code: a target's name, the instruction set, and the CPU features it needs."""

    target: str
    arch: str
    features: tuple[str, ...] = ()


def machine(target: Target) -> Machine:
    """The machine that a target's code needs. Raises UnsupportedError for a CPU whose features are not listed here."""
    implied = _CPUS.get(target.cpu)
    if implied is None:
        known = ", ".join(_CPUS)
        raise UnsupportedError(f"what the CPU {target.cpu!r} of target {target.name} implies is not known", hint=f"one of {known}")
    return Machine(target.name, target.arch, tuple(sorted({*implied, *target.features})))
