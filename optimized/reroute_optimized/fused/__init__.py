"""Runs ``backend="triton"``: the rows of all requests are packed one after another, with Triton kernels between matrix products.

The engine of backend ``torch`` works on rectangles [B, R, d]; this one works on packed rows [M, d] without padding.
Later turns of more than one row run on the engine of backend ``torch``, over the same cache. This room may import
``stages`` and every room after it, but not ``hooks``, nor ``nuwa``, which stands beside it. To fuse the blocks of
another decoder that have the same parts, list its class in ``FUSED`` in ``blocks.py``; the blocks of any other decoder
are called whole by ``modules.py``.
"""
