"""Keeps a prompt's token ids and the sizes of its images by reference, so that the prompt can be drawn later.

Nothing is copied, and nothing is read until then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from reroute_reference.families import Family
from torch import Tensor

_STRATEGY = "vision_feature_select_strategy"


@dataclass(frozen=True)
class Source:
    """A batch before its images were merged.

    Attributes:
        ids: [B, S] token ids.
        sizes: the inputs that say how large images and videos are, by name.
        columns: [B, W] the columns that a first stage has left; None where all are there.
    """

    ids: Tensor
    sizes: Mapping[str, Any] = field(default_factory=dict)
    columns: Tensor | None = None

    def without(self, columns: Tensor | None) -> Source:
        """The same, of which only ``columns`` are left."""
        return self if columns is None else replace(self, columns=columns)


def sizes_of(
    family: Family, given: Mapping[str, Any], before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Inputs of a call that say how large its images and videos are; pixels are not among them.

    Args:
        family: of the model.
        given: the call's inputs.
        before: those of the ``generate`` that it is a step of, which count where the step has none.
    """
    names = [medium.companions[0] for medium in family.media if medium.companions]
    found = {name: given.get(name) for name in (*names, _STRATEGY)}
    return {**(before or {}), **{name: value for name, value in found.items() if value is not None}}
