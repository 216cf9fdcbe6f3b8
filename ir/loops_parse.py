"""Reads the text of kernels back (the grammar is shown in ``ir/loops_text.py``).

Names must be words (as ``codegen/canonical.py`` gives them). What parses may still break an invariant: ``ir/loops_verify.py``
says so. Line breaks and indentation mean nothing, but that a mask stands on the line of its access; ``;`` starts a comment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from tcompile.errors import Error, InvalidModelError
from tcompile.ir import dims, dtypes, elementwise
from tcompile.ir.dims import DimLike, Shape
from tcompile.ir.dtypes import BOOL, DType
from tcompile.ir.loops import (
    Access,
    Alloc,
    Atomic,
    Barrier,
    Bitcast,
    Block,
    Cast,
    Check,
    CommitAsync,
    Const,
    CopyAsync,
    Expr,
    For,
    If,
    Index,
    Kernel,
    Let,
    Load,
    LoopKind,
    Op,
    Param,
    Prefetch,
    Scope,
    Select,
    Shuffle,
    Space,
    Status,
    Stmt,
    Store,
    Tile,
    TileOp,
    Var,
    WaitAsync,
    While,
)

_SPACE = re.compile(r"(?:\s|;[^\n]*)*")
_NAME = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)
_KERNEL_NAME = re.compile(r"[^\s(]+")
_NUMBER = re.compile(r"-?(?:inf|nan|\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?=:)")
_INTEGER = re.compile(r"-?\d+")
_SHARED = re.compile(r"\$\d+")
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LOOPS = {"for": LoopKind.SERIAL, **{kind.value: kind for kind in LoopKind}}


def parse_kernel(text: str) -> Kernel:
    """The kernel of a text. Raises InvalidModelError naming the line of what it cannot read."""
    parser = _Parser(text)
    try:
        kernel = parser.kernel()
        parser.end()
        return kernel
    except (_Unexpected, KeyError, ValueError, Error) as error:
        line = text.count("\n", 0, parser.at) + 1
        rest = text[parser.at :].split("\n", 1)[0][:60]
        raise InvalidModelError(f"kernel text, line {line}: {error} at {rest!r}") from error


class _Unexpected(Exception):
    pass


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.buffers: dict[str, DType] = {}
        self.variables: dict[str, DType] = {}
        self.shared: dict[str, Expr] = {}

    # Tokens -------------------------------------------------------------------------------------------

    def skip(self) -> None:
        self.at = _SPACE.match(self.text, self.at).end()

    def take(self, token: str) -> bool:
        self.skip()
        found = self.text.startswith(token, self.at)
        if found and token[-1].isalnum():  # a keyword, not the head of a longer name
            found = not re.match(r"\w", self.text[self.at + len(token) : self.at + len(token) + 1])
        self.at += len(token) * found
        return found

    def expect(self, token: str) -> None:
        if not self.take(token):
            raise _Unexpected(f"expected {token!r}")

    def match(self, pattern: re.Pattern[str]) -> str | None:
        self.skip()
        found = pattern.match(self.text, self.at)
        if found is None:
            return None
        self.at = found.end()
        return found.group()

    def need(self, pattern: re.Pattern[str], what: str) -> str:
        found = self.match(pattern)
        if found is None:
            raise _Unexpected(f"expected {what}")
        return found

    def name(self) -> str:
        return self.need(_NAME, "a name")

    def dtype(self) -> DType:
        return dtypes.BY_NAME[self.name()]

    def list(self, end: str, item: Callable[[], object]) -> list:
        """Items between commas up to ``end``."""
        items: list = []
        while not self.take(end):
            if items:
                self.expect(",")
            items.append(item())
        return items

    def dim(self) -> DimLike:
        """An index expression: everything up to a comma or bracket of the outer level, or the end of the words of one."""
        self.skip()
        depth, start = 0, self.at
        while self.at < len(self.text):
            char = self.text[self.at]
            if (depth == 0 and char in ",])\n{;") or (depth == 0 and self.text.startswith((" width ", " tag "), self.at)):
                break
            depth += (char == "(") - (char == ")")
            self.at += 1
        return dims.parse(self.text[start : self.at])

    def indices(self) -> Shape:
        self.expect("[")
        return tuple(self.list("]", self.dim))

    def end(self) -> None:
        self.skip()
        if self.at < len(self.text):
            raise _Unexpected("expected the end")

    # Kernel and statements ----------------------------------------------------------------------------

    def kernel(self) -> Kernel:
        self.expect("kernel")
        name = self.need(_KERNEL_NAME, "the kernel's name")
        self.expect("(")
        params = self.list(")", self.param)
        self.expect("dims")
        self.expect("(")
        names = self.list(")", self.name)
        aliases = []
        while self.take("alias"):
            aliases.append((int(self.need(_INTEGER, "a position")), int(self.need(_INTEGER, "a position"))))
        flops = self.dim() if self.take("flops") else 0
        tags = {}
        while self.take("tag"):
            key, value = (json.loads(self.need(_STRING, "a string")) for _ in range(2))
            tags[key] = value
        return Kernel(name, tuple(params), tuple(names), self.block(), tuple(aliases), flops, tags)

    def param(self) -> Param:
        name = self.name()
        self.expect(":")
        access = Access(self.name())
        self.buffers[name] = self.dtype()
        shape = self.indices()
        return Param(name, self.buffers[name], shape, access, self.dtype() if self.take("of") else None)

    def block(self) -> Block:
        self.expect("{")
        outer = dict(self.buffers), dict(self.variables)
        statements: list[Stmt] = []
        while not self.take("}"):
            shared = self.match(_SHARED)
            if shared is None:
                statements.append(self.statement())
            else:
                self.expect("=")
                self.shared[shared] = self.expr()
        self.buffers, self.variables = outer
        return tuple(statements)

    def statement(self) -> Stmt:
        word = self.name()
        match word:
            case "store":
                buffer, indices = self.name(), self.indices()
                mask = self.mask()
                self.expect("=")
                return Store(buffer, indices, self.expr(), mask)
            case "let":
                name = self.name()
                self.expect("=")
                value = self.expr()
                self.variables[name] = value.dtype
                return Let(name, value)
            case "while":
                return While(self.expr(), self.block())
            case "if":
                return If(self.expr(), self.block(), self.block() if self.take("else") else ())
            case "alloc":
                return self.alloc()
            case "check":
                cond = self.expr()
                self.expect("else")
                return Check(cond, Status[self.name()])
            case "prefetch":
                near = self.take("near")
                return Prefetch(self.name(), self.indices(), near)
        return self.loop(_LOOPS[word]) if word in _LOOPS else self.together(word)

    def together(self, word: str) -> Stmt:
        """The statements of threads that work together."""
        match word:
            case "barrier":
                return Barrier(Scope(self.name()))
            case "copy_async":
                target = self.tile()
                self.expect("=")
                source = self.tile()
                self.expect("elements")
                elements = int(self.need(_INTEGER, "a count"))
                mask = self.mask()
                return CopyAsync(target.buffer, target.indices, source.buffer, source.indices, elements, mask)
            case "commit_async":
                return CommitAsync()
            case "wait_async":
                return WaitAsync(int(self.need(_INTEGER, "a count of groups")))
            case "atomic":
                fn, place = self.name(), self.tile()
                mask = self.mask()
                self.expect("=")
                return Atomic(fn, place.buffer, place.indices, self.expr(), mask)
            case "tile":
                name = self.name()
                self.expect("(")
                return TileOp(name, tuple(self.list(")", self.tile)))
        raise _Unexpected(f"expected a statement, got {word!r}")

    def mask(self) -> Expr | None:
        """A mask, which begins on the line of its access: an ``if`` on the next line is a statement."""
        line = self.text[self.at :].split("\n", 1)[0]
        return self.expr() if line.split(";")[0].strip() and self.take("if") else None

    def tile(self) -> Tile:
        return Tile(self.name(), self.indices())

    def loop(self, kind: LoopKind) -> For:
        var = self.name()
        self.expect("in")
        self.expect("0..")
        extent = self.dim()
        width = int(self.need(_INTEGER, "a width")) if self.take("width") else 1
        return For(var, extent, self.block(), kind, width)

    def alloc(self) -> Alloc:
        name = self.name()
        self.expect(":")
        dtype, shape = self.dtype(), self.indices()
        self.buffers[name] = dtype
        return Alloc(name, dtype, shape, Space(self.name()))

    # Expressions --------------------------------------------------------------------------------------

    def expr(self) -> Expr:
        shared = self.match(_SHARED)
        if shared is not None:
            return self.shared[shared]
        number = self.match(_NUMBER)
        if number is not None:
            self.expect(":")
            dtype = self.dtype()
            return Const(int(number) if _INTEGER.fullmatch(number) else float(number), dtype)
        return self.word()

    def word(self) -> Expr:
        word = self.name()
        match word:
            case "true" | "false":
                return Const(word == "true", BOOL)
            case "load":
                buffer = self.name()
                indices = self.indices()
                return Load(buffer, indices, self.buffers[buffer], self.mask())
        if not self.take("("):
            return Var(word, self.variables[word])
        if word == "index":
            index = self.dim()
            self.expect(")")
            return Index(index)
        return self.call(word)

    def call(self, word: str) -> Expr:
        match word:
            case "cast" | "bitcast":
                arg = self.expr()
                self.expect(",")
                dtype = self.dtype()
                wrap = self.take(",") and self.take("wrap")
                self.expect(")")
                return Bitcast(arg, dtype) if word == "bitcast" else Cast(arg, dtype, not wrap)
            case "select":
                return Select(*self.list(")", self.expr))
            case "shuffle":
                arg = self.expr()
                self.expect(",")
                xor = int(self.need(_INTEGER, "a lane mask"))
                self.expect(")")
                return Shuffle(arg, xor)
        args = tuple(self.list(")", self.expr))
        return Op(word, args, elementwise.result_dtype(word, [arg.dtype for arg in args]))
