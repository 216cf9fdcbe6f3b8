"""The text of one LLVM function under construction: blocks, scopes, and instructions emitted once.

A scope is a stretch of code entered under control flow: the function, a loop body, a branch. Its *depth* is its
position in the stack of open scopes. An instruction without side effects goes to the end of the current block of
the deepest scope any operand needs, so loop invariants leave their loops as they are written; the same text is
never emitted twice where the first dominates. This is sound because nothing here can trap, and because blocks of
an outer scope get their terminator only once everything nested in them is written.
"""

from __future__ import annotations

from collections.abc import Iterable


class Block:
    """A basic block: its label and its lines. A line may be replaced until the text is made (phi operands)."""

    __slots__ = ("label", "lines")

    def __init__(self, label: str) -> None:
        self.label = label
        self.lines: list[str] = []


class Scope:
    """One level of control flow."""

    __slots__ = ("block", "checked", "memo", "stored", "unconditional")

    def __init__(self, block: Block, unconditional: bool, stored: frozenset[str]) -> None:
        self.block = block
        self.memo: dict = {}
        self.unconditional = unconditional  # entered whenever the scope around it gets here
        self.stored = stored  # buffers that code of this scope stores to, at any time
        self.checked = False  # a Check came before: what follows may not run


class Function:
    """Collects blocks; ``pure`` and ``effect`` append instructions."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.allocas: list[str] = []
        self.scopes: list[Scope] = []
        self._names = 0
        self._labels = 0
        self.scopes.append(Scope(self.block("entry"), False, frozenset()))

    @property
    def depth(self) -> int:
        """The depth of the innermost scope."""
        return len(self.scopes) - 1

    @property
    def current(self) -> Block:
        """The block that code is being appended to."""
        return self.scopes[-1].block

    def block(self, label: str = "") -> Block:
        """A new block, not yet entered; its place in the text is here."""
        if not label:
            self._labels += 1
            label = f"b{self._labels}"
        made = Block(label)
        self.blocks.append(made)
        return made

    def enter(self, block: Block) -> None:
        """Continues the innermost scope in another block, which the one before must dominate."""
        self.scopes[-1].block = block

    def push(self, block: Block, *, unconditional: bool, stored: frozenset[str] = frozenset()) -> None:
        """Opens a scope that starts with ``block``."""
        self.scopes.append(Scope(block, unconditional, stored))

    def pop(self) -> Block:
        """Closes the innermost scope; returns the block it ended in."""
        return self.scopes.pop().block

    def name(self) -> str:
        """A fresh SSA name."""
        self._names += 1
        return f"%v{self._names}"

    def effect(self, text: str) -> None:
        """Appends an instruction without a result at the current place."""
        self.current.lines.append(text)

    def value(self, text: str) -> str:
        """Appends an instruction at the current place; returns its name."""
        name = self.name()
        self.current.lines.append(f"{name} = {text}")
        return name

    def pure(self, text: str, depth: int) -> str:
        """The name of an instruction without side effects whose operands are available at ``depth``."""
        scope = self.scopes[depth]
        found = scope.memo.get(text)
        if found is None:
            found = scope.memo[text] = self.name()
            scope.block.lines.append(f"{found} = {text}")
        return found

    def load(self, text: str, buffer: str, version: int, depth: int) -> tuple[str, int]:
        """The name and depth of a load; it leaves loops that run at least once and do not store to the buffer."""
        key = (text, version)
        for scope_depth in range(depth, len(self.scopes)):
            found = self.scopes[scope_depth].memo.get(key)
            if found is not None:
                return found, scope_depth
        place = self.depth
        while place > depth and self._leaves(self.scopes[place], buffer):
            place -= 1
        scope = self.scopes[place]
        name = scope.memo[key] = self.name()
        scope.block.lines.append(f"{name} = {text}")
        return name, place

    @staticmethod
    def _leaves(scope: Scope, buffer: str) -> bool:
        return scope.unconditional and not scope.checked and buffer not in scope.stored

    def checked(self) -> None:
        """What follows in all open scopes may not be reached."""
        for scope in self.scopes:
            scope.checked = True

    def alloca(self, type_: str, align: int) -> str:
        """Memory of the function's frame."""
        name = self.name()
        self.allocas.append(f"{name} = alloca {type_}, align {align}")
        return name

    def text(self) -> Iterable[str]:
        """The lines of the body."""
        for position, block in enumerate(self.blocks):
            yield f"{block.label}:"
            if position == 0:
                yield from self.allocas
            yield from block.lines
