"""Measurements: models against peers, kernels against the machine's limits."""
