"""Holds the Triton kernels of routing, and the torch operators that check their arguments and run them.

Each file has one kernel, or a few that belong together, with their shapes, jitted functions and launchers. A launcher
takes checked tensors, chooses a grid from numbers that are known on the host, and launches. It reads nothing from the
device, tunes nothing at run time and has no gradient. Callers go through :mod:`reroute_optimized.kernels.ops`, which
imports a kernel's file, and so Triton, only where the kernel runs.

This holds for all kernels:

- Addresses are computed in int64, because a row's offset may pass 2³¹ elements.
- Every masked load names the value that it reads instead.
- The bits of a request's result do not depend on what else is in the batch. Tiles start at a request's first row, their
  sizes come from :mod:`.table`, and partial results are reduced in the order of the tiles.

This room imports no other room. To add a kernel, write its file here, register it in ``ops.py`` with a function that
checks its arguments, list its launches in ``cases`` in ``gate.py``, and renew ``compiled.json`` with
``python -m reroute_optimized.kernels.gate --write``.
"""
