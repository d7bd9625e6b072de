"""Describes what a turn is apart from its computation: its layout, its records, and the cache and state that it leaves.

This room may import ``parallel`` and every room after it, but not ``stages`` or anything that runs blocks. To let a
cache remember one more value, add a field to ``RoutingState`` in ``cache.py``, keep it right in ``take``,
``RoutedCache.to`` and ``RoutedCache.crop`` there, and set it in ``after_turn.py``.
"""
