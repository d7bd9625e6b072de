"""Returns presets by name as schedules: those that the paper publishes (RR-CFG-010), and the original methods (RR-CFG-013).

Their table ``presets.json`` lives here, and :mod:`~reroute_spec.published` reads it. This room may import ``schedule``
and what stands below it, but not ``plan``, ``trace`` or anything that builds on them. To add a preset, state it in a
rule in ``spec/10-config.md`` and add it to ``presets.json``, with its layers for 32 blocks and its keeps by tier.
"""

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
