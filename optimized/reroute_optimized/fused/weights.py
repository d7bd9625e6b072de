"""Lays the weights of projections of the same rows one after another in memory, so that one product serves several projections.

The modules keep their parameters, whose memory becomes a part of a larger tensor. Names, the state dict and adapters
that are merged in place see what they saw before. Whether weights are adjacent is read from the parameters at every use
and is kept nowhere else. So a weight that was replaced, moved or hooked since is never missed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any
from weakref import ref

import torch
import torch.nn.functional as F
from reroute_reference.families import part
from torch import Tensor, nn

from ..model.decoder import Decoder


def product(modules: Sequence[nn.Module], rows: Tensor) -> Tensor | None:
    """``rows`` [n, d] through all of ``modules`` at once, their outputs side by side [n, sum of their widths].

    None where they are no plain linear modules whose weights lie one after another: each has to be called then.
    """
    if not all(map(_is_plain, modules)):
        return None
    linears: Any = modules
    weight = _adjacent([linear.weight for linear in linears])
    if weight is None:
        return None
    if linears[0].bias is None:
        return F.linear(rows, weight) if all(linear.bias is None for linear in linears) else None
    if any(linear.bias is None for linear in linears):
        return None
    bias = _adjacent([linear.bias for linear in linears])
    return None if bias is None else F.linear(rows, weight, bias)


def _is_plain(module: nn.Module) -> bool:
    """Whether calling ``module`` is a product with its weight, and nothing else sees it."""
    return (
        type(module) is nn.Linear
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and "forward" not in module.__dict__
        and isinstance(module._parameters.get("weight"), nn.Parameter)
    )


def _adjacent(parameters: Sequence[Tensor]) -> Tensor | None:
    """One tensor over all of ``parameters``, or None where they do not lie one after another, alike but for their rows."""
    first = parameters[0].detach()
    storage, end, rows = first.untyped_storage(), first.storage_offset(), 0
    for parameter in parameters:
        if (
            parameter.untyped_storage() is not storage
            or parameter.storage_offset() != end
            or parameter.dtype != first.dtype
            or parameter.shape[1:] != first.shape[1:]
            or not parameter.is_contiguous()
        ):
            return None
        end += parameter.numel()
        rows += parameter.shape[0]
    return first.as_strided((rows, *first.shape[1:]), first.stride())


class Joined:
    """The parameters that :func:`fuse` laid one after another, which :meth:`remove` gives memory of their own again."""

    def __init__(self) -> None:
        # weakly: a weight that is replaced while the model is routed is free to go
        self._laid: list[tuple[ref[nn.Parameter], int]] = []

    def lay(self, parameters: Sequence[nn.Parameter]) -> None:
        """Move ``parameters`` to one tensor, in their order."""
        together = torch.cat([parameter.detach() for parameter in parameters])
        parts = torch.split(together, [len(parameter) for parameter in parameters])
        for parameter, own in zip(parameters, parts, strict=True):
            parameter.data = own
            self._laid.append((ref(parameter), own.data_ptr()))

    def remove(self) -> None:
        """Give every parameter that is still where it was laid memory of its own."""
        with torch.inference_mode(False), torch.no_grad():
            while self._laid:
                reference, place = self._laid[-1]
                parameter = reference()
                if parameter is not None and parameter.data_ptr() == place:
                    parameter.data = parameter.detach().clone()
                self._laid.pop()


def fuse(decoder: Decoder) -> Joined:
    """Lay the weights of every block that are multiplied together one after another: key, query and value; gate and up.

    More memory is taken for one block's at a time. What is not a plain linear module, has hooks, or shares memory with anything stays
    as it is.

    Returns:
        What gives them their own memory back.
    """
    joined = Joined()
    holders = Counter(x.untyped_storage().data_ptr() for x in _tensors(decoder.module))
    try:
        with torch.inference_mode(False), torch.no_grad():
            for modules in _groups(decoder):
                weights: list[Any] = [module._parameters.get("weight") for module in modules]
                biases: list[Any] = [module._parameters.get("bias") for module in modules]
                together = [weights] if all(bias is None for bias in biases) else [weights, biases]
                if all(map(_is_plain, modules)) and all(_movable(group, holders) for group in together):
                    for group in together:
                        joined.lay(group)
    except BaseException:
        with suppress(
            Exception
        ):  # where memory ran out it may not suffice to go back: what is adjacent computes the same
            joined.remove()
        raise
    return joined


def _groups(decoder: Decoder) -> Iterator[list[nn.Module]]:
    names = decoder.names
    for block in decoder.blocks:
        attention, mlp = part(block, names.attention), block.mlp
        yield [part(attention, name) for name in (names.key, names.query, "v_proj")]
        yield [mlp.gate_proj, mlp.up_proj]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _movable(parameters: Sequence[Any], holders: Counter[int]) -> bool:
    """Whether ``parameters`` are alike but for their rows, and nothing but themselves lies in their memory."""
    first = parameters[0]
    return all(
        type(x) is nn.Parameter
        and type(x.data) is Tensor
        and x.layout == torch.strided
        and x.is_contiguous()
        and x.device == first.device
        and x.device.type != "meta"
        and x.dtype == first.dtype
        and x.shape[1:] == first.shape[1:]
        and x.numel()
        and not x.is_inference()
        and x.untyped_storage().nbytes() == x.nbytes
        and holders[x.untyped_storage().data_ptr()] == 1
        and not (x.device.type == "cpu" and x.is_shared())  # type: ignore[no-untyped-call]
        for x in parameters
    )
