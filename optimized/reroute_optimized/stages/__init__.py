"""Runs a turn stage by stage in plain PyTorch, on rectangles of rows [B, R, d]; this is ``backend="torch"``.

This room may import ``turn`` and every room after it, but not ``fused``, ``nuwa`` or ``hooks``. To support another
attention implementation of transformers, write its mask in ``masks.py`` and let ``check_implementation`` pass it. To
support another action, write a class with the methods of ``Stream`` in ``stream.py`` and return it from
``open_stream``.
"""
