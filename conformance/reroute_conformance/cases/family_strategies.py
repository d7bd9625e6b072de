"""Hypothesis strategies for the model families, and their fixed cases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis import strategies as st

from . import strategies
from .case import DecoderCase, LlavaCase, ModelCase, Row, decoder_config
from .families import DECIDING, NUM_LAYERS, QwenCase
from .sessions import SessionMachine

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
    """Sessions of a tiny model; a subclass names its family."""

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
    """The machine of a family."""
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
