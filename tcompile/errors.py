"""The errors of every part. This module imports nothing, so that every folder may import it."""

from __future__ import annotations


class Error(Exception):
    """Base of all errors that tcompile raises on purpose: a message, and a hint of what to try."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message}\n  hint: {hint}" if hint else message)
        self.hint = hint


class UnsupportedError(Error):
    """Something valid that tcompile does not do: an op, dtype, option or platform, by name."""


class InvalidModelError(Error):
    """A model or IR that breaks its specification."""


class ArtifactError(Error):
    """An artifact that is damaged, of another version, or for another machine."""


class InputError(Error):
    """A tensor given to a run that does not fit the signature."""


class ExecutionError(Error):
    """A run that stopped: an index out of range, a dimension out of its range, no memory."""


class OutOfMemory(Error):
    """A device that has no room for a model, its arena or a tensor."""
