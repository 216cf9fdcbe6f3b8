"""Targets: what a machine can do, as numbers that passes, schedules and code generators ask for.

Everything hardware-specific that a stage above the code generator may know stands in one ``Target``; names of
machines appear here only.
"""

from __future__ import annotations

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
    ``fma_ports`` vector FMAs start each cycle and take ``fma_latency`` cycles, while ``load_ports`` loads do; ``issue_width``
    operations start in all. Cache sizes are bytes a core may count on. ``host_ops`` says that Python runs the models there, and
    so can run operators on strings.
    ``channel_block`` is how many channels lie together in the layout of convolutions: few, since a layer pays for lanes that are
    no channel, but a whole register; 0: the graph keeps ONNX's layouts. ``precision`` says what factors of f32 products may be
    rounded to: "f32" (not at all), "tf32", "f16" or "bf16"; sums are f32 always.
    """

    name: str
    triple: str
    cpu: str
    features: tuple[str, ...] = ()
    vector_bytes: int = 16
    vector_registers: int = 16
    mask_bytes: tuple[int, ...] = ()
    half: bool = False
    nan_minmax: bool = False
    saturating_casts: bool = False
    early_loads: bool = False
    fma_ports: int = 2
    fma_latency: int = 4
    load_ports: int = 2
    issue_width: int = 6
    l1_bytes: int = 32 << 10
    l2_bytes: int = 512 << 10
    host_ops: bool = True
    channel_block: int = 8
    precision: str = "f32"

    @property
    def arch(self) -> str:
        """The instruction set family: x86_64, aarch64, ..."""
        return self.triple.split("-")[0]

    @property
    def backend(self) -> str:
        """Which templates, schedule and emitter make its code."""
        return "cpu"

    @property
    def dot_parts(self) -> int:
        """Into how many parts words are taken by the instruction that multiplies the parts and adds the products.

        4: bytes, unsigned by signed (VNNI, i8mm); 2: signed halves (every x86); 0: there is none that beats an FMA.
        """
        if not {"avx512vnni", "avxvnni", "i8mm"}.isdisjoint(self.features):
            return 4
        return 2 if self.arch == "x86_64" else 0

    @property
    def float_lanes(self) -> int:
        """f32 elements of one vector register."""
        return self.vector_bytes // 4


PRECISIONS = ("f32", "tf32", "f16", "bf16")  # what factors of f32 products may be rounded to


@dataclass(frozen=True)
class GpuTarget(Target):
    """A GPU to compile for.

    ``sm`` is the compute capability times ten. ``shared_bytes`` of a block (the opt-in limit), ``shared_per_sm`` and
    ``registers_per_sm`` (32-bit ones) bound how many blocks run at once, ``threads_per_sm`` and ``max_threads`` (of a block)
    their threads. ``cluster`` blocks can run at once and meet (1: there are no clusters). ``l2_bytes`` are those of the whole
    device. ``sms`` is the number of multiprocessors of the largest board, ``bandwidth`` of its memory in bytes/s, ``f32_flops`` and
    ``tensor_flops`` (f16 with f32 sums) its peaks.
    """

    sm: int = 80
    warp: int = 32
    shared_bytes: int = 99 << 10
    shared_per_sm: int = 100 << 10
    registers_per_sm: int = 65536
    threads_per_sm: int = 2048
    blocks_per_sm: int = 32
    max_threads: int = 1024
    cluster: int = 1
    sms: int = 108
    bandwidth: float = 1.5e12
    f32_flops: float = 19.5e12
    tensor_flops: float = 312e12

    @property
    def arch(self) -> str:
        """The family of instruction sets."""
        return "cuda"

    @property
    def backend(self) -> str:
        """Which templates, schedule and emitter make its code."""
        return "cuda"


_BLOCKS_PER_SM = {86: 16, 89: 24}
_L2_MIB = {80: 40, 86: 6, 89: 72, 90: 50, 100: 126}


def _gpu(sm: int, shared: int, shared_per_sm: int, threads: int, sms: int, bandwidth: float, f32: float, tensor: float) -> GpuTarget:
    """Limits from the CUDA C++ Programming Guide, table of compute capabilities; peaks from the data sheet of the largest board."""
    return GpuTarget(
        f"cuda-sm{sm}", "nvptx64-nvidia-cuda", f"sm_{sm}", (), 16, 255, half=True, l2_bytes=_L2_MIB[sm] << 20, channel_block=0, sm=sm,
        shared_bytes=shared << 10, shared_per_sm=shared_per_sm << 10, threads_per_sm=threads, blocks_per_sm=_BLOCKS_PER_SM.get(sm, 32),
        cluster=8 if sm >= 90 else 1, sms=sms, bandwidth=bandwidth, f32_flops=f32, tensor_flops=tensor,
    )  # fmt: skip


_NAMED = (
    Target("x86-64-v3", "x86_64-unknown-linux-gnu", "x86-64-v3", (), 32, 16, mask_bytes=(4, 8), half=True),
    Target(
        "x86-64-v4",
        "x86_64-unknown-linux-gnu",
        "x86-64-v4",
        (),
        64,
        32,
        mask_bytes=(1, 2, 4, 8),
        half=True,
        l2_bytes=1 << 20,
        channel_block=16,
    ),
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
    _gpu(80, 163, 164, 2048, 108, 1.56e12, 19.5e12, 312e12),  # A100
    _gpu(86, 99, 100, 1536, 84, 0.77e12, 38.7e12, 155e12),  # A40, RTX 3090
    _gpu(89, 99, 100, 1536, 142, 0.86e12, 91.6e12, 362e12),  # L40S, RTX 4090
    _gpu(90, 227, 228, 2048, 132, 3.35e12, 66.9e12, 989e12),  # H100
    _gpu(100, 227, 228, 2048, 148, 8.0e12, 75e12, 2250e12),  # B200
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


def gpu_target(sm: int) -> GpuTarget:
    """The target for a GPU of a compute capability (times ten): the best one of its generation whose code it runs.

    Raises UnsupportedError for an older GPU than any target. A newer generation gets the newest target, whose PTX it compiles.
    """
    known = [target for target in _NAMED if isinstance(target, GpuTarget) and target.sm <= sm]
    if not known:
        raise UnsupportedError(f"there is no target for a GPU of sm_{sm}", hint="sm_80 is the oldest generation supported")
    return max(known, key=lambda target: target.sm)


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
    return replace(base, name="native", features=(*base.features, *extra))
