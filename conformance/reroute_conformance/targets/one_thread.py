"""Prepares a process that runs tiny models: one thread, and no messages of transformers but errors."""

from __future__ import annotations

import torch
from transformers.utils import logging


def use_one_thread() -> None:
    """The suite's tensors are tiny, and their bits must not depend on how many cores are free."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
