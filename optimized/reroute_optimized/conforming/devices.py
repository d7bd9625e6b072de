"""Moves the models and tensors of a conformance run to the target's device, and its answers back to the CPU.

The suite keeps everything on a CPU, while a target may have to run on a GPU. While a model runs elsewhere, cuDNN's
convolutions compute in full float32, as the suite's tolerances expect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

_CPU = torch.device("cpu")


def placed(method: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a method of a target so that it runs on the target's ``place``.

    The method's first argument is a model. The model and all tensors are moved there for the call, and what the method
    returns is moved to the CPU.
    """

    @wraps(method)
    def call(target: Any, model: Any, *args: Any, **named: Any) -> Any:
        if target.place == _CPU:
            return method(target, model, *args, **named)
        with _exact(), _at(model, target.place) as there:
            return moved(
                method(target, there, *moved(args, target.place), **moved(named, target.place)), _CPU
            )

    return call


def moved(x: Any, device: torch.device) -> Any:
    """``x`` with every tensor in its dicts, lists and tuples on ``device``; everything else is itself."""
    if isinstance(x, Tensor):
        return x.to(device)
    if isinstance(x, Mapping):
        return {name: moved(value, device) for name, value in x.items()}
    if type(x) in (list, tuple):
        return type(x)(moved(value, device) for value in x)
    return x


@contextmanager
def _at(model: Any, device: torch.device) -> Iterator[Any]:
    """A model on ``device``: a canonical one as a copy, a module for the length of the block."""
    if not isinstance(model, nn.Module):
        yield moved(model, device)
        return
    before = next(model.parameters()).device
    try:
        yield model.to(device)
    finally:
        model.to(before)


@contextmanager
def _exact() -> Iterator[None]:
    """Convolutions in float32, as the suite's tolerances are: cuDNN's default rounds their inputs to ten bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
