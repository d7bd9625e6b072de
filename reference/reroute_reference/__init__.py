"""Runs real transformers models in slow, readable PyTorch that says what routing is.

Read the modules in the order in which data meet them. ``model`` is the entry: it runs a batch, a later turn or a greedy
generation. ``check_request``, ``check_media`` and ``check_cache`` refuse what cannot be run. ``merge`` and ``inputs``
make prompts of a batch. ``routing`` is the method; it calls ``score``, the blocks in ``huggingface`` or ``decoder``,
and ``cache``. ``families`` describes the models, ``precision`` copies a model into another dtype, ``prefix`` holds the
rows that many requests begin with, and ``nuwa`` is Nüwa's first stage.

The package may import ``reroute_spec`` and no other package of ours. To add a model family, describe it in
``families``.
"""

from .cache import RowCache
from .decoder import CanonicalDecoder
from .model import RoutedOutput, forced_logits, generate, prefix_of, run
from .prefix import Prefix

__all__ = [
    "CanonicalDecoder",
    "Prefix",
    "RoutedOutput",
    "RowCache",
    "forced_logits",
    "generate",
    "prefix_of",
    "run",
]
