"""All templates of the GPU; importing this module registers them."""

from tcompile.codegen import cuda_attention_tensor, cuda_conv, cuda_dot, cuda_recurrence, cuda_rows, cuda_scan, cuda_scatter, cuda_sort

ALL = (
    cuda_rows.rows,
    cuda_dot.dot,
    cuda_attention_tensor.attention,
    cuda_conv.conv,
    cuda_recurrence.recurrence,
    cuda_scan.cumulative,
    cuda_scatter.scatter,
    cuda_sort.sort,
)
