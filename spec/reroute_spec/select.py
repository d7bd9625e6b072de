"""Which candidates run: a total order over scores, so that no two implementations can differ (RR-SEL)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .errors import RerouteError


def select(scores: Sequence[float], k: int) -> list[int]:
    """The ``k`` candidates first in the order (score descending, ordinal ascending), reported ascending.

    ``-0.0`` equals ``+0.0`` and infinities are ordinary extremes (RR-SEL-001 to RR-SEL-004).

    Args:
        scores: one float per candidate, in candidate order.
        k: how many to keep, ``0 <= k <= len(scores)``.

    Returns:
        Positions in ``scores``, ascending, exactly ``k`` of them.

    Raises:
        RerouteError: a NaN score (RR-SEL-005), or ``k`` out of range.
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= len(scores):
        raise RerouteError(
            "k", f"{k!r} of {len(scores)} candidates", f"give an integer from 0 to {len(scores)}"
        )
    for ordinal, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            raise RerouteError(
                f"scores[{ordinal}]", f"is a {type(score).__name__}", "give a float per candidate"
            )
        if math.isnan(score):  # RR-SEL-005
            raise RerouteError(
                f"scores[{ordinal}]", "is NaN", "a NaN is never ordered; find the block that made it"
            )
    # RR-SEL-001 RR-SEL-002 RR-SEL-003
    best_first = sorted(range(len(scores)), key=lambda ordinal: (-scores[ordinal], ordinal))
    return sorted(best_first[:k])  # RR-SEL-004


def margin(scores: Sequence[float], selected: Sequence[int]) -> float | None:
    """Relative gap at the threshold, ``(s_k - s_{k+1}) / s_k``; None where nothing was left out or it is undefined."""
    chosen = set(selected)
    left_out = [score for ordinal, score in enumerate(scores) if ordinal not in chosen]
    if not chosen or not left_out:
        return None
    last_in, first_out = min(scores[ordinal] for ordinal in chosen), max(left_out)
    if last_in == 0 or math.isinf(last_in):
        return None
    return (last_in - first_out) / last_in
