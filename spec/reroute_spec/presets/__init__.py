"""The paper's public configurations, by name (RR-CFG-010): four methods x three tiers x two published depths."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from ..errors import RerouteError, unknown
from ..schedule import Decision, Schedule

_REFERENCE_DEPTH = 32


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(resources.files(__name__).joinpath("presets.json").read_text("utf-8"))
    return table


def presets() -> list[str]:
    """The names of all presets: ``<method>-<tier>``, such as ``reroute-pdrop-64``."""
    return [f"{method}-{tier}" for method, entry in _table().items() for tier in entry["keep"]]


def preset(name: str, num_layers: int = _REFERENCE_DEPTH) -> Schedule:
    """A preset for a decoder of ``num_layers`` blocks; its label says whether the layers are published or scaled.

    Layers of depths the paper does not list are ``floor(d * num_layers / 32 + 1/2)`` of the 32-block layers.

    Raises:
        RerouteError: an unknown name, or a decoder too shallow for the preset's decisions to stay apart.
    """
    if name not in presets():
        raise unknown("preset", name, presets())
    if isinstance(num_layers, bool) or not isinstance(num_layers, int) or num_layers < 1:
        raise RerouteError("num_layers", f"{num_layers!r} is no depth", "give an integer >= 1")
    method, _, tier = name.rpartition("-")
    entry = _table()[method]
    published = entry["layers"].get(str(num_layers))
    reference = entry["layers"][str(_REFERENCE_DEPTH)]
    layers = published or [
        (2 * layer * num_layers + _REFERENCE_DEPTH) // (2 * _REFERENCE_DEPTH) for layer in reference
    ]
    if len(set(layers)) < len(layers) or layers[-1] >= num_layers:
        raise RerouteError(
            "preset",
            f"{name!r} scaled to {num_layers} blocks would decide at blocks {layers}",
            "give an explicit schedule with distinct layers for so shallow a decoder",
        )
    origin = "published" if published else f"scaled from {_REFERENCE_DEPTH} blocks"
    return Schedule(
        action=entry["action"],
        decisions=tuple(
            Decision(layer, keep) for layer, keep in zip(layers, entry["keep"][tier], strict=True)
        ),
        label=f"{name}, {num_layers} blocks, {origin}",
    )
