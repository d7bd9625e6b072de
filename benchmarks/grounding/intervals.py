"""Means with their paired bootstrap intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

RESAMPLES = 10_000
_CHUNK = 500
_SEED = 2606_12412


def estimate(values: np.ndarray) -> dict[str, Any]:
    """Mean over training seeds and items, its 95% interval, and every seed's own mean.

    Items are drawn again with replacement, all seeds' answers to an item together: the interval is of these trainings on other items
    of the same kind. How trainings differ is what the seeds' own means show.

    Args:
        values: [seeds, items]; a difference of two methods makes it a paired interval.
    """
    over_seeds = values.mean(axis=0)
    low, high = np.percentile(_resampled(over_seeds), [2.5, 97.5])
    return {
        "mean": _short(over_seeds.mean()),
        "low": _short(low),
        "high": _short(high),
        "seeds": [_short(mean) for mean in values.mean(axis=1)],
    }


def _resampled(values: np.ndarray) -> np.ndarray:
    """Means of RESAMPLES resamples."""
    drawn = np.random.default_rng(_SEED)
    count = len(values)
    means = [
        values[drawn.integers(0, count, (_CHUNK, count))].mean(axis=1) for _ in range(RESAMPLES // _CHUNK)
    ]
    return np.concatenate(means)


def _short(value: float) -> float:
    return round(float(value), 5)
