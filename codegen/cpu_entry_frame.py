"""What the entry and the host share, as LLVM text: fields of ``tc_frame``, the host's table, status codes, helper functions."""

from __future__ import annotations

from tcompile.codegen.cpu_entry_text import Text
from tcompile.ir.loops import Status

# Word offsets in tc_frame and tc_host.
FRAME = (
    "host", "session", "weights", "arena", "inputs", "outputs", "dims", "output_shapes", "arena_bytes", "scratch_bytes", "scratch",
    "failed_call", "failed_value", "threads", "profile",
)  # fmt: skip
HOST = ("parallel_for", "grow", "poll", "mark")
CODES = {status: code for code, status in enumerate(Status, 1)} | {Status.BOUNDS: 12}  # between them, those of the host


def field(text: Text, name: str, kind: str = "ptr") -> str:
    """A field of the frame, read in the prologue."""
    place = text.once(f"getelementptr i64, ptr %frame, i64 {FRAME.index(name)}")
    return text.once(f"load {kind}, ptr {place}, align 8")


def set_field(text: Text, name: str, value: str) -> None:
    place = text.once(f"getelementptr i64, ptr %frame, i64 {FRAME.index(name)}")
    text.line(f"store i64 {value}, ptr {place}, align 8")


def host_function(text: Text, name: str) -> str:
    """A function of the host's table, read in the prologue."""
    place = text.once(f"getelementptr ptr, ptr {field(text, 'host')}, i64 {HOST.index(name)}")
    return text.once(f"load ptr, ptr {place}, align 8")


HELPERS = f"""
declare i64 @llvm.smax.i64(i64, i64)
declare i64 @llvm.smin.i64(i64, i64)

define internal i32 @tc_fail(ptr %frame, i32 %status, i64 %site, i64 %value) noinline #0 {{
  %call = getelementptr i64, ptr %frame, i64 {FRAME.index("failed_call")}
  store i64 %site, ptr %call, align 8
  %place = getelementptr i64, ptr %frame, i64 {FRAME.index("failed_value")}
  store i64 %value, ptr %place, align 8
  ret i32 %status
}}

define internal void @tc_blame(ptr %frame, ptr %block) noinline #0 {{
  %from = getelementptr i64, ptr %block, i64 {FRAME.index("failed_call")}
  %site = load i64, ptr %from, align 8
  %from.value = getelementptr i64, ptr %block, i64 {FRAME.index("failed_value")}
  %value = load i64, ptr %from.value, align 8
  %to = getelementptr i64, ptr %frame, i64 {FRAME.index("failed_call")}
  store i64 %site, ptr %to, align 8
  %to.value = getelementptr i64, ptr %frame, i64 {FRAME.index("failed_value")}
  store i64 %value, ptr %to.value, align 8
  ret void
}}

define internal void @tc_mark(ptr %frame, i64 %call) noinline #0 {{
  %host = load ptr, ptr %frame, align 8
  %place = getelementptr ptr, ptr %host, i64 {HOST.index("mark")}
  %function = load ptr, ptr %place, align 8
  %at = getelementptr i64, ptr %frame, i64 {FRAME.index("session")}
  %session = load ptr, ptr %at, align 8
  call void %function(ptr %session, i64 %call)
  ret void
}}

define internal void @tc_copy(ptr %target, ptr %source, i64 %bytes) noinline #0 {{
entry:
  %apart = icmp ne ptr %target, %source
  br i1 %apart, label %begin, label %done
begin:
  %whole = and i64 %bytes, -32
  %any = icmp sgt i64 %whole, 0
  br i1 %any, label %wide, label %rest
wide:
  %i = phi i64 [ 0, %begin ], [ %next, %wide ]
  %from = getelementptr i8, ptr %source, i64 %i
  %to = getelementptr i8, ptr %target, i64 %i
  %block = load <4 x i64>, ptr %from, align 1
  store <4 x i64> %block, ptr %to, align 1
  %next = add i64 %i, 32
  %more = icmp slt i64 %next, %whole
  br i1 %more, label %wide, label %rest
rest:
  %left = icmp slt i64 %whole, %bytes
  br i1 %left, label %narrow, label %done
narrow:
  %j = phi i64 [ %whole, %rest ], [ %after, %narrow ]
  %source.j = getelementptr i8, ptr %source, i64 %j
  %target.j = getelementptr i8, ptr %target, i64 %j
  %byte = load i8, ptr %source.j, align 1
  store i8 %byte, ptr %target.j, align 1
  %after = add i64 %j, 1
  %again = icmp slt i64 %after, %bytes
  br i1 %again, label %narrow, label %done
done:
  ret void
}}
"""
