"""Presets by name: schedules that the paper publishes (RR-CFG-010), and the original methods (RR-CFG-013)."""

from __future__ import annotations

from collections.abc import Collection

from ..preset_data import REFERENCE_DEPTH, preset_data, presets
from ..schedule import Schedule

__all__ = ["preset", "presets"]


def preset(
    name: str, num_layers: int = REFERENCE_DEPTH, attention_layers: Collection[int] | None = None
) -> Schedule:
    """A preset for a decoder.

    Arguments and refusals are those of :func:`~reroute_spec.preset_data.preset_data`.
    """
    return Schedule.from_dict(preset_data(name, num_layers, attention_layers))
