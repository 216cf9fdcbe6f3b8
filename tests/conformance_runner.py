"""The process that loads a case's artifact and runs it, where the compiler cannot be imported; and how to talk to it.

``python -m tests.conformance_runner`` reads (artifact, inputs) from its standard input and answers with the outputs.
"""

from __future__ import annotations

import pickle
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

RUN_SECONDS = 60
_ROOT = Path(__file__).parents[1]


class Runner:
    """A process that can load artifacts but not compile: it survives the crash of a case by starting anew."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def run(self, artifact: bytes, inputs: list) -> list[np.ndarray]:
        """Outputs in order; raises RuntimeError with the runner's error, or with its death."""
        if self.process is None or self.process.poll() is not None:
            command = [sys.executable, "-m", "tests.conformance_runner"]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT)
        try:
            send(self.process.stdin, (artifact, inputs))
            ok, payload = receive(self.process.stdout)
        except (EOFError, BrokenPipeError, struct.error) as error:
            code = self.process.wait()
            raise RuntimeError(f"CRASH: the run ended the process with status {code}") from error
        if not ok:
            raise RuntimeError(payload)
        return payload


def send(pipe, payload) -> None:
    """One length-prefixed pickle."""
    data = pickle.dumps(payload)
    pipe.write(struct.pack("<q", len(data)) + data)
    pipe.flush()


def receive(pipe):
    """Reads what ``send`` wrote; EOFError at the end."""
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError
    return pickle.loads(pipe.read(struct.unpack("<q", head)[0]))


class Forbidden:
    """An import hook that refuses the compiler's modules."""

    names = ("onnx", "llvmlite", "tcompile.ir", "tcompile.passes", "tcompile.codegen")

    def find_spec(self, name, path=None, target=None):
        """Raises ImportError for a refused module or its children."""
        if any(name == banned or name.startswith(banned + ".") for banned in self.names):
            raise ImportError(f"{name} may not be imported by the runner")


def main() -> None:
    """The runner's loop: artifact and inputs in, outputs out."""
    sys.meta_path.insert(0, Forbidden())
    import tcompile

    assert not any(name in sys.modules for name in Forbidden.names)
    output, sys.stdout = sys.stdout.buffer, sys.stderr
    while True:
        try:
            artifact, inputs = receive(sys.stdin.buffer)
        except EOFError:
            return
        signal.alarm(RUN_SECONDS)
        try:
            executable = tcompile.load(artifact, threads=1)
            named = {spec.name: value for spec, value in zip(executable.inputs, inputs, strict=True)}
            reply = True, list(executable.run(named).values())
        except Exception as error:
            reply = False, f"{type(error).__name__}: {error}"
        signal.alarm(0)
        send(output, reply)


if __name__ == "__main__":
    main()
