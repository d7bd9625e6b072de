"""Runs Nüwa's first stage in the vision tower, which keeps few patches of every image.

This room may import ``stages`` and every room after it, but not ``hooks``, nor ``fused``, which stands beside it. To
add a tier, list it in ``_TIERS`` in ``vision_tower.py``. To add another method's step in the vision tower, write it
here as a module whose class registers hooks as ``FirstStage`` does, and choose it where ``api`` chooses ``FirstStage``.
"""
