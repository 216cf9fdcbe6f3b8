"""Which loops compute a blocked convolution: a plain input, rows of the kernel, one pass over the input channels, or several."""

from __future__ import annotations

from tcompile.codegen.cpu_contraction import contraction
from tcompile.codegen.cpu_conv import BlockedConv, DirectConv, StemConv
from tcompile.codegen.cpu_conv_passes import ConvInPasses
from tcompile.codegen.cpu_conv_rows import ConvByRows, is_by_rows
from tcompile.codegen.cpu_epilogue import anchor
from tcompile.codegen.cpu_interleaved import InterleavedConv
from tcompile.codegen.cpu_paired import PairedConv
from tcompile.codegen.draft import Draft, Scope
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
    if is_by_rows(core, target):
        return ConvByRows(node, scope, target, "conv")
    passes = ConvInPasses(node, scope, target, "conv")
    return passes if passes.applies() else BlockedConv(node, scope, target, "conv")


@contraction("conv_interleaved", "conv", "interleaved conv")
def interleaved_conv(node: Node, scope: Scope, target: Target) -> Draft:
    """The kernel of an interleaved convolution, alone or with its epilogue."""
    kind = _interleaved_kind(node, scope, target)
    draft = kind.write()
    draft.flops *= kind.core.inputs[1].shape[-1]
    return draft


def _interleaved_kind(node: Node, scope: Scope, target: Target) -> InterleavedConv:
    paired = PairedConv(node, scope, target, "conv_int")
    return paired if paired.applies() else InterleavedConv(node, scope, target, "conv_int")
