"""Which loops compute a blocked convolution: a plain input, one pass over the input channels, or several."""

from __future__ import annotations

from tcompile.codegen.cpu_conv import BlockedConv, DirectConv, StemConv
from tcompile.codegen.cpu_conv_passes import ConvInPasses
from tcompile.codegen.cpu_epilogue import anchor
from tcompile.codegen.draft import Scope
from tcompile.codegen.templates import Built, template
from tcompile.ir.graph import Node
from tcompile.ir.target import Target


@template("conv_blocked")
@template("conv_stem")
@template("fused.conv")
def direct_conv(node: Node, scope: Scope, target: Target) -> list[Built] | None:
    """The kernel of a blocked convolution, alone or with its epilogue; None for other convolutions."""
    core = anchor(node)
    if core is None or core.op not in ("conv_blocked", "conv_stem"):
        return None
    draft = _kind(core, node, scope, target).write()
    draft.tags["template"] = "conv"
    return [Built(*draft.finish())]


def _kind(core: Node, node: Node, scope: Scope, target: Target) -> DirectConv:
    if core.op == "conv_stem":
        return StemConv(node, scope, target, "conv")
    passes = ConvInPasses(node, scope, target, "conv")
    return passes if passes.applies() else BlockedConv(node, scope, target, "conv")
