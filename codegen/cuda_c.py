"""Loop IR kernels to CUDA C text. Nothing else emits CUDA.

    extern "C" __global__ void __launch_bounds__(128)
    relu(const float *__restrict__ p0, float *__restrict__ p1, const long long d0, int *__restrict__ status)
    // p0: in f32[d0]; p1: out f32[d0]
    // grid floordiv(d0 + 127, 128); block 128
    {
        const int i0 = (int)blockIdx.x;
        ...

One pointer for each parameter, one i64 for each dim, then the status word, which a failing ``Check`` sets to its code if it
is 0. Pointers of parameters are aligned to 16 bytes. Compile with ``-fmad=false`` and without fast math: a product and a sum
are one operation only where the kernel says ``fma``, so that float32 results have the bits of the CPU's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace

from tcompile.codegen.cuda_emit_expressions import Buffer
from tcompile.codegen.cuda_emit_index import Text
from tcompile.codegen.cuda_emit_limits import undominated
from tcompile.codegen.cuda_emit_statements import STATUS_CODES, Statements
from tcompile.codegen.cuda_emit_types import c_name, c_type
from tcompile.codegen.cuda_prelude import prelude
from tcompile.errors import UnsupportedError
from tcompile.ir import dims
from tcompile.ir.dims import DimLike, Range, Ranges
from tcompile.ir.loops import Access, Alloc, Barrier, Block, For, Kernel, LoopKind, Param, Space, TileOp
from tcompile.ir.loops_interpret import walk
from tcompile.ir.loops_verify_gpu import cluster_loop, launch_loops
from tcompile.ir.tileops import LANES, tile_spec

__all__ = [
    "ALIGNMENT",
    "STATIC_SHARED",
    "STATUS_CODES",
    "Emitted",
    "Launch",
    "emit_kernel",
    "emit_limited",
    "emit_module",
    "function_name",
    "launch",
]

ALIGNMENT = 16  # of parameters' pointers, bytes
STATIC_SHARED = 48 * 1024  # bytes of shared memory that need no permission of the launch
_DEPTH = 20000  # expressions may nest deeper than Python's default limit
_NEST = (LoopKind.GRID, LoopKind.CLUSTER, LoopKind.BLOCK)


@dataclass(frozen=True)
class Launch:
    """How a kernel is launched: extents as (x, y, z), and bytes of dynamic shared memory. The blocks of a cluster are neighbours in x.

    A grid with an extent of 0 is not launched. x reaches 2**31 - 1, y and z 65535.
    """

    grid: tuple[DimLike, DimLike, DimLike]
    block: tuple[int, int, int]
    shared_bytes: int  # dynamic: 0 where all of it is static
    static_bytes: int


def function_name(kernel: Kernel) -> str:
    """The name of a kernel's function in C."""
    return c_name(kernel.name)


def launch(kernel: Kernel) -> Launch:
    """The launch shape of a kernel; its extents are expressions of ``kernel.dims``."""
    grid, block = (tuple(loop.extent for loop in reversed(loops)) for loops in launch_loops(kernel))
    cluster = cluster_loop(kernel)
    if cluster is not None:
        grid = ((grid[0] if grid else 1) * cluster.extent, *grid[1:])
    total = sum(size for _, size in _shared(kernel))
    dynamic = _is_dynamic(kernel, total)
    return Launch((*grid, *(1,) * (3 - len(grid))), (*block, *(1,) * (3 - len(block))), total if dynamic else 0, 0 if dynamic else total)


@dataclass(frozen=True)
class Emitted:
    """The text of a module, and for each kernel the expressions over its dims that may be 2**31 - 1 at most when it is launched."""

    text: str
    limits: Mapping[Kernel, tuple[DimLike, ...]]


def emit_limited(kernels: Iterable[Kernel], ranges: Mapping[Kernel, Ranges], roomy: Container[str] = ()) -> Emitted:
    """The text of a module whose indices are 32-bit where no bound says otherwise: whoever launches must check the limits.

    ``ranges`` are those of each kernel's dims. Functions named in ``roomy`` may take registers until one block fills a
    multiprocessor. Raises InvalidModelError, and UnsupportedError for what a GPU thread cannot do.
    """
    used: set[str] = set()
    texts, limits = [], {}
    for kernel in kernels:
        found: set[DimLike] = set()
        shown = replace(kernel, tags={**kernel.tags, "blocks_per_sm": "1"}) if function_name(kernel) in roomy else kernel
        texts.append(_emit(shown, ranges.get(kernel, {}), used, found))
        limits[kernel] = undominated(found)
    return Emitted("\n".join([prelude(used), *texts]), limits)


def emit_module(kernels: Iterable[Kernel], ranges: Ranges | None = None) -> str:
    """The text of a module with several kernels, whose names differ, for dims of any size in their ``ranges``.

    Raises InvalidModelError, and UnsupportedError for what a GPU thread cannot do.
    """
    used: set[str] = set()
    texts = [_emit(kernel, ranges or {}, used, None) for kernel in kernels]
    return "\n".join([prelude(used), *texts])


def emit_kernel(kernel: Kernel, ranges: Ranges | None = None) -> str:
    """The text of a module that holds one kernel."""
    return emit_module((kernel,), ranges)


def _emit(kernel: Kernel, ranges: Ranges, used: set[str], limits: set[DimLike] | None) -> str:
    sys.setrecursionlimit(max(sys.getrecursionlimit(), _DEPTH))
    emitter = Statements(used.add, kernel.body)
    # numbers that are no extents, such as where a slice begins, may be large in any run: the host must not refuse them
    extents = frozenset().union(*(dims.symbols(extent) for param in kernel.params for extent in param.shape))
    emitter.names.base, emitter.names.limits = extents & set(kernel.dims), limits
    emitter.depth = 1
    dim_names = _bind_dims(emitter, kernel, ranges)
    groups = kernel.groups()
    for param in kernel.params:
        emitter.buffers[param.name] = Buffer(
            c_name(param.name), param.dtype, param.shape, Space.GLOBAL, groups[param.name], param.access is not Access.IN
        )
    _nest(emitter, kernel)
    shape = launch(kernel)
    threads = math.prod(shape.block)
    resident = kernel.tags.get("blocks_per_sm")
    bounds = f"{threads}, {int(resident)}" if resident else str(threads)
    arguments = [*_pointers(kernel, groups), *(f"const long long {name}" for name in dim_names), "int *__restrict__ status"]
    cluster = cluster_loop(kernel)
    head = [
        f'extern "C" __global__ void __launch_bounds__({bounds}){f" __cluster_dims__({cluster.extent}, 1, 1)" if cluster else ""}',
        f"{function_name(kernel)}({', '.join(arguments)})",
        f"// {'; '.join(map(_signature, kernel.params))}",
        f"// grid {', '.join(map(str, shape.grid))}; block {', '.join(map(str, shape.block))}; shared {shape.shared_bytes}",
    ]
    return "\n".join([*head, "{", *emitter.lines, "}", ""])


def _signature(param: Param) -> str:
    return f"{c_name(param.name)}: {param.access} {param.dtype}[{', '.join(map(str, param.shape))}]"


def _bind_dims(emitter: Statements, kernel: Kernel, ranges: Ranges) -> list[str]:
    """The names of the arguments for the dims; one that is an int gets an int of its name."""
    arguments = []
    for name in kernel.dims:
        known, word = ranges.get(name, Range()), c_name(name)
        emitter.names.bind(name, Text(word, True), known)
        fits = emitter.names.fits_int(dims.symbol(name))
        if fits:
            emitter.line(f"const int {word} = (int){word}_arg;")
        arguments.append(f"{word}_arg" if fits else word)
        emitter.names.bind(name, Text(word, not fits), known)
    return arguments


def _pointers(kernel: Kernel, groups: dict[str, str]) -> Iterable[str]:
    members = list(groups.values())
    meets = any(isinstance(stmt, Barrier) for stmt in walk(kernel.body))
    for param in kernel.params:
        const = "const " if param.access is Access.IN else ""
        # what threads write for each other to read changes behind this thread's back
        shared = meets and param.access is Access.INOUT
        restrict = "__restrict__ " if members.count(groups[param.name]) == 1 and not shared else ""
        yield f"{const}{c_type(param.dtype)} *{restrict}{c_name(param.name)}"


# The nest of the launch -------------------------------------------------------------------------------------


def _nest(emitter: Statements, kernel: Kernel) -> None:
    """The loops of the launch as built-in variables, then the code of a thread."""
    grid, block = launch_loops(kernel)
    cluster = cluster_loop(kernel)
    builtins = {loop.var: f"blockIdx.{axis}" for loop, axis in zip(reversed(grid), "xyz", strict=False)}
    if cluster is not None:
        builtins |= {loop.var: f"(blockIdx.x / {cluster.extent})" for loop in grid[-1:]} | {cluster.var: f"(blockIdx.x % {cluster.extent})"}
    builtins |= {loop.var: f"threadIdx.{axis}" for loop, axis in zip(reversed(block), "xyz", strict=False)}
    shared = _shared(kernel)
    dynamic = _is_dynamic(kernel, sum(size for _, size in shared))
    places, offset = {}, 0
    for alloc, size in shared:
        places[alloc.name] = offset if dynamic else None
        offset += size
    if dynamic:
        emitter.line(f"extern __shared__ __align__({_alignment(kernel)}) unsigned char shared_memory[];")
    body, loops = kernel.body, (*grid, *([cluster] if cluster else []), *block)
    for loop in loops:
        body = _level(emitter, body, loop, builtins[loop.var], places)
    start = len(emitter.lines)
    emitter.block(body)
    if emitter.checks and emitter.meets:
        emitter.lines.insert(start, "    bool ok = true;  // no check of this thread has failed")


def _level(emitter: Statements, body: Block, loop: For, builtin: str, places: dict[str, int | None]) -> Block:
    for stmt in body:
        if stmt is loop:
            emitter.bind_loop(loop)
            if emitter.names.texts[loop.var].wide and loop.kind is LoopKind.GRID:
                # a grid has less than 2**31 blocks
                emitter.names.bind(loop.var, Text(c_name(loop.var)), Range(0, loop.extent - 1))
            emitter.line(f"const int {c_name(loop.var)} = (int){builtin};")
        elif isinstance(stmt, Alloc):
            _declare_shared(emitter, stmt, places[stmt.name])
        else:
            emitter.let(stmt)
    return loop.body


def _declare_shared(emitter: Statements, stmt: Alloc, offset: int | None) -> None:
    kind, name, count = c_type(stmt.dtype), c_name(stmt.name), max(dims.product(stmt.shape), 1)
    if offset is None:
        emitter.line(f"__shared__ __align__(128) {kind} {name}[{count}];")
    else:
        emitter.line(f"{kind} (&{name})[{count}] = *({kind} (*)[{count}])(shared_memory + {offset});")
    emitter.declare_buffer(stmt)


def _shared(kernel: Kernel) -> list[tuple[Alloc, int]]:
    """The shared buffers of a kernel with their bytes, rounded up to what the next one is aligned to."""
    found, unit = [], _alignment(kernel)
    block = kernel.body
    while block:
        inner: Block = ()
        for stmt in block:
            if isinstance(stmt, Alloc) and stmt.space is Space.SHARED:
                if not all(isinstance(extent, int) for extent in stmt.shape):
                    raise UnsupportedError(f"buffer {stmt.name}: shared memory of the symbolic shape {list(stmt.shape)}")
                found.append((stmt, -(-max(dims.product(stmt.shape), 1) * stmt.dtype.bytes // unit) * unit))
            elif isinstance(stmt, For) and stmt.kind in _NEST:
                inner = stmt.body
        block = inner
    return found


def _alignment(kernel: Kernel) -> int:
    """Of shared buffers, bytes: the rows that four warps multiply change places in groups of 1024."""
    return 1024 if _has_warpgroups(kernel) else 128


def _is_dynamic(kernel: Kernel, shared: int) -> bool:
    """Whether shared memory is the launch's: much of it, or aligned to more than a static array is certain to be."""
    return shared > STATIC_SHARED or (shared > 0 and _has_warpgroups(kernel))


def _has_warpgroups(kernel: Kernel) -> bool:
    return any(isinstance(stmt, TileOp) and tile_spec(stmt.name).lanes > LANES for stmt in walk(kernel.body))
