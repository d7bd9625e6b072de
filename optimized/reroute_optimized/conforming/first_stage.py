"""Runs Nüwa's first stage by itself and returns the prompts that the decoder would then be given.

The stage is hooked into the vision tower of a model that is not routed, and the forward is stopped where the text
decoder would begin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from reroute_reference.families import family_of, placeholder_mask, text_decoder_of, vision_tower_of
from reroute_spec import RerouteError
from torch import Tensor, nn

from ..model.decoder import counted
from ..nuwa.vision_tower import PATCHES, FirstStage
from ..turn.layout import flags, read_masks


class _MergedError(Exception):
    """An exception that carries the text decoder's arguments out of a forward, which has to stop there."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given


def first_stage(model: nn.Module, inputs: Mapping[str, Any], tier: str) -> dict[str, Any]:
    """What the first stage leaves of a batch, left-padded.

    Args:
        model: a LLaVA that is not routed.
        inputs: what its processor returns.
        tier: ``64``, ``128`` or ``192``.

    Returns:
        ``inputs_embeds`` [B, S', d], ``visual_mask``, ``attention_mask`` and ``position_ids`` [B, S']; ``metric``
        [images, 576], and ``pillars``, patches per image.

    Raises:
        RerouteError: a model or a tier for which the stage is not defined; inputs without ids.
    """
    tower = vision_tower_of(model)
    stage = FirstStage(model, tower, tier)
    ids = inputs.get("input_ids")
    if ids is None:
        raise RerouteError("input_ids", "are missing", "give what the processor returns")

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _MergedError(kwargs)

    handles = stage.register()
    handles.append(text_decoder_of(model)[0].register_forward_pre_hook(stop, with_kwargs=True))
    merger: Any = model.get_submodule(family_of(model).merger or "")
    try:
        merger(**inputs, use_cache=False)
    except _MergedError as merged:
        embeddings: Tensor = merged.given["inputs_embeds"]
    finally:
        for handle in handles:
            handle.remove()
    shape = (embeddings.shape[0], embeddings.shape[1])
    given = inputs.get("attention_mask")
    real, visual = read_masks(given, placeholder_mask(model, ids))
    positions = counted(None if given is None else given != 0, shape[1], embeddings.device)
    short, alive, routable = stage.leave_out(
        embeddings, positions, real or flags(shape, True), visual or flags(shape, False)
    )
    none = torch.zeros(0, PATCHES), torch.zeros(0, stage.kept, dtype=torch.long)
    metric, pillars = stage.chosen or none
    return {
        "inputs_embeds": short.embeddings,
        "visual_mask": torch.tensor(routable, device=embeddings.device),
        "attention_mask": torch.tensor(alive, device=embeddings.device).long(),
        "position_ids": short.positions,
        "metric": metric,
        "pillars": pillars.tolist(),
    }
