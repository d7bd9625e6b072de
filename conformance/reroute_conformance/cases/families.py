"""Draws cases of the three Qwen families with images of several sizes, videos and text, and sessions of every family.

The batches are such as a processor could return. The module also draws prompts for canonical decoders that have text
before their first visual row (RR-EQV-007).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from hypothesis import strategies as st
from torch import Tensor

from ..tiny.qwen import LAST_WORD, qwen_inputs
from . import strategies
from .case import KINDS, Row
from .decoder import DecoderCase, decoder_config
from .models import LlavaCase, ModelCase
from .sessions import SessionMachine

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
    """A batch through a tiny model of one of the Qwen families.

    Attributes:
        family: the model family, one of the three Qwen families of :data:`~reroute_conformance.protocol.FAMILIES`.
    """

    kind: ClassVar[str] = "qwen"
    family: str = "qwen2_5_vl"

    def model_family(self) -> str:
        """The family of the case."""
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

_LAYOUTS = ("tIttt", "tItt", "ttVtt", "tIJtt", "tJtLtt", "ttt", "tI", "It", "tVtSt", "tWIt", "tSSt")
"""Images of several sizes, touching or apart, videos, and text alone."""


@st.composite
def qwen_cases(draw: st.DrawFn, family: str) -> QwenCase:
    """Batches through a tiny model: other images in every request, requests of text among them."""
    schedule = draw(strategies.schedules(NUM_LAYERS, scopes=("request", "image"), deciding=DECIDING[family]))
    rows = draw(strategies.batch_rows(st.sampled_from(_LAYOUTS), batch=True))
    return QwenCase(
        schedule=schedule,
        rows=rows[:3],
        new_tokens=draw(st.integers(0, 2)),
        seed=draw(st.integers(0, 1)),
        attention=draw(st.sampled_from(["sdpa", "eager"])),
        family=family,
    )


def qwen_prompts(family: str) -> tuple[QwenCase, ...]:
    """A question about an image, and about an image and a video, both actions, both attention implementations."""
    layers: dict[str, tuple[int, ...]] = {"reroute": (1, 3, 7), "delete": (1, 3)}
    keeps = {"reroute": ("0.5", "0.5", "0.25"), "delete": ("0.75", "0.25")}
    cases = []
    for action, decided in layers.items():
        allowed = [layer for layer in decided if layer in DECIDING[family]]
        decisions: list[dict[str, Any]] = [
            {"layer": layer, "keep": keep} for layer, keep in zip(allowed, keeps[action], strict=False)
        ]
        for layout, attention in (("tttLtttt", "sdpa"), ("tItVttt", "eager")):
            case = QwenCase(
                schedule={"action": action, "decisions": decisions},
                rows=[Row(layout, 7)],
                new_tokens=2,
                attention=attention,
                family=family,
            )
            cases.append(case)
    return tuple(cases)


class FamilySessions(SessionMachine):
    """A Hypothesis state machine that draws sessions of a tiny transformers model.

    A subclass names the model family; :func:`family_sessions` makes it.

    Attributes:
        family: the model family.
        image_layouts: layouts of later turns with images.
    """

    family: ClassVar[str] = "llava"
    image_layouts: ClassVar[st.SearchStrategy[str]] = st.sampled_from(["tIt", "Itt", "ttI", "t"])

    def bases(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> ModelCase:
        """A model of the family and a schedule that it runs."""
        deciding = DECIDING.get(self.family, range(NUM_LAYERS))
        given: dict[str, Any] = {
            "schedule": draw(strategies.schedules(NUM_LAYERS, deciding=deciding)),
            "attention": draw(st.sampled_from(["sdpa", "eager"])),
        }
        return LlavaCase(**given) if self.family == "llava" else QwenCase(**given, family=self.family)

    def prompts(self) -> st.SearchStrategy[str]:
        """Images, a video where the family has them, or text alone; of a few rows a plain run is right by luck."""
        return st.sampled_from(["tIttt", "ttItIt", "t" * 12, "tI" if self.family == "llava" else "tVtt"])


def family_sessions(family: str) -> type[FamilySessions]:
    """The state machine that draws sessions of a model family."""
    return type(f"{family}Sessions", (FamilySessions,), {"family": family})


@st.composite
def text_first_cases(draw: st.DrawFn) -> DecoderCase:
    """Prompts with text before their first visual row."""
    layers = draw(st.integers(1, 4))
    config = decoder_config(layers, heads=4, kv_heads=draw(st.sampled_from([2, 4])))
    layout = "t" * draw(st.integers(1, 5)) + "v" + draw(strategies.layouts(max_size=9))
    return DecoderCase(
        schedule=draw(strategies.schedules(layers)),
        rows=[Row(layout, draw(st.integers(0, 99)))],
        config=config,
        seed=draw(st.integers(0, 7)),
    )
