"""The reference: slow, readable PyTorch that runs real transformers models and says what routing is.

Read it in the order data meets it: ``inputs`` (prompts from a batch), ``routing`` (the method), ``score``, ``decoder``
or ``huggingface`` (the blocks), ``cache``.
"""

from .decoder import CanonicalDecoder
from .model import RoutedOutput, forced_logits, generate, run

__all__ = ["CanonicalDecoder", "RoutedOutput", "forced_logits", "generate", "run"]
