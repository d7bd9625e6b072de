"""Makes the vectors of v1, each from its source, so that the files can be compared with what is made again.

``hand_data`` and ``hand_routes`` hold the vectors that were worked out by hand. The reference computes those of
``recipes``, and those of ``trained`` from a trained model; ``release`` completes those that were measured from the
paper's published code. This room may import the modules of ``vectors`` and what they may import; ``files``,
``manifest``, ``case`` and ``judge`` do not import it. To add a vector, add an entry to ``hand_data``, ``hand_routes``
or ``recipes`` and run ``vlm-reroute vectors regenerate``. Once v1 is released it only grows.
"""
