"""Carries through the steps of one ``generate`` call what its cache does not hold: a visual mask, sizes of images, and decisions.

It travels down to the text decoder as a keyword argument, so that forwards of others have no part in it. Decisions are
carried where steps run without a cache: each step then runs the whole sequence again with the decisions of the first
prefill.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..model.decoder import largest
from ..turn.layout import Flags
from ..turn.records import Prefill

GENERATION = "reroute_generation"
"""Keyword argument that the steps of a ``generate`` carry down to the text decoder, and nobody else's forwards."""
CLAIM = "reroute_claim"
"""Keyword argument by which the text decoder knows the forward that it is a part of."""


@dataclass(frozen=True)
class Prompt:
    """The prefill of a generation without a cache, whose decisions every later step keeps.

    Attributes:
        done: what the prefill left behind.
        positions: [B or 1, S] or [3, B or 1, S] positions of all columns.
        following: [B, 1] next position of every request.
    """

    done: Prefill
    positions: Tensor
    following: Tensor

    @classmethod
    def of(cls, done: Prefill, positions: Tensor, real: Flags) -> Prompt:
        """The prompt of a prefill at ``positions``, whose columns are rows where ``real`` [B][S] says so."""
        present = torch.tensor(real, device=positions.device)
        reached = largest(positions).masked_fill(~present, -1).amax(1, keepdim=True) + 1
        return cls(done, positions, reached)

    @property
    def tables(self) -> list[Tensor]:
        """[B, K] what every decision selected."""
        return [decided.selected for decided in self.done.decided]

    @property
    def images(self) -> list[list[int]]:
        """Per request the routable rows of its spans."""
        return [[len(span) for span in plan.spans] for plan in self.done.layout.plans]

    def continued(self, columns: int) -> Tensor:
        """Positions of ``columns`` columns, of which those after the prompt count on."""
        known = self.positions.shape[-1]
        batch = len(self.following)
        later = self.following + torch.arange(columns - known, device=self.following.device)
        if self.positions.ndim == 3:
            later = later.expand(3, -1, -1)
            return torch.cat([self.positions.expand(3, batch, -1), later], dim=-1)
        return torch.cat([self.positions.expand(batch, -1), later], dim=-1)

    def routable(self, real: Flags, visual: Flags) -> Flags:
        """``visual`` without the prompt's last row and what came after it."""
        return [
            [flag and place < plan.num_rows - 1 for flag, place in zip(flagged, _places(own), strict=True)]
            for own, flagged, plan in zip(real, visual, self.done.layout.plans, strict=True)
        ]


@dataclass
class Generation:
    """One call of ``generate``.

    Attributes:
        cached: whether the steps go on with a cache.
        visual_mask: [B, S] bool of the prompt where the caller gave one; requests may have been repeated since.
        visual_images: the rows of every image, as the caller gave them.
        prompt: the first step, where steps are not cached.
        sizes: the grids of images and videos by the name of their input, because steps are not given them.
    """

    cached: bool
    visual_mask: Tensor | None = None
    visual_images: list[list[int]] | None = None
    prompt: Prompt | None = None
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def mask_for(self, batch: int, columns: int) -> Tensor | None:
        """The caller's mask for a prefill of ``batch`` requests."""
        mask = self.visual_mask
        if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.shape[1] != columns or batch % len(mask):
            return mask
        return mask.repeat_interleave(batch // len(mask), dim=0)

    def images_for(self, batch: int) -> list[list[int]] | None:
        """The caller's image sizes for a prefill of ``batch`` requests."""
        images = self.visual_images
        if images is None or batch % len(images):
            return images
        return [own for own in images for _ in range(batch // len(images))]


def _places(real: list[bool]) -> list[int]:
    """The row that every column is, or would be."""
    places, count = [], 0
    for flag in real:
        places.append(count)
        count += flag
    return places
