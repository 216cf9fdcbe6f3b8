"""Tiny models written by hand in LLVM IR: kernels, entries, and the programs that describe them."""

from __future__ import annotations

import llvmlite.binding as llvm
import numpy as np

from tcompile.codegen.artifact import Build, write_artifact
from tcompile.codegen.link import LinkedImage, link
from tcompile.codegen.signature import Site, place_weights
from tcompile.ir.dims import Range, symbol
from tcompile.ir.dtypes import F32, I64
from tcompile.ir.loops import Kernel
from tcompile.ir.program import BindDim, Buffer, Call, Program, Role
from tcompile.ir.target import Target

ARCH = llvm.get_default_triple().split("-")[0].replace("arm64", "aarch64")

TARGET = Target("test", f"{ARCH}-unknown-linux-gnu", "x86-64" if ARCH == "x86_64" else "generic")

_FIELDS = (
    "host", "session", "weights", "arena", "inputs", "outputs", "dims", "output_shapes", "arena_bytes", "scratch_bytes",
    "scratch", "failed_call", "failed_value", "threads", "profile",
)  # fmt: skip

# f(frame) accessors and the host's functions, under names; inlined by the optimiser
_PRELUDE = "\n".join(
    f"""
define internal i64 @{name}(ptr %frame) alwaysinline {{
  %at = getelementptr i64, ptr %frame, i64 {i}
  %value = load i64, ptr %at
  ret i64 %value
}}
define internal ptr @{name}_at(ptr %frame, i64 %k) alwaysinline {{
  %at = getelementptr ptr, ptr %frame, i64 {i}
  %base = load ptr, ptr %at
  %slot = getelementptr i64, ptr %base, i64 %k
  ret ptr %slot
}}
define internal void @set_{name}(ptr %frame, i64 %value) alwaysinline {{
  %at = getelementptr i64, ptr %frame, i64 {i}
  store i64 %value, ptr %at
  ret void
}}"""
    for i, name in enumerate(_FIELDS)
)


def assemble(text: str, *, triple: str | None = None, optimise: bool = True) -> bytes:
    """The relocatable object of LLVM IR text."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple or llvm.get_default_triple()).create_target_machine(reloc="pic", codemodel="small", opt=2)
    module = llvm.parse_assembly(text)
    module.verify()
    if optimise:
        builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(1))
        builder.getModulePassManager().run(module, builder)
    return machine.emit_object(module)


def image(body: str) -> LinkedImage:
    """Links a hand-written module; ``body`` may use the prelude's accessors."""
    return link([assemble(_PRELUDE + body)])


def kernel(name: str, flops: object = 0) -> Kernel:
    """A stand-in for what the hand-written code does, so that the call table has an entry."""
    return Kernel(name, (), (), (), flops=flops)


_ADD = """
define i32 @add(ptr %args, i64 %begin, i64 %end, ptr %scratch) {
  %xp = load ptr, ptr %args
  %a1 = getelementptr i64, ptr %args, i64 1
  %yp = load ptr, ptr %a1
  %a2 = getelementptr i64, ptr %args, i64 2
  %wp = load ptr, ptr %a2
  %a3 = getelementptr i64, ptr %args, i64 3
  %op = load ptr, ptr %a3
  %first = mul i64 %begin, 3
  %last = mul i64 %end, 3
  br label %head
head:
  %i = phi i64 [ %first, %0 ], [ %next, %body ]
  %more = icmp slt i64 %i, %last
  br i1 %more, label %body, label %done
body:
  %column = urem i64 %i, 3
  %xa = getelementptr float, ptr %xp, i64 %i
  %ya = getelementptr float, ptr %yp, i64 %i
  %wa = getelementptr float, ptr %wp, i64 %column
  %x = load float, ptr %xa
  %y = load float, ptr %ya
  %w = load float, ptr %wa
  %xy = fadd float %x, %y
  %r = fadd float %xy, %w
  %oa = getelementptr float, ptr %op, i64 %i
  store float %r, ptr %oa
  %next = add i64 %i, 1
  br label %head
done:
  ret i32 0
}
define i32 @tc_prepare(ptr %frame) {
  %np = call ptr @dims_at(ptr %frame, i64 0)
  %n = load i64, ptr %np
  %s0 = call ptr @output_shapes_at(ptr %frame, i64 0)
  store i64 %n, ptr %s0
  %s1 = call ptr @output_shapes_at(ptr %frame, i64 1)
  store i64 3, ptr %s1
  %bytes = mul i64 %n, 12
  call void @set_arena_bytes(ptr %frame, i64 %bytes)
  call void @set_scratch_bytes(ptr %frame, i64 100)
  ret i32 0
}
define i32 @tc_run(ptr %frame) {
  %args = alloca i64, i64 4
  %x0 = call ptr @inputs_at(ptr %frame, i64 0)
  %x = load i64, ptr %x0
  %y0 = call ptr @inputs_at(ptr %frame, i64 1)
  %y = load i64, ptr %y0
  %w = call i64 @weights(ptr %frame)
  %o0 = call ptr @outputs_at(ptr %frame, i64 0)
  %o = load i64, ptr %o0
  store i64 %x, ptr %args
  %a1 = getelementptr i64, ptr %args, i64 1
  store i64 %y, ptr %a1
  %a2 = getelementptr i64, ptr %args, i64 2
  store i64 %w, ptr %a2
  %a3 = getelementptr i64, ptr %args, i64 3
  store i64 %o, ptr %a3
  %np = call ptr @dims_at(ptr %frame, i64 0)
  %n = load i64, ptr %np
  %session = call i64 @session(ptr %frame)
  %session_p = inttoptr i64 %session to ptr
  %pf = call ptr @host_at(ptr %frame, i64 0)
  %parallel_for = load ptr, ptr %pf
  %profile = call i64 @profile(ptr %frame)
  %wanted = icmp ne i64 %profile, 0
  %mp = call ptr @host_at(ptr %frame, i64 3)
  %mark = load ptr, ptr %mp
  br i1 %wanted, label %before, label %work
before:
  call void %mark(ptr %session_p, i64 0)
  br label %work
work:
  %status = call i32 %parallel_for(ptr %session_p, ptr @add, ptr %args, i64 %n, i64 4)
  br i1 %wanted, label %after, label %done
after:
  call void %mark(ptr %session_p, i64 1)
  br label %done
done:
  ret i32 %status
}
"""

WEIGHT = np.array([10.0, 20.0, 30.0], np.float32)
ADD_LIMIT = 100000


def add_program() -> Program:
    """sum = x + y + w over f32[n, 3], n in 1..100000, in parallel over n."""
    n = symbol("n")
    x, y = (Buffer(name, F32, (n, 3), Role.INPUT) for name in "xy")
    total = Buffer("sum", F32, (n, 3), Role.OUTPUT)
    weight = Buffer("w", F32, (3,), Role.WEIGHT, WEIGHT)
    body = (Call(kernel("add", flops=n * 6), (x, y, weight, total), (), ("node_add", "node_bias")),)
    return Program("adder", (x, y), (total,), ("sum",), body, {"n": Range(1, ADD_LIMIT)}, ("n",), {"made": "by hand"})


def add_image() -> LinkedImage:
    """The code of ``add_program``."""
    return image(_ADD)


def add_artifact() -> bytes:
    """The artifact of ``add_program``."""
    program = add_program()
    return write_artifact(program, Build(add_image(), place_weights(program.body[0].buffers[2:3])), TARGET)


_POSITIVE = """
define i32 @tc_prepare(ptr %frame) {
  %s0 = call ptr @output_shapes_at(ptr %frame, i64 0)
  store i64 -1, ptr %s0
  call void @set_arena_bytes(ptr %frame, i64 0)
  call void @set_scratch_bytes(ptr %frame, i64 0)
  ret i32 0
}
define i32 @tc_run(ptr %frame) {
  %session = call i64 @session(ptr %frame)
  %session_p = inttoptr i64 %session to ptr
  %gp = call ptr @host_at(ptr %frame, i64 1)
  %grow = load ptr, ptr %gp
  %np = call ptr @dims_at(ptr %frame, i64 0)
  %n = load i64, ptr %np
  %x0 = call ptr @inputs_at(ptr %frame, i64 0)
  %x = load ptr, ptr %x0
  br label %head
head:
  %i = phi i64 [ 0, %0 ], [ %next, %step ]
  %m = phi i64 [ 0, %0 ], [ %m2, %step ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %body, label %done
body:
  %xa = getelementptr i64, ptr %x, i64 %i
  %v = load i64, ptr %xa
  %positive = icmp sgt i64 %v, 0
  br i1 %positive, label %keep, label %step
keep:
  %m1 = add i64 %m, 1
  %bytes = mul i64 %m1, 8
  %old = mul i64 %m, 8
  %block = call ptr %grow(ptr %session_p, i64 5, i64 %bytes, i64 %old)
  %to = getelementptr i64, ptr %block, i64 %m
  store i64 %v, ptr %to
  br label %step
step:
  %m2 = phi i64 [ %m, %body ], [ %m1, %keep ]
  %next = add i64 %i, 1
  br label %head
done:
  %final = mul i64 %m, 8
  %kept = call ptr %grow(ptr %session_p, i64 5, i64 %final, i64 %final)
  %o0 = call ptr @outputs_at(ptr %frame, i64 0)
  store ptr %kept, ptr %o0
  %s0 = call ptr @output_shapes_at(ptr %frame, i64 0)
  store i64 %m, ptr %s0
  %mp = call ptr @dims_at(ptr %frame, i64 1)
  store i64 %m, ptr %mp
  %many = icmp sgt i64 %m, 1000
  br i1 %many, label %refuse, label %good
refuse:
  call void @set_failed_call(ptr %frame, i64 -1)
  call void @set_failed_value(ptr %frame, i64 %m)
  ret i32 2
good:
  ret i32 0
}
"""


def positive_artifact() -> bytes:
    """kept = the positive elements of x: i64[n]; more than 1000 of them stop the run."""
    n, m = symbol("n"), symbol("m")
    x = Buffer("x", I64, (n,), Role.INPUT)
    count = Buffer("count", I64, (), Role.TEMP)
    kept = Buffer("kept", I64, (m,), Role.OUTPUT)
    body = (Call(kernel("positive"), (x, kept, count), (), ("node_nonzero",)), BindDim("m", count, Range(0, 1000), ("node_nonzero",)))
    program = Program("positive", (x,), (kept,), ("kept",), body, {"n": Range(0, None), "m": Range(0, 1000)}, ("n",))
    return write_artifact(program, Build(image(_POSITIVE), growing=(Site("kept", ("node_nonzero",)),)), TARGET)


_ENDLESS = """
define i32 @tc_prepare(ptr %frame) {
  call void @set_arena_bytes(ptr %frame, i64 0)
  call void @set_scratch_bytes(ptr %frame, i64 0)
  ret i32 0
}
define i32 @tc_run(ptr %frame) {
  %session = call i64 @session(ptr %frame)
  %session_p = inttoptr i64 %session to ptr
  %pp = call ptr @host_at(ptr %frame, i64 2)
  %poll = load ptr, ptr %pp
  br label %head
head:
  %status = call i32 %poll(ptr %session_p)
  %stop = icmp ne i32 %status, 0
  br i1 %stop, label %done, label %head
done:
  ret i32 %status
}
"""


def endless_artifact() -> bytes:
    """Runs until somebody stops it. x: f32[] -> y: f32[]."""
    x, y = Buffer("x", F32, (), Role.INPUT), Buffer("y", F32, (), Role.OUTPUT)
    program = Program("endless", (x,), (y,), ("y",), (Call(kernel("spin"), (x, y), (), ("node_loop",)),), {}, ())
    return write_artifact(program, Build(image(_ENDLESS)), TARGET)


_FAILING = """
define i32 @tc_prepare(ptr %frame) {
  call void @set_arena_bytes(ptr %frame, i64 0)
  call void @set_scratch_bytes(ptr %frame, i64 0)
  ret i32 0
}
define i32 @tc_run(ptr %frame) {
  call void @set_failed_call(ptr %frame, i64 0)
  ret i32 1
}
"""


def failing_artifact() -> bytes:
    """Stops with an index out of range in its only kernel. x: f32[] -> y: f32[]."""
    x, y = Buffer("x", F32, (), Role.INPUT), Buffer("y", F32, (), Role.OUTPUT)
    program = Program("failing", (x,), (y,), ("y",), (Call(kernel("gather"), (x, y), (), ("node_gather", "node_relu")),), {}, ())
    return write_artifact(program, Build(image(_FAILING)), TARGET)


_TURNS = """
define i32 @clear(ptr %args, i64 %begin, i64 %end, ptr %scratch) {
  %out = load ptr, ptr %args
  br label %head
head:
  %i = phi i64 [ %begin, %0 ], [ %next, %body ]
  %more = icmp slt i64 %i, %end
  br i1 %more, label %body, label %done
body:
  %at = getelementptr i64, ptr %out, i64 %i
  store volatile i64 0, ptr %at
  %next = add i64 %i, 1
  br label %head
done:
  ret i32 0
}
; adds 1 to its elements, through its scratch: shared scratch would lose some
define i32 @turn(ptr %args, i64 %begin, i64 %end, ptr %scratch) {
  %out = load ptr, ptr %args
  br label %head
head:
  %i = phi i64 [ %begin, %0 ], [ %next, %body ]
  %more = icmp slt i64 %i, %end
  br i1 %more, label %body, label %done
body:
  %at = getelementptr i64, ptr %out, i64 %i
  %old = load i64, ptr %at
  store volatile i64 %old, ptr %scratch
  %kept = load volatile i64, ptr %scratch
  %new = add i64 %kept, 1
  store i64 %new, ptr %at
  %next = add i64 %i, 1
  br label %head
done:
  ret i32 0
}
; every iteration but the first fails with its number as the status
define i32 @fail(ptr %args, i64 %begin, i64 %end, ptr %scratch) {
  %first = call i64 @llvm.smax.i64(i64 %begin, i64 1)
  %fails = icmp slt i64 %first, %end
  %number = select i1 %fails, i64 %first, i64 0
  %status = trunc i64 %number to i32
  ret i32 %status
}
declare i64 @llvm.smax.i64(i64, i64)
define i32 @tc_prepare(ptr %frame) {
  %np = call ptr @dims_at(ptr %frame, i64 0)
  %n = load i64, ptr %np
  %s0 = call ptr @output_shapes_at(ptr %frame, i64 0)
  store i64 %n, ptr %s0
  call void @set_arena_bytes(ptr %frame, i64 0)
  call void @set_scratch_bytes(ptr %frame, i64 8)
  ret i32 0
}
define i32 @tc_run(ptr %frame) {
  %args = alloca i64
  %o0 = call ptr @outputs_at(ptr %frame, i64 0)
  %o = load i64, ptr %o0
  store i64 %o, ptr %args
  %x0 = call ptr @inputs_at(ptr %frame, i64 0)
  %x = load ptr, ptr %x0
  %turns = load i64, ptr %x
  %np = call ptr @dims_at(ptr %frame, i64 0)
  %n = load i64, ptr %np
  %session = call i64 @session(ptr %frame)
  %session_p = inttoptr i64 %session to ptr
  %pf = call ptr @host_at(ptr %frame, i64 0)
  %parallel_for = load ptr, ptr %pf
  %cleared = call i32 %parallel_for(ptr %session_p, ptr @clear, ptr %args, i64 %n, i64 1)
  %negative = icmp slt i64 %turns, 0
  br i1 %negative, label %failing, label %head
head:
  %i = phi i64 [ 0, %0 ], [ %next, %body ]
  %more = icmp slt i64 %i, %turns
  br i1 %more, label %body, label %done
body:
  %extent0 = sub i64 %n, %i
  %extent1 = srem i64 %extent0, %n
  %smaller = icmp slt i64 %extent1, 1
  %extent = select i1 %smaller, i64 %n, i64 %extent1
  %status = call i32 %parallel_for(ptr %session_p, ptr @turn, ptr %args, i64 %n, i64 1)
  %few = call i32 %parallel_for(ptr %session_p, ptr @turn, ptr %args, i64 %extent, i64 3)
  %next = add i64 %i, 1
  br label %head
failing:
  %failed = call i32 %parallel_for(ptr %session_p, ptr @fail, ptr %args, i64 4, i64 1)
  ret i32 %failed
done:
  ret i32 0
}
"""


def turns_artifact() -> bytes:
    """counts[i64[n]]: how often each element was visited in `turns` rounds of two parallel kernels; see ``turns_expected``.

    x: i64[n] holds the number of turns first; a negative one makes a kernel fail.
    """
    n = symbol("n")
    x, counts = Buffer("x", I64, (n,), Role.INPUT), Buffer("counts", I64, (n,), Role.OUTPUT)
    body = (Call(kernel("turn"), (x, counts), (), ("node_turn",)),)
    program = Program("turns", (x,), (counts,), ("counts",), body, {"n": Range(1, None)}, ("n",))
    return write_artifact(program, Build(image(_TURNS)), TARGET)


def turns_expected(n: int, turns: int) -> np.ndarray:
    """What ``turns_artifact`` counts."""
    counts = np.full(n, turns, np.int64)
    for i in range(turns):
        extent = int(np.fmod(n - i, n))
        counts[: n if extent < 1 else extent] += 1
    return counts


NOTHING = """
define i32 @tc_prepare(ptr %frame) {
  call void @set_arena_bytes(ptr %frame, i64 0)
  call void @set_scratch_bytes(ptr %frame, i64 0)
  ret i32 0
}
define i32 @tc_run(ptr %frame) {
  ret i32 0
}
"""
