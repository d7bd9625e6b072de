"""Nüwa's first stage, in the vision tower (RR-POOL-007 to RR-POOL-010): which patches become visual rows, and of what.

LLaVA-1.5 alone: CLIP ViT-L/14 at 336, 24 x 24 patches after a class token. What is left goes through the decoder like any
prompt given as embeddings: ``run(model, first_stage(model, inputs, "64"), schedule)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from reroute_spec import Decision, RerouteError, Schedule, select
from torch import Tensor, nn

from .check_media import features_of, without_padding
from .check_request import check_dtype, check_inputs
from .families import VisionTower, placeholder_mask, vision_tower_of
from .huggingface import HuggingFaceDecoder
from .merge import merged
from .precision import in_precision

_SIDE, _REGION = 24, 2  # patches along the grid and along a region
_REACH = 280**0.5
_SELF_QUANTILE = 0.55


@dataclass(frozen=True)
class Tier:
    """Patches taken of every region, and pillars of every image."""

    per_region: int
    pillars: int


TIERS = {"64": Tier(1, 112), "128": Tier(2, 224), "192": Tier(3, 336)}


@torch.no_grad()
def first_stage(
    model: nn.Module,
    inputs: Mapping[str, Any],
    tier: str,
    *,
    dtype: torch.dtype | None = None,
    pillars: Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """A batch whose images hold only their pillars, as embeddings at the positions of all patches.

    Args:
        model: LLaVA-1.5 with its CLIP tower.
        inputs: what the processor returns.
        tier: ``64``, ``128`` or ``192``.
        dtype: compute in this precision on a copy of the model.
        pillars: per image, in the order of the batch, the patches to take in place of the metric's own.

    Returns:
        ``inputs_embeds`` [B, S', d], ``attention_mask``, ``visual_mask``, ``position_ids`` [B, S'], padded on the right,
        and ``images``, how many pillars every image has. And what they come from, per image in the order of the batch:
        ``metric`` [images, 576] and ``pillars``, a list of patches.

    Raises:
        RerouteError: an unknown tier, or a tower that is no CLIP of 24 blocks over 24 x 24 patches.
    """
    if not isinstance(tier, str) or tier not in TIERS:
        raise RerouteError("tier", f"{tier!r} is not known", f"known: {', '.join(TIERS)}")
    if not isinstance(model, nn.Module):
        raise RerouteError("model", f"is a {type(model).__name__}", "give LLaVA-1.5 with its CLIP tower")
    check_dtype(dtype)
    vision_tower_of(model)
    decoder = HuggingFaceDecoder(model if dtype is None else in_precision(model, dtype))
    tower = vision_tower_of(decoder.model)
    _check_tower(decoder, tower)
    check_inputs(decoder, inputs)
    if inputs.get("input_ids") is None or inputs.get("pixel_values") is None:
        raise RerouteError("pixel_values", "or input_ids are missing", "give a prompt with an image")
    for name in ("labels", "position_ids"):
        if inputs.get(name) is not None:
            problem = "would be those of the prompt before rows are taken out of it"
            raise RerouteError(name, problem, "leave out, and give them to run() with what is left")
    inputs = without_padding(decoder, inputs)
    features_of(decoder, inputs)
    placeholders = placeholder_mask(decoder.model, inputs["input_ids"])
    real = inputs.get("attention_mask")
    if real is not None and bool((placeholders & (real == 0)).any()):
        problem = "hides rows of an image, of which pillars are taken by region"
        raise RerouteError("attention_mask", problem, "show whole images")
    batch = merged(decoder, inputs)
    pixels = inputs["pixel_values"]
    if pillars is not None and len(pillars) != len(pixels):
        raise RerouteError(
            "pillars", f"are of {len(pillars)} images", f"give one list for each of {len(pixels)}"
        )
    given = [None] * len(pixels) if pillars is None else pillars
    found = [_image(decoder, tower, pixels[i : i + 1], TIERS[tier], taken) for i, taken in enumerate(given)]
    chosen, requests = iter(found), []
    for row, ids in enumerate(inputs["input_ids"]):
        kept = torch.ones_like(ids, dtype=torch.bool) if real is None else real[row].bool()
        columns = kept.nonzero()[:, 0]
        embeddings, visual = batch.embeddings[row, columns].clone(), placeholders[row, columns]
        patches, left = visual.nonzero()[:, 0], ~visual
        counts = []
        for image in patches.reshape(-1, _SIDE**2):
            _, taken, features = next(chosen)
            embeddings[image[taken]], left[image[taken]] = features, True
            counts.append(len(taken))
        # a pillar stays where its patch was, text where it was behind all 576 rows  RR-POOL-010
        places = left.nonzero()[:, 0]
        requests.append((embeddings[places], visual[places], places, counts))
    metrics = torch.stack([scores for scores, _, _ in found])
    return {**_padded(requests), "metric": metrics, "pillars": [taken.tolist() for _, taken, _ in found]}


def second_stage(schedule: Schedule, pillars: int) -> Schedule:
    """A Nüwa preset for a request of which stage 1 left ``pillars`` rows: another number keeps the ratio 1/10 (RR-CFG-013)."""
    if not isinstance(schedule, Schedule):
        raise RerouteError("schedule", f"is a {type(schedule).__name__}", "load a preset of Nüwa")
    if isinstance(pillars, bool) or not isinstance(pillars, int) or pillars < 1:
        raise RerouteError("pillars", f"{pillars!r}", "give the rows that stage 1 left: an integer >= 1")
    if not schedule.label.startswith(("nuwa-", "reroute-nuwa-")):
        raise RerouteError(
            "schedule", f"{schedule.label or 'an explicit one'} is no preset of Nüwa", "load one"
        )
    tier = schedule.label.partition(",")[0].rpartition("-")[2]
    if pillars == TIERS[tier].pillars:
        return schedule
    # RR-CFG-013
    tenth = tuple(Decision(decision.layer, "1/10") for decision in schedule.decisions)
    return replace(schedule, decisions=tenth, label=f"{schedule.label}, keep 1/10 of {pillars} rows")


def metric(
    decoder: HuggingFaceDecoder, tower: VisionTower, layer: int, entered: Float[Tensor, "P+1 c"]
) -> Float[Tensor, " P"]:
    """m(p): attention of the class token to patch p in block ``layer``, summed over heads (RR-POOL-007)."""
    block = tower.blocks(decoder.model)[layer]
    attention = getattr(block, tower.attention)
    normed = getattr(block, tower.input_norm)(entered)
    query, keys = (
        getattr(attention, name)(normed).unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
        for name in (tower.query, tower.key)
    )  # [H, P + 1, h]
    wide = torch.promote_types(query.dtype, torch.float32)
    logits = query[:, :1].to(wide) @ keys.to(wide).mT * attention.scale
    # RR-POOL-007
    summed: Tensor = logits.softmax(dim=-1)[:, 0, 1:].sum(dim=0)
    return summed


def select_pillars(scores: list[float], tier: Tier) -> list[int]:
    """The best of the best of every region, ascending; ties go to the lower patch (RR-POOL-008)."""
    candidates: list[int] = []
    for top in range(0, _SIDE, _REGION):
        for left in range(0, _SIDE, _REGION):
            region = [
                row * _SIDE + column
                for row in range(top, top + _REGION)
                for column in range(left, left + _REGION)
            ]
            candidates += [
                region[place] for place in select([scores[patch] for patch in region], tier.per_region)
            ]
    # RR-POOL-008
    candidates.sort()
    return [candidates[place] for place in select([scores[patch] for patch in candidates], tier.pillars)]


def weights(
    states: Float[Tensor, "P c"], scores: Float[Tensor, " P"], pillars: Int[Tensor, " K"]
) -> Float[Tensor, "K P"]:
    """How much of every patch a pillar takes: what resembles it nearby (RR-POOL-009)."""
    directions = F.normalize(states, dim=-1)
    alike = (directions[pillars] @ directions.T).relu()
    patches = torch.arange(len(states), device=states.device)
    grid = torch.stack([patches // _SIDE, patches % _SIDE], dim=-1).to(states.dtype)
    near = 1 - (torch.cdist(grid[pillars], grid) / _REACH).clamp(max=1)
    # RR-POOL-009
    taken = alike * near
    itself = patches[None, :] == pillars[:, None]
    alone = scores[pillars] >= torch.quantile(scores[pillars], _SELF_QUANTILE)
    taken = torch.where(alone[:, None] & ~itself, 0.0, taken)
    taken = taken / (taken.sum(dim=-1, keepdim=True) + 1e-8)
    return torch.where(itself, 1.0, taken)


def _image(
    decoder: HuggingFaceDecoder,
    tower: VisionTower,
    pixels: Float[Tensor, "1 3 h w"],
    tier: Tier,
    given: Sequence[int] | None,
) -> tuple[Float[Tensor, " P"], Int[Tensor, " K"], Float[Tensor, "K d"]]:
    """Metric and pillars of one image, the given ones or its own, and their rows for the decoder."""
    states = tower.module(decoder.model)(pixels, output_hidden_states=True).hidden_states
    scores = metric(decoder, tower, len(states) - 3, states[-3][0])  # the block that gives states[-2]
    taken = select_pillars(scores.tolist(), tier) if given is None else list(given)
    pillars = torch.tensor(taken, device=scores.device)
    wide = scores.dtype
    mean = torch.stack([state[0, 1:].to(wide) for state in states[16:25]]).mean(dim=0)
    features = weights(mean, scores, pillars) @ states[-2][0, 1:].to(wide)
    return scores, pillars, tower.projector(decoder.model)(features.to(decoder.dtype))


def _check_tower(decoder: HuggingFaceDecoder, tower: VisionTower) -> None:
    config: Any = decoder.model.config
    side, blocks = (
        config.vision_config.image_size // config.vision_config.patch_size,
        tower.blocks(decoder.model),
    )
    if side != _SIDE or len(blocks) != 24:
        problem = f"its vision tower has {len(blocks)} blocks over {side} x {side} patches"
        raise RerouteError(
            "model", problem, "Nüwa is defined for 24 blocks over 24 x 24 (CLIP ViT-L/14 at 336)"
        )
    if config.vision_feature_layer != -2 or config.vision_feature_select_strategy != "default":
        raise RerouteError(
            "model", "it does not read the last but one hidden state without the class token", "use LLaVA-1.5"
        )


def _padded(requests: list[tuple[Tensor, Tensor, Tensor, list[int]]]) -> dict[str, Any]:
    longest = max(len(places) for _, _, places, _ in requests)
    padded = [
        [F.pad(x, (*(0, 0) * (x.ndim - 1), 0, longest - len(x))) for x in (e, v, p, torch.ones_like(p))]
        for e, v, p, _ in requests
    ]
    embeds, visual, places, real = (torch.stack(column) for column in zip(*padded, strict=True))
    return {
        "inputs_embeds": embeds,
        "visual_mask": visual,
        "position_ids": places,
        "attention_mask": real,
        "images": [images for *_, images in requests],
    }
