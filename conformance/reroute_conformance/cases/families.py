"""Cases of the three Qwen families: images of several sizes, videos, text, in batches that a processor could return."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from torch import Tensor

from ..tiny.qwen import LAST_WORD, qwen_inputs
from .case import KINDS, ModelCase, Row

GRIDS = {
    "I": (1, 4, 6),
    "J": (1, 6, 4),
    "L": (1, 4, 10),
    "S": (1, 2, 2),
    "V": (2, 4, 4),
    "W": (3, 2, 6),
}
"""Letters of a layout: patches (time, height, width) of an image or, with several frames, of a video."""
NUM_LAYERS = 8
DECIDING = {"qwen2_5_vl": range(NUM_LAYERS), "qwen3_vl": range(NUM_LAYERS), "qwen3_5": (3, 7)}
"""Blocks that can decide: of Qwen3.5 those with plain attention."""


@dataclass(frozen=True)
class QwenCase(ModelCase):
    """A batch through a tiny model of one of the Qwen families."""

    kind: ClassVar[str] = "qwen"
    family: str = "qwen2_5_vl"

    def model_family(self) -> str:
        """The one that was drawn."""
        return self.family

    def size(self, row: Row) -> int:
        """Real rows of a request: an image is many, between two rows that mark its start and end."""
        return self.request(row)["input_ids"].shape[1]

    def vocabulary(self) -> int:
        """Words only, no placeholders."""
        return LAST_WORD

    def request(self, row: Row) -> dict[str, Tensor]:
        """Seeded words and patches of noise."""
        return _request(self.family, row.layout, row.seed)


@lru_cache(maxsize=256)
def _request(family: str, layout: str, seed: int) -> dict[str, Tensor]:
    parts = re.findall(f"t+|[{''.join(GRIDS)}]", layout)
    return qwen_inputs(family, [[GRIDS.get(part, part) for part in parts]], seed=seed)


KINDS[QwenCase.kind] = QwenCase
