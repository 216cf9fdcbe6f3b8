"""Work in a process of its own: one that hangs or dies is a line of the report, and takes nothing with it.

A CUDA error such as an illegal address ends the context that it happened in: the process it happened in is replaced.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from tcompile.errors import Error

_LOST = ("the device failed", "CUDA error", "CUDA_ERROR", "CUBLAS_STATUS", "CUDNN_STATUS")  # of a context that answers nothing more


class Failed(Error):
    """What the work raised, or that it took too long, or that its process died."""


class Apart:
    """A process that does one piece of work after the other. Started when it is needed; ``close`` ends it."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Connection | None = None

    def call(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
        """``function(*arguments)``, both of which can be pickled, within a time. Raises Failed."""
        if self._process is None or not self._process.is_alive():
            self._start()
        try:
            self._pipe.send((function, arguments))
            if not self._pipe.poll(max(seconds, 0.1)):
                self.close()
                raise Failed(f"no answer within {seconds:.0f} s")
            done, result = self._pipe.recv()
        except (EOFError, OSError) as error:
            status = self._status()
            self.close()
            raise Failed(f"its process died with status {status}") from error
        if done:
            return result
        if any(text in result for text in _LOST):
            self.close()
        raise Failed(result)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = self._pipe = None

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def _status(self) -> int | None:
        self._process.join(1)
        return self._process.exitcode


def _serve(pipe: Connection) -> None:
    """The process: work until the other side is gone."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of the device's memory for itself
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((True, function(*arguments)))
        except Exception as error:
            pipe.send((False, f"{type(error).__name__}: {str(error)[:600]}{_place(error)}"))


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return "" if isinstance(error, Error) or not frames else f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})"
