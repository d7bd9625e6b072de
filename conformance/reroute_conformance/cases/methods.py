"""Draws cases of profile ``methods``: schedules with the score source ``previous``, the positions ``renumber``, or both."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from .case import Row
from .decoder import DecoderCase, decoder_config
from .strategies import layouts

_LAYERS = 5


@st.composite
def method_schedules(draw: st.DrawFn) -> dict[str, Any]:
    """One to three decisions that remove, or bypass without re-entry; both variants, each reduction of heads and rows."""
    variant = draw(st.sampled_from(("previous", "renumber", "both")))
    action = "delete" if variant != "previous" else draw(st.sampled_from(("delete", "reroute")))
    lowest = 0 if variant == "renumber" else 1
    layers = sorted(draw(st.sets(st.integers(lowest, _LAYERS - 1), min_size=1, max_size=3)))
    keeps: list[Any] = sorted((draw(st.integers(1, 6)) for _ in layers), reverse=True)
    if draw(st.booleans()):
        keeps = ["2/3", "1/2", "1/3"][-len(layers) :]
    decisions = [{"layer": layer, "keep": keep} for layer, keep in zip(layers, keeps, strict=True)]
    data: dict[str, Any] = {"action": action, "decisions": decisions, "score": {}}
    if action == "reroute" and (len(layers) > 1 or draw(st.booleans())):
        data["pool"] = "survivors"
    if variant != "renumber":
        data["score"]["source"] = "previous"
    if variant != "previous":
        data["positions"] = "renumber"
    if draw(st.integers(0, 2)) == 2:
        data["score"] |= {
            "query": "last_n",
            "n": draw(st.integers(1, 4)),
            "heads": draw(st.sampled_from(("mean", "max"))),
        }
    return data


@st.composite
def method_cases(draw: st.DrawFn, *, cache: bool = False) -> DecoderCase:
    """One request with rows to remove; text on both sides of an image, between two, or none at its end."""
    layout = draw(layouts(max_size=5)) + "vvv" + draw(layouts("vvt", max_size=6))
    return DecoderCase(
        schedule=draw(method_schedules()),
        rows=[Row(layout, draw(st.integers(0, 999)))],
        new_tokens=draw(st.integers(1, 3)) if cache else 0,
        config=decoder_config(_LAYERS, heads=draw(st.sampled_from((2, 4))), kv_heads=2),
        seed=draw(st.integers(0, 7)),
    )
