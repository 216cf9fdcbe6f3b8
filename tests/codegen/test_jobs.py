"""Compiling many modules: workers, errors, the cache."""

from __future__ import annotations

import io
import os
import time

import pytest

from tcompile.codegen import cpu_object, worker
from tcompile.codegen.cache import Cache, default_cache
from tcompile.codegen.cpu_object import CodegenError
from tcompile.codegen.jobs import cache_key, compile_kernels
from tcompile.ir.target import named_target

TARGET = named_target("x86-64-v3")


def text(name: str, value: int = 0) -> str:
    return f'target triple = "{TARGET.triple}"\ndefine i32 @{name}() {{\n  ret i32 {value}\n}}\n'


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_objects_come_in_the_order_of_the_modules(workers):
    modules = [(f"m{k}", text(f"m{k}", k)) for k in range(5)] + [("again", text("m1", 1))]
    seen = []
    objects = compile_kernels(modules, TARGET, workers=workers, progress=lambda *what: seen.append(what), cache=None)
    assert objects == [cpu_object.compile_module(code, TARGET) for _, code in modules]
    assert [(done, total) for done, total, _ in seen] == [(k, 5) for k in range(6)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_refused_module_is_named(workers):
    modules = [("good", text("good")), ("bad one", "define i32 @f() { ret i64 0 }")]
    with pytest.raises(CodegenError, match="module bad one: LLVM refuses"):
        compile_kernels(modules, TARGET, workers=workers, cache=None)


def test_a_fatal_error_of_llvm_is_a_named_error(capfd):
    body = 'call void asm sideeffect "no such instruction", ""()'
    fatal = f'target triple = "{TARGET.triple}"\ndefine void @f() {{\n  {body}\n  ret void\n}}\n'
    with pytest.raises(CodegenError, match="module fatal one"):
        compile_kernels([("fatal one", fatal)], TARGET, workers=1, cache=None)


def test_a_process_that_dies_is_a_named_error():
    process = worker.Worker()
    process._process.kill()
    with pytest.raises(CodegenError, match="module m: the compiler process died"):
        process.compile("m", text("m"), TARGET)
    process.close()


def test_serving_ends_with_the_requests():
    requests, responses = io.BytesIO(), io.BytesIO()
    worker._send(requests, {"triple": TARGET.triple, "cpu": TARGET.cpu, "features": []}, text("f").encode())
    worker.serve(io.BytesIO(requests.getvalue()), responses)
    head, data = worker._receive(io.BytesIO(responses.getvalue()))
    assert head["bytes"] == len(data) and data == cpu_object.compile_module(text("f"), TARGET)


def test_cached_objects_are_not_compiled_again(tmp_path, monkeypatch):
    cache, modules = Cache(tmp_path), [("m", text("m"))]
    first = compile_kernels(modules, TARGET, cache=cache)
    monkeypatch.setattr(cpu_object, "compile_module", None)
    assert compile_kernels(modules, TARGET, cache=cache) == first


def test_keys_tell_texts_targets_and_features_apart():
    other = named_target("x86-64-v4")
    keys = {cache_key(code, target) for code in ("a", "b") for target in (TARGET, other)}
    assert len(keys) == 4


def test_a_damaged_entry_is_a_miss(tmp_path):
    cache = Cache(tmp_path)
    cache.put("ab12", b"data")
    assert cache.get("ab12") == b"data"
    path = tmp_path / "ab" / "12"
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.get("ab12") is None and not path.exists()


def test_eviction_drops_what_was_used_longest_ago(tmp_path):
    cache = Cache(tmp_path, limit=4 * (1000 + 32))
    for k in range(6):
        cache.put(f"aa{k}", bytes(1000))
        os.utime(tmp_path / "aa" / str(k), (time.time() - 100 + k,) * 2)
    cache.get("aa0")
    cache.evict()
    assert [k for k in range(6) if cache.get(f"aa{k}")] == [0, 4, 5]


def test_entries_are_looked_at_now_and_then(tmp_path):
    limit = 2 * (1000 + 32)
    for k in range(6):
        Cache(tmp_path, limit).put(f"aa{k}", bytes(1000))  # one after the other, as processes come and go
    assert len(list((tmp_path / "aa").iterdir())) == 6
    past = time.time() - 3600
    os.utime(tmp_path / "looked", (past, past))
    Cache(tmp_path, limit).put("ab0", bytes(1000))
    assert len([*(tmp_path / "aa").iterdir(), *(tmp_path / "ab").iterdir()]) == 1


def test_the_environment_chooses_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TCOMPILE_CACHE_DIR", str(tmp_path))
    assert default_cache().directory == tmp_path / "objects"
    monkeypatch.setenv("TCOMPILE_CACHE_DIR", "")
    assert default_cache() is None
    monkeypatch.delenv("TCOMPILE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache().directory == tmp_path / "xdg" / "tcompile" / "objects"


def test_a_directory_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        Cache(tmp_path / "file").put("ab12", b"data")
