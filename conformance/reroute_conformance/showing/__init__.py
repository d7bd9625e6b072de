"""Runs a model on a prompt with pictures and returns the traces that ``vlm-reroute trace`` shows.

The reference runs the model; no other target is asked, and ``reroute_view`` draws the result. This room may import
``running``, ``coverage`` and every room before them, but not ``reporting``, which stands beside it, nor ``bench`` or
``cli``. To add a tiny model that the command can run, build it in ``tiny``, and list it in ``TINY`` and ``load`` in
``trace.py``.
"""
