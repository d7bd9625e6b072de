"""The fused engine, ``backend="triton"``: rows of all requests packed one after another, kernels between the matrix products.

What the engine of backend ``torch`` does on rectangles [B, R, d] is done here on packed rows [M, d] without padding. Later turns
of more than one row run on the engine of backend ``torch``, over the same cache.
"""
