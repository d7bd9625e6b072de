"""Holds the vectors: cases with their expected results as JSON and safetensors, in ``v1/KIND/ID/`` (spec/FORMATS.md, Vector).

``files`` reads and writes a vector, ``manifest`` keeps the digests of all files, ``case`` makes a case of a vector and
``judge`` judges a target by it; ``making`` makes the vectors of v1. This room may import ``judging`` and every room
before it. It must not import ``checks``, which puts the vectors into checks. To add a vector, write it in a module of
``making`` and run ``vlm-reroute vectors regenerate``.
"""

from .files import Vector, read_vector
from .manifest import vector_digest

__all__ = ["Vector", "read_vector", "vector_digest"]
