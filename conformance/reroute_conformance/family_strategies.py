"""Hypothesis strategies for the model families, and their fixed cases."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from . import strategies
from .cases import DecoderCase, Row, decoder_config
from .family_cases import DECIDING, NUM_LAYERS, QwenCase

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
