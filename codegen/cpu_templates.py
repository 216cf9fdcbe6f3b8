"""All templates of the CPU; importing this module registers them."""

from tcompile.codegen import (
    cpu_attention,
    cpu_bytes,
    cpu_conv_kinds,
    cpu_depthwise,
    cpu_gathered,
    cpu_gemm,
    cpu_interleaved,
    cpu_pointwise,
    cpu_strassen,
    cpu_trees,
    cpu_winograd,
    cpu_winograd_whole,
)

ALL = (
    cpu_attention.attention,
    cpu_gemm.gemm,
    cpu_conv_kinds.direct_conv,
    cpu_depthwise.depthwise,
    cpu_winograd.winograd,
    cpu_winograd_whole.whole_winograd,
    cpu_conv_kinds.interleaved_conv,
    cpu_interleaved.interleaved_gemm,
    cpu_pointwise.pointwise,
    cpu_strassen.strassen,
    cpu_bytes.bytes_conv,
    cpu_trees.trees,
    cpu_gathered.gathered,
)
