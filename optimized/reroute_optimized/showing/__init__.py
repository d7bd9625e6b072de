"""Turns what a routed model remembers of its last prefill into a view that can be drawn.

This room may import ``hooks`` and every room after it, but not ``prefix``, which stands beside it. It also imports
``reroute_view``, which does the drawing and needs neither torch nor a model. To show something
more, add a field to ``reroute_spec.view.View`` and fill it in ``view_of`` in ``view.py``.
"""
