"""The reference: slow, readable PyTorch that runs real transformers models and says what routing is.

Read it in the order data meets it: ``model`` (the front door), ``checks`` (refusals), ``merge`` and ``inputs`` (prompts from
a batch), ``routing`` (the method), ``score``, ``huggingface`` or ``decoder`` (the blocks), ``cache``. ``families`` describes
models, ``prefix`` is what many requests can begin with, ``nuwa`` is Nüwa's first stage.
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
