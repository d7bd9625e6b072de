"""Describes the transformers text decoder that is routed, as the rest of the package sees it.

This room imports ``reroute_reference.families`` and may import ``kernels``, but no other room. To add a model family,
write an entry in ``reroute_reference/families.py``. To reach one more part of a decoder, write a property of
``Decoder`` in ``decoder.py``.
"""
