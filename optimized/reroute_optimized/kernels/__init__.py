"""Triton kernels of routing: one file per kernel, each with its shapes, the jitted function and one launcher.

A launcher takes checked tensors, chooses a grid from numbers known on the host, and launches: no reads of the device, no tuning
at run time, no gradient. Callers go through :mod:`reroute_optimized.kernels.ops`. The package is imported only where kernels are used.

What holds for all of them:

- Addresses are computed in int64: a row's offset may pass 2³¹ elements.
- Every masked load names what it reads instead.
- The bits of a request's result do not depend on what else is in the batch: tiles start at a request's first row, their sizes
  come from :mod:`.table`, and partial results are reduced in the order of the tiles.
"""
