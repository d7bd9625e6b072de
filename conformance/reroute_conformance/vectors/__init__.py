"""Vectors: cases with their expected results as JSON and safetensors, in ``v1/KIND/ID/`` (spec/FORMATS.md, Vector).

``files`` reads and writes folders, ``manifest`` keeps their digests, ``case`` and ``judge`` run one against a target. What
is in v1 comes from ``hand_data`` and ``hand_routes`` (worked out by hand), ``recipes`` (computed by the reference, in the fixed
order of ``fixed_order``) and ``release`` (measured from the paper's published code); ``regenerate`` makes it again.
"""

from .files import Vector, read_vector
from .manifest import vector_digest

__all__ = ["Vector", "read_vector", "vector_digest"]
