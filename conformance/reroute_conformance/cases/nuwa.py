"""Lists cases of profile ``nuwa``: batches of noise for a narrow LLaVA on which Nüwa's first stage is run.

The vision tower of this LLaVA has the blocks and patches that the first stage is defined for, but all of its layers are
narrow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn

from ..tiny.llava import NARROW_IMAGE, NARROW_PATCHES, narrow_llava
from .case import KINDS, Case, Row

_BLOCKS = 2  # of the decoder, which no case runs


@dataclass(frozen=True)
class NuwaCase(Case):
    """A batch for Nüwa's first stage.

    Attributes:
        tier: the tier of the preset, ``64``, ``128`` or ``192``.
        rows: the requests. Their layouts have ``t`` for a text row and ``I`` for a whole image.
        seed: seed of the model's weights.
    """

    kind: ClassVar[str] = "nuwa"
    tier: str = "64"
    rows: list[Row] = field(default_factory=list)
    seed: int = 0

    def __post_init__(self) -> None:
        rows = [row if isinstance(row, Row) else Row(**row) for row in self.rows]
        object.__setattr__(self, "rows", rows)

    def model(self) -> nn.Module:
        """The model, built anew: nothing that a target does to it reaches another."""
        model: nn.Module = narrow_llava(self.seed, num_layers=_BLOCKS)
        return model

    def reference_model(self) -> nn.Module:
        """The same model for the reference."""
        return _narrow_llava(self.seed)

    def inputs(self) -> dict[str, Any]:
        """What a processor returns."""
        longest = max(row.pad_left + len(_ids(row)) + row.pad_right for row in self.rows)
        input_ids = torch.zeros(len(self.rows), longest, dtype=torch.long)
        real, pixels = torch.zeros_like(input_ids), []
        for index, row in enumerate(self.rows):
            ids = _ids(row)
            place = slice(row.pad_left, row.pad_left + len(ids))
            input_ids[index, place], real[index, place] = torch.tensor(ids), 1
            noise = torch.Generator().manual_seed(row.seed)
            pixels.append(torch.randn(row.layout.count("I"), 3, 336, 336, generator=noise))
        return {"input_ids": input_ids, "attention_mask": real, "pixel_values": torch.cat(pixels)}


KINDS[NuwaCase.kind] = NuwaCase


@cache
def _narrow_llava(seed: int) -> nn.Module:
    model: nn.Module = narrow_llava(seed, num_layers=_BLOCKS)
    return model


def _ids(row: Row) -> list[int]:
    """Tokens: words are their own place in the layout, from 3 on."""
    image = [NARROW_IMAGE] * NARROW_PATCHES
    return [token for at, letter in enumerate(row.layout, 3) for token in (image if letter == "I" else [at])]


def nuwa_cases() -> tuple[NuwaCase, ...]:
    """Every tier on one image; a batch with padding on both sides, in which a request has two images that touch."""
    one = [NuwaCase(tier, [Row("ttIttt", seed)], seed) for seed, tier in enumerate(("64", "128", "192"))]
    return (*one, NuwaCase("64", [Row("tItt", 3, pad_left=5), Row("ttIIt", 4, pad_right=2)], 3))
