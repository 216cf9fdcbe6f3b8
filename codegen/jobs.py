"""Many LLVM modules to objects: from the cache, in this process where there is little to do, else in workers."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence

from tcompile.codegen import cpu_object
from tcompile.codegen.cache import Cache, default_cache
from tcompile.codegen.cpu_object import CodegenError
from tcompile.codegen.worker import Worker
from tcompile.ir.target import Target

Module = tuple[str, str]  # (name for messages, LLVM IR text)
Progress = Callable[[int, int, str], None]  # (modules done, of all, name of the last one); at first those of the cache, without

SMALL = 300_000  # bytes of text: less than this compiles here sooner than workers start


def cache_key(text: str, target: Target) -> str:
    """The hash of everything that an object is made from."""
    head = json.dumps([cpu_object.VERSION, cpu_object.llvm_version(), target.triple, target.cpu, target.features])
    return hashlib.sha256(f"{head}\n{text}".encode()).hexdigest()


def compile_kernels(
    modules: Sequence[Module],
    target: Target,
    workers: int | None = None,
    progress: Progress | None = None,
    cache: Cache | bool | None = True,
) -> list[bytes]:
    """The objects of modules, in their order; equal texts are compiled once.

    ``workers`` is the number of processes (default: the CPUs this process may use; 0: none, all in this process).
    ``cache``: True for the default one, False or None for none. Raises CodegenError naming the module that failed.
    """
    kept = default_cache() if cache is True else cache or None
    keys = [cache_key(text, target) for _, text in modules]
    objects: dict[str, bytes] = {}
    missing: dict[str, Module] = {}
    for key, module in zip(keys, modules, strict=True):
        data = kept.get(key) if kept is not None and key not in objects else None
        if data is not None:
            objects[key] = data
        elif key not in objects:
            missing.setdefault(key, module)
    report = _Report(progress, len(objects) + len(missing), len(objects))

    def done(key: str, name: str, data: bytes) -> None:
        objects[key] = data
        if kept is not None:
            kept.put(key, data)
        report.one(name)

    _compile(missing, target, _worker_count(workers, missing), done)
    return [objects[key] for key in keys]


class _Report:
    def __init__(self, progress: Progress | None, total: int, done: int) -> None:
        self.progress, self.total, self.done = progress, total, done
        if progress is not None:
            progress(done, total, "")

    def one(self, name: str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, name)


def _worker_count(asked: int | None, missing: dict[str, Module]) -> int:
    if asked is None and sum(len(text) for _, text in missing.values()) < SMALL:
        return 0
    return min(_cpus() if asked is None else asked, len(missing))


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compile(missing: dict[str, Module], target: Target, workers: int, done: Callable[[str, str, bytes], None]) -> None:
    if workers == 0:
        for key, (name, text) in missing.items():
            try:
                done(key, name, cpu_object.compile_module(text, target))
            except CodegenError as error:
                raise CodegenError(f"module {name}: {error}") from error
        return
    _Pool(missing, target, workers, done).run()


class _Pool:
    """Worker processes, each driven by a thread here; the longest texts go first. The first error stops all."""

    def __init__(self, missing: dict[str, Module], target: Target, workers: int, done: Callable[[str, str, bytes], None]) -> None:
        self.left = sorted(missing.items(), key=lambda item: len(item[1][1]))
        self.target, self.done = target, done
        self.workers = [Worker() for _ in range(workers)]
        self.lock = threading.Lock()
        self.error: BaseException | None = None

    def run(self) -> None:
        threads = [threading.Thread(target=self._drive, args=(worker,), daemon=True) for worker in self.workers]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self.left = []
            for worker in self.workers:
                worker.close()
        if self.error is not None:
            raise self.error

    def _drive(self, worker: Worker) -> None:
        while True:
            with self.lock:
                if not self.left or self.error is not None:
                    return
                key, (name, text) = self.left.pop()
            try:
                data = worker.compile(name, text, self.target)
                with self.lock:
                    self.done(key, name, data)
            except BaseException as error:
                with self.lock:
                    self.error = self.error or error
                return
