"""Targets: what a machine can do, as numbers that passes, schedules and code generators ask for.

Everything hardware-specific that a stage above the code generator may know stands in one ``Target``; names of
machines appear here only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from tcompile.errors import UnsupportedError


@dataclass(frozen=True)
class Target:
    """A CPU to compile for.

    ``cpu`` and ``features`` are LLVM's names (features beyond those of ``cpu``, without ``+``). ``vector_bytes`` is
    the widest vector register, ``vector_registers`` how many there are. ``mask_bytes`` holds the element sizes whose
    contiguous vectors load and store under a lane mask in one instruction. ``half`` says that f16 <-> f32 conversions
    are exact single instructions, ``nan_minmax`` that one instruction computes a minimum that propagates NaN,
    ``saturating_casts`` that float to integer conversions saturate, ``early_loads`` that the elements of a matrix's rows wait
    in a register each, where others multiply by them from memory.
    ``fma_ports`` vector FMAs start each cycle and take ``fma_latency`` cycles, while ``load_ports`` loads do. Cache sizes
    are bytes a core may count on. ``host_ops`` says that Python runs the models there, and so can run operators on strings.
    """

    name: str
    triple: str
    cpu: str
    features: tuple[str, ...] = ()
    vector_bytes: int = 16
    vector_registers: int = 16
    cores: int = 1
    mask_bytes: tuple[int, ...] = ()
    half: bool = False
    nan_minmax: bool = False
    saturating_casts: bool = False
    early_loads: bool = False
    fma_ports: int = 2
    fma_latency: int = 4
    load_ports: int = 2
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10
    l3_bytes: int = 4 << 20
    host_ops: bool = True

    @property
    def arch(self) -> str:
        """The instruction set family: x86_64, aarch64, ..."""
        return self.triple.split("-")[0]

    @property
    def float_lanes(self) -> int:
        """f32 elements of one vector register."""
        return self.vector_bytes // 4


_NAMED = (
    Target("x86-64-v3", "x86_64-unknown-linux-gnu", "x86-64-v3", (), 32, 16, mask_bytes=(4, 8), half=True),
    Target("x86-64-v4", "x86_64-unknown-linux-gnu", "x86-64-v4", (), 64, 32, mask_bytes=(1, 2, 4, 8), half=True, l2_bytes=1 << 20),
    Target(
        "aarch64-linux",
        "aarch64-unknown-linux-gnu",
        "generic",
        ("neon",),
        16,
        32,
        half=True,
        nan_minmax=True,
        saturating_casts=True,
        early_loads=True,
    ),
)


def names() -> tuple[str, ...]:
    """The targets that ``named_target`` knows."""
    return ("native", *(target.name for target in _NAMED))


def named_target(name: str) -> Target:
    """The target of a name of ``names()``. Raises UnsupportedError for another."""
    if name == "native":
        return native_target()
    for target in _NAMED:
        if target.name == name:
            return target
    raise UnsupportedError(f"no target is called {name!r}", hint=f"one of {', '.join(names())}")


def native_target() -> Target:
    """The machine this runs on. Raises UnsupportedError where no baseline of ours fits it."""
    from llvmlite import binding

    triple, features = binding.get_process_triple(), {name for name, present in binding.get_host_cpu_features().items() if present}
    arch = triple.split("-")[0]
    if arch == "aarch64":
        base = named_target("aarch64-linux")
    elif {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"} <= features:
        base = named_target("x86-64-v4")
    elif {"avx2", "fma", "f16c", "bmi2"} <= features:
        base = named_target("x86-64-v3")
    else:
        raise UnsupportedError(
            f"this machine ({binding.get_host_cpu_name()}) lacks AVX2 and FMA", hint="x86-64-v3 is the lowest level supported"
        )
    extra = sorted(features & {"avx512vnni", "avx512bf16", "avxvnni", "dotprod", "i8mm", "bf16"})
    if binding.get_host_cpu_name() == "znver4":
        base = replace(base, fma_ports=1)  # 512-bit operations take its 256-bit units twice
    return replace(base, name="native", features=(*base.features, *extra), cores=len(os.sched_getaffinity(0)))
