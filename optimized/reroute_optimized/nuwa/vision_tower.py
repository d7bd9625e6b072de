"""Runs Nüwa's first stage in the vision tower: it keeps few patches of an image, which gather the features of similar patches nearby.

The projector still gives a row for every patch, and the rows of dropped patches are marked. So what happened to an
image travels with its features, wherever transformers keeps, repeats or merges them. The text decoder then leaves the
marked columns out.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from reroute_reference.families import VisionTower, part
from reroute_spec import Decision, RerouteError, Schedule
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..turn.compaction import compaction, take
from ..turn.layout import Flags

_SIDE, _DEPTH = 24, 24
PATCHES = _SIDE * _SIDE
_AVERAGED = range(16, 25)
"""The hidden states whose mean is compared to find patches that resemble each other. State 0 are the embeddings, so state k is
what block k - 1 returns."""
_REACH = math.sqrt(280)
_ALONE = 0.55
"""The quantile of the pillars' metric from which on a pillar gathers only itself."""
_OTHERWISE = "1/10"
"""The share of rows that stage 2 keeps where no tier names a number."""
_TIERS = {"64": (1, 112), "128": (2, 224), "192": (3, 336)}
"""Per tier, how many candidates every 2 x 2 region gives, and how many pillars there are."""
_DROPPED = -torch.inf


class _Encoding(threading.local):
    """The values that the hooks hand on to one another within one encoding of images.

    Every thread has its own, because ``generate`` encodes images outside of the forward that the router guards.
    """

    def __init__(self) -> None:
        self.metric: Tensor | None = None
        self.states: list[Tensor] = []
        self.pillars: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Encoding:
        return _Encoding()


class FirstStage:
    """Nüwa's first stage, as hooks on a vision tower and its projector. The patches that stay are called pillars.

    Args:
        model: the model with the tower.
        tower: the description of the tower.
        tier: ``64``, ``128`` or ``192``.

    Attributes:
        kept: number of pillars of an image.
        chosen: metric [n, 576] and pillars [n, kept] of the images that were encoded last.

    Raises:
        RerouteError: a tower of another size, or one whose features are read elsewhere.
    """

    def __init__(self, model: nn.Module, tower: VisionTower, tier: str) -> None:
        if tier not in _TIERS:
            raise RerouteError("tier", f"{tier!r} is not known", f"known: {', '.join(_TIERS)}")
        self._candidates, self.kept = _TIERS[tier]
        self._tower, self._blocks = tower, tower.blocks(model)
        self._projector = tower.projector(model)
        config: Any = model.config
        layer, select = config.vision_feature_layer, config.vision_feature_select_strategy
        side = config.vision_config.image_size // config.vision_config.patch_size
        if side != _SIDE or len(self._blocks) != _DEPTH or not isinstance(layer, int) or select != "default":
            raise RerouteError(
                "model",
                f"its vision tower has {side} x {side} patches and {len(self._blocks)} blocks, read at {layer} by"
                f" {select!r}",
                "Nüwa's first stage is defined for 24 x 24 patches, 24 blocks and one block's patches",
            )
        self._scoring = (layer if layer >= 0 else _DEPTH + 1 + layer) - 1
        self._own = _Encoding()
        self.chosen: tuple[Tensor, Tensor] | None = None

    def register(self) -> list[RemovableHandle]:
        """Register the hooks, and return their handles."""
        averaged = [self._blocks[state - 1].register_forward_hook(self._remember) for state in _AVERAGED]
        return [
            self._blocks[self._scoring].register_forward_pre_hook(self._score, with_kwargs=True),
            *averaged,
            self._projector.register_forward_pre_hook(self._gather),
            self._projector.register_forward_hook(self._mark),
        ]

    def schedule_for(self, schedule: Schedule, images: int) -> Schedule:
        """The schedule of stage 2 for a request with so many images; other row counts than a tier's keep a ratio."""
        if images == 1:
            return schedule
        return replace(schedule, decisions=tuple(Decision(d.layer, _OTHERWISE) for d in schedule.decisions))

    def _score(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """[n, 576]: what the class token attends, over all heads."""
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        attention = part(block, self._tower.attention)
        normed = part(block, self._tower.input_norm)(hidden)
        shape = (len(hidden), -1, attention.num_heads, attention.head_dim)
        query = part(attention, self._tower.query)(normed[:, :1]).view(shape)
        keys = part(attention, self._tower.key)(normed).view(shape)
        logits = torch.einsum("nqhd,nphd->nhp", _wide(query), _wide(keys)) * attention.scale
        self._own.metric = logits.softmax(-1).sum(1)[:, 1:]

    def _remember(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden: Tensor = output if isinstance(output, Tensor) else output[0]
        if block is self._blocks[_AVERAGED[0] - 1]:
            self._own.states = []  # of a forward that broke off
        self._own.states.append(hidden[:, 1:])

    def _gather(self, projector: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The projector's input [n, 576, d] with a feature of its own in every pillar's place."""
        if self._own.metric is None or len(self._own.states) != len(_AVERAGED):
            return args
        metric, features = self._own.metric, args[0]
        if features.shape[1] != PATCHES:
            raise RerouteError(
                "vision_feature_select_strategy",
                f"selects {features.shape[1]} features of an image",
                f"Nüwa's first stage is defined for its {PATCHES} patches: leave it out",
            )
        similar = torch.stack([_wide(state) for state in self._own.states]).mean(0)
        self._own.metric, self._own.states = None, []
        pillars = self._own.pillars = choose_pillars(metric, self._candidates, self.kept)
        self.chosen = metric, pillars
        weights = pillar_weights(metric, pillars, similar)
        gathered = (weights @ _wide(features)).to(features.dtype)
        at = pillars[..., None].expand(-1, -1, features.shape[2])
        return features.scatter(1, at, gathered), *args[1:]

    def _mark(self, projector: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """The projector's output with dropped patches marked."""
        if self._own.pillars is None:
            return output
        pillars, self._own.pillars = self._own.pillars, None
        dropped = torch.ones(output.shape[:2], dtype=torch.bool, device=output.device)
        return output.masked_fill(dropped.scatter(1, pillars, False)[..., None], _DROPPED)

    def leave_out(
        self, embeddings: Tensor, positions: Tensor, real: Flags, visual: Flags
    ) -> tuple[Shortened, Flags, Flags]:
        """A batch without its dropped columns, left-padded.

        Args:
            embeddings: [B, S, d], dropped columns marked.
            positions: [B or 1, S]; rows keep theirs.
            real, visual: host flags of the columns.

        Returns:
            The shortened batch, and flags of its columns.
        """
        rows = []
        images = []
        for own, flagged in zip(real, visual, strict=True):
            placeholders = 0
            kept: list[bool] = []
            for flag in (v for v, r in zip(flagged, own, strict=True) if r):
                if not flag:
                    kept.append(False)
                    continue
                if placeholders % PATCHES == 0:
                    kept += [True] * self.kept
                placeholders += 1
            rows.append(kept)
            images.append(placeholders // PATCHES)
        width = max(map(len, rows))
        pads = torch.tensor([width - len(row) for row in rows], device=embeddings.device)
        present = torch.tensor(real, device=embeddings.device) & (embeddings[..., 0] != _DROPPED)
        columns, _ = compaction(torch.nn.functional.pad(present, (0, 1)), width, pads)
        shortened = take(embeddings, columns)
        coordinates = positions.expand(len(rows), -1)[..., None]
        dropped = torch.tensor(images, device=embeddings.device) * (PATCHES - self.kept)
        batch = Shortened(shortened, take(coordinates, columns)[..., 0], tuple(images), dropped, columns)
        return (
            batch,
            [[False] * (width - len(row)) + [True] * len(row) for row in rows],
            [[False] * (width - len(row)) + row for row in rows],
        )


@dataclass(frozen=True)
class Shortened:
    """A batch without its dropped columns.

    Attributes:
        embeddings: [B, W, d], padding zero.
        positions: [B, W].
        images: number of images of every request.
        dropped: [B] number of columns that were left out.
        columns: [B, W] the column at which each of its columns stood before.
    """

    embeddings: Tensor
    positions: Tensor
    images: Sequence[int]
    dropped: Tensor
    columns: Tensor


def choose_pillars(metric: Tensor, candidates: int, kept: int) -> Tensor:
    """Choose the pillars, ascending: [n, kept] of ``metric`` [n, 576].

    They are the best of the best patches of every region. Ties go to the lower patch.
    """
    half = _SIDE // 2
    patches = (
        torch.arange(PATCHES, device=metric.device).view(half, 2, half, 2).transpose(1, 2).reshape(-1, 4)
    )
    regions = metric[:, patches]  # [n, 144, 4], ascending patches within a region
    order = torch.sort(regions, dim=2, descending=True, stable=True).indices[..., :candidates]
    best = patches.expand(len(metric), -1, -1).gather(2, order).flatten(1)
    rest = torch.full_like(metric, -torch.inf).scatter(1, best, metric.gather(1, best))
    return torch.sort(torch.sort(rest, dim=1, descending=True, stable=True).indices[:, :kept], dim=1).values


def pillar_weights(metric: Tensor, pillars: Tensor, similar: Tensor) -> Tensor:
    """How much of every patch a pillar takes: [n, K, 576].

    Args:
        metric: [n, 576].
        pillars: [n, K].
        similar: [n, 576, d], by whose angle patches resemble each other.
    """
    unit = torch.nn.functional.normalize(similar, dim=-1)
    own = unit.gather(1, pillars[..., None].expand(-1, -1, unit.shape[2]))
    grid = torch.arange(PATCHES, device=metric.device)
    places = torch.stack([grid // _SIDE, grid % _SIDE], dim=1).to(unit.dtype)
    near = 1 - (torch.cdist(places, places) / _REACH).clamp(max=1)
    weights = (own @ unit.transpose(1, 2)).relu() * near[pillars]
    scores = metric.gather(1, pillars)
    alone = scores >= scores.quantile(_ALONE, dim=1, keepdim=True)
    weights = weights.masked_fill(alone[..., None], 0)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-8)
    return weights.scatter(2, pillars[..., None], 1)


def _wide(states: Tensor) -> Tensor:
    return states.to(torch.promote_types(states.dtype, torch.float32))
