"""The registry of templates: hand-shaped kernels that take precedence over the naive lowering of an op.

    @template("dot_general")
    def gemm(node, scope, target): ...     # -> list[Draft or Built], or None where the template does not apply

Templates are tried in the order of registration, the last registered first. Each belongs to one backend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tcompile.codegen.draft import Draft, Scope
from tcompile.ir.graph import Node, Value
from tcompile.ir.loops import Kernel
from tcompile.ir.target import Target


@dataclass(frozen=True, eq=False)
class Built:
    """A kernel that is scheduled already, and the values its parameters stand for (names and dims as in the graph).

    ``scratch`` are those of the values that are memory between the kernels of one node; kernels that share one name it alike.
    """

    kernel: Kernel
    values: tuple[Value, ...]
    scratch: tuple[Value, ...] = ()


Template = Callable[[Node, Scope, Target], "list[Draft | Built] | None"]
_TEMPLATES: dict[tuple[str, str], list[Template]] = {}


def template(key: str, backend: str = "cpu") -> Callable[[Template], Template]:
    """Registers a template for an op, or for a kind of fused region: ``template("fused.dot")``."""

    def register(builder: Template) -> Template:
        _TEMPLATES.setdefault((backend, key), []).insert(0, builder)
        return builder

    return register


def key_of(node: Node) -> str:
    """Where templates for a node are registered."""
    return f"fused.{node.attrs['kind']}" if node.op == "fused" else node.op


def from_template(node: Node, scope: Scope, target: Target) -> list[Draft | Built] | None:
    """The kernels of the first template that takes a node."""
    for builder in _TEMPLATES.get((target.backend, key_of(node)), ()):
        built = builder(node, scope, target)
        if built is not None:
            return built
    return None
