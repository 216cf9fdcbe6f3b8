"""All templates of the GPU; importing this module registers them."""

from tcompile.codegen import cuda_rows

ALL = (cuda_rows.rows,)
