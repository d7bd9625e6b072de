"""Stands in transformers' place: swaps the classes of a model, reads and checks its requests, and routes its forwards.

This room may import ``fused``, ``nuwa`` and every room after them, but not ``prefix``, ``showing`` or ``api``. To
refuse one more thing, write a ``check_…`` function in ``refusals.py`` and call it before anything is changed. To take
one more keyword argument of a forward, add a field to ``Request`` in ``request.py`` and read it in ``read_request``.
"""
