"""Prepares a process to run tiny models: torch gets one thread, and transformers reports nothing but errors."""

from __future__ import annotations

import torch
from transformers.utils import logging


def use_one_thread() -> None:
    """Use one thread: the suite's tensors are tiny, and their bits must not depend on how many cores are free."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
