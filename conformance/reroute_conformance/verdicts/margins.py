"""Counts the margins of decisions in fixed bins, so that a report can show how near scores come to their threshold."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any

EDGES = (*(float(f"{digits}e{power}") for power in range(-6, 0) for digits in ("1", "3.16")), 1.0)
"""The edges between bins, two per decade. The clamps of τ in float32 (RR-NUM-002) are among them."""


@dataclass
class Margins:
    """Counts of margins. A margin is the relative gap ``(s_k - s_{k+1}) / s_k`` at the threshold of a decision.

    Attributes:
        none: how many decisions left nothing out, or have a gap that is undefined.
        tie: how many decisions have equal scores on both sides of the threshold.
        bins: bin i counts margins of at least ``EDGES[i - 1]`` and below ``EDGES[i]``. The last bin counts margins of 1
            as well.
    """

    none: int = 0
    tie: int = 0
    bins: list[int] = field(default_factory=lambda: [0] * len(EDGES))

    def count(self, margin: float | None) -> None:
        """Count a decision's margin."""
        if margin is None:
            self.none += 1
        elif margin > 0:
            self.bins[min(bisect_right(EDGES, margin), len(EDGES) - 1)] += 1
        else:  # below 0, or no number, only where the decision breaks a rule
            self.tie += 1

    def add(self, other: Margins) -> None:
        """Count what was counted elsewhere, too."""
        self.none, self.tie = self.none + other.none, self.tie + other.tie
        self.bins = [one + more for one, more in zip(self.bins, other.bins, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the form of ``schemas/report.json``."""
        return {"none": self.none, "tie": self.tie, "bins": list(self.bins)}
