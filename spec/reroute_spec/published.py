"""Fits a preset to the depth and the blocks of a decoder, and returns it as the plain data of a schedule.

The presets are the configurations that the paper publishes (RR-CFG-010) and the original methods (RR-CFG-013). They are
plain data here because ``schedule`` imports this module, to load a preset by its name.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cache
from importlib import resources
from typing import Any

from .errors import RerouteError, unknown

REFERENCE_DEPTH = 32


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(
        resources.files(__package__).joinpath("presets", "presets.json").read_text("utf-8")
    )
    return table


def presets() -> list[str]:
    """The names of all presets: ``<method>-<tier>``, such as ``reroute-pdrop-64``; ``fastv-original`` has no tiers."""
    return list(_names())


@cache
def _names() -> dict[str, tuple[str, str]]:
    """Method and tier of every name."""
    return {
        f"{method}-{tier}".rstrip("-"): (method, tier)
        for method, entry in _table().items()
        for tier in entry["keep"]
    }


def fitted_preset(
    name: str, num_layers: int = REFERENCE_DEPTH, attention_layers: Collection[int] | None = None
) -> dict[str, Any]:
    """A preset for a decoder, as the plain data of a schedule; its label says whether the layers are published, scaled or snapped.

    Layers of depths the paper does not list are ``floor(d * num_layers / 32 + 1/2)`` of the 32-block layers. A layer
    without plain attention snaps up to the next one with it.

    Args:
        name: of :func:`presets`.
        num_layers: blocks of the decoder.
        attention_layers: its blocks with plain q/k attention; all unless given.

    Raises:
        RerouteError: an unknown name, or a decoder in which the preset's decisions do not stay apart or would read a
            block without plain attention.
    """
    if name not in presets():
        raise unknown("preset", name, presets())
    if isinstance(num_layers, bool) or not isinstance(num_layers, int) or num_layers < 1:
        raise RerouteError("num_layers", f"{num_layers!r} is no depth", "give an integer >= 1")
    method, tier = _names()[name]
    entry = _table()[method]
    published = entry["layers"].get(str(num_layers))
    reference = entry["layers"][str(REFERENCE_DEPTH)]
    layers = published or [  # RR-CFG-010
        (2 * layer * num_layers + REFERENCE_DEPTH) // (2 * REFERENCE_DEPTH) for layer in reference
    ]
    origin = "published" if published else f"scaled from {REFERENCE_DEPTH} blocks"
    change = "scaled"
    if attention_layers is not None:
        snapped = [_snap(name, layer, num_layers, attention_layers) for layer in layers]  # RR-CFG-012
        if snapped != layers:
            moved = [f"{old} to {new}" for old, new in zip(layers, snapped, strict=True) if old != new]
            layers, origin = snapped, f"{origin}, snapped to plain attention ({', '.join(moved)})"
            change = "snapped"
    if len(set(layers)) < len(layers) or layers[-1] >= num_layers:
        raise RerouteError(
            "preset",
            f"{name!r} {change} to {num_layers} blocks would decide at blocks {layers}",
            "give an explicit schedule with distinct layers for such a decoder",
        )
    # the original methods bring their own score and positions  RR-CFG-013
    changed = entry.get("without_first_stage", {}).get(str(num_layers), {})
    keeps = [changed["keep"]] * len(layers) if "keep" in changed else entry["keep"][tier]
    score = changed.get("score", entry.get("score", {}))
    for layer in layers if score.get("source") == "previous" else ():
        plain = range(num_layers) if attention_layers is None else attention_layers
        if layer - 1 not in plain:
            read = f"block {layer - 1}, which has no plain attention" if layer else "the block before block 0"
            raise RerouteError(
                "preset",
                f"{name!r} would read {read}",
                "use a preset that scores in the deciding block's own terms",
            )
    return {
        "action": entry["action"],
        "decisions": [{"layer": layer, "keep": keep} for layer, keep in zip(layers, keeps, strict=True)],
        "score": score,
        "positions": entry.get("positions", "preserve"),
        "label": f"{name}, {num_layers} blocks, {origin}",
    }


def _snap(name: str, layer: int, num_layers: int, attention_layers: Collection[int]) -> int:
    later = [candidate for candidate in attention_layers if layer <= candidate < num_layers]
    if not later:
        raise RerouteError(
            "preset",
            f"{name!r} would decide at block {layer}, and no block from there on has plain attention",
            "give an explicit schedule",
        )
    return min(later)
