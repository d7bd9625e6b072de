"""Tensor parallelism: heads that are divided among processes."""
