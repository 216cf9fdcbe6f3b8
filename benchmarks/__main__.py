"""``python -m benchmarks MODELS...``: the same as ``tcompile bench``."""

from tcompile.cli_bench import bench

bench(prog_name="python -m benchmarks")
