"""Supports tensor parallelism, in which processes divide the attention heads among themselves.

This room may import ``model`` and ``kernels``, but not ``turn`` or any other room before it. To support another way to
divide a model, recognise it in ``check_shards`` in ``shards.py``, which refuses what is not supported.
"""
