"""Presets by name: schedules that the paper publishes (RR-CFG-010), and the original methods (RR-CFG-013)."""

from __future__ import annotations

from collections.abc import Collection

from ..published import REFERENCE_DEPTH, fitted_preset, presets
from ..schedule import Schedule

__all__ = ["preset", "presets"]


def preset(
    name: str, num_layers: int = REFERENCE_DEPTH, attention_layers: Collection[int] | None = None
) -> Schedule:
    """A preset for a decoder.

    Arguments and refusals are those of :func:`~reroute_spec.published.fitted_preset`.
    """
    return Schedule.from_dict(fitted_preset(name, num_layers, attention_layers))
