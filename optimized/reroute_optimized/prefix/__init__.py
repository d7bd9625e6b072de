"""Computes the beginning that many prompts share once, and lets later prefills start after it.

This room may import ``hooks`` and every room after it, but not ``showing``, which stands beside it. ``hooks`` does not
import it: the router knows a prefix only by the protocol in ``hooks/prefix_in_use.py``. To compare one more thing of a
prompt with its prefix, add a field to ``Recorded`` in ``recorded.py`` and look at it in ``Recorded.check``.
"""
