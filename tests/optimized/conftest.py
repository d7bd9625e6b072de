"""Tiny products are slower when they are shared between threads."""

import torch

torch.set_num_threads(1)
