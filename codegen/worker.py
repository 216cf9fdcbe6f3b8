"""The process that compiles LLVM modules for another: ``python -m tcompile.codegen.worker``.

LLVM works under one lock per process here, and ends its process on a fatal error; so modules are compiled in
processes of their own, several at a time. The protocol, on stdin and stdout, one request after the other:

    request  ::= JSON line {"triple", "cpu", "features", "bytes"}, then that many bytes of LLVM IR text
    response ::= JSON line {"bytes"}, then that many bytes of object; or JSON line {"error"}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from tcompile.codegen.cpu_object import CodegenError, compile_module
from tcompile.ir.target import Target


class Worker:
    """The parent's end of one worker process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tcompile.codegen.worker"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment())

    def compile(self, name: str, text: str, target: Target) -> bytes:
        """The object of a module. Raises CodegenError with the module's name, also where the process died on it."""
        try:
            _send(self._process.stdin, {"triple": target.triple, "cpu": target.cpu, "features": target.features}, text.encode())
            answer, data = _receive(self._process.stdout)
        except (BrokenPipeError, EOFError) as error:
            status = self._process.wait()
            raise CodegenError(
                f"module {name}: the compiler process died (status {status})", hint="LLVM's own message is on stderr above"
            ) from error
        if "error" in answer:
            raise CodegenError(f"module {name}: {answer['error']}")
        return data

    def close(self) -> None:
        """Ends the process; one that still works is stopped."""
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):  # of a request that the process did not live to read
            self._process.stdin.close()
        self._process.stdout.close()


def _environment() -> dict[str, str]:
    """This process's environment, and where it found this package."""
    home = str(Path(find_spec("tcompile").origin).resolve().parent.parent)
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{home}{os.pathsep}{known}" if known else home}


def _send(stream: BinaryIO, head: dict, data: bytes = b"") -> None:
    stream.write(json.dumps({**head, "bytes": len(data)}).encode() + b"\n" + data)
    stream.flush()


def _receive(stream: BinaryIO) -> tuple[dict, bytes]:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    head = json.loads(line)
    data = stream.read(head["bytes"])
    if len(data) < head["bytes"]:
        raise EOFError
    return head, data


def serve(requests: BinaryIO, responses: BinaryIO) -> None:
    """Answers requests until they end."""
    while True:
        try:
            head, text = _receive(requests)
        except EOFError:
            return
        target = Target("", head["triple"], head["cpu"], tuple(head["features"]))
        try:
            _send(responses, {}, compile_module(text.decode(), target))
        except CodegenError as error:
            _send(responses, {"error": str(error)})


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout.buffer, sys.stderr  # nothing that prints may break the protocol
    serve(sys.stdin.buffer, answers)
