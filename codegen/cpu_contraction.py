"""How the writer of one contraction's kernel becomes a template: for the contraction alone, and with what is fused around it."""

from __future__ import annotations

from collections.abc import Callable

from tcompile.codegen.cpu_epilogue import anchor
from tcompile.codegen.draft import Draft, Scope
from tcompile.codegen.templates import Built, template
from tcompile.ir.graph import Node
from tcompile.ir.target import Target

Writer = Callable[[Node, Scope, Target], Draft]


def contraction(op: str, kind: str, name: str) -> Callable[[Writer], Writer]:
    """Registers the writer of ``op`` and of fused regions of a ``kind`` ("conv", "dot") around it, as the template ``name``."""

    def register(writer: Writer) -> Writer:
        def build(node: Node, scope: Scope, target: Target) -> list[Built] | None:
            core = anchor(node)
            if core is None or core.op != op:
                return None
            draft = writer(node, scope, target)
            draft.tags["template"] = name
            return [Built(*draft.finish())]

        for key in (op, f"fused.{kind}"):
            template(key)(build)
        return writer

    return register
