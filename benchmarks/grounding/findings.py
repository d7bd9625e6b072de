"""From answers to figures: accuracies with intervals, paired differences, and what re-entries have to do with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .answers import Answers
from .intervals import estimate
from .items import Item
from .routes import PAIRS, Route

RIGHT = 0.5
"""IoU from which a box is right."""

METRICS = ("accuracy", "mean_iou", "gist")
BySeed = Sequence[Answers]


def _metric(answers: BySeed, metric: str) -> np.ndarray:
    """Item by item, [seeds, items]."""
    if metric == "gist":
        return np.stack([a.gist.astype(float) for a in answers])
    overlap = np.stack([a.iou for a in answers])
    return overlap if metric == "mean_iou" else (overlap >= RIGHT).astype(float)


def figures(answers: BySeed, asked: Sequence[Item]) -> dict[str, Any]:
    """Every metric with its interval, and accuracy by group of items."""
    right = _metric(answers, "accuracy").mean(axis=0)
    return {
        **{metric: estimate(_metric(answers, metric)) for metric in METRICS},
        "groups": {
            name: {"items": len(places), "accuracy": round(float(right[places].mean()), 5)}
            for name, places in groups(asked).items()
        },
    }


def of_route(route: Route, answers: BySeed, asked: Sequence[Item]) -> dict[str, Any]:
    """A route, what it costs, what it answers and what it decides."""
    layers = [decision.layer for decision in route.schedule.decisions]
    return {
        "method": route.method,
        "budget": float(route.budget),
        "schedule": route.schedule.to_dict(),
        "average_rows": float(route.average),
        "flops_ratio": route.flops,
        "kv_ratio": route.kv,
        **figures(answers, asked),
        "decisions": [
            {"layer": layer, **_decided(answers, asked, j, None)} for j, layer in enumerate(layers)
        ],
    }


def compared(found: Mapping[str, tuple[Route, BySeed]], asked: Sequence[Item]) -> list[dict[str, Any]]:
    """Every pair of methods at every budget at which both are there."""
    by_budget = {(route.method, route.budget): (route, answers) for route, answers in found.values()}
    budgets = sorted({route.budget for route, _ in found.values()}, reverse=True)
    return [
        _pair(*by_budget[one, budget], *by_budget[other, budget], asked)
        for one, other in PAIRS
        for budget in budgets
        if (one, budget) in by_budget and (other, budget) in by_budget
    ]


def _pair(route: Route, ours: BySeed, other: Route, theirs: BySeed, asked: Sequence[Item]) -> dict[str, Any]:
    one, two = (_metric(answers, "accuracy").astype(bool) for answers in (ours, theirs))
    saved, lost = one & ~two, two & ~one  # [seeds, items]
    layers = [decision.layer for decision in route.schedule.decisions]
    return {
        "reroute": route.method,
        "remove": other.method,
        "budget": float(route.budget),
        "average_rows": [float(route.average), float(other.average)],
        "flops_ratio": [route.flops, other.flops],
        **{metric: estimate(_metric(ours, metric) - _metric(theirs, metric)) for metric in METRICS},
        "saved": _share(saved),
        "lost": _share(lost),
        "groups": {
            name: {
                "items": len(places),
                "saved": _share(saved[:, places]),
                "lost": _share(lost[:, places]),
            }
            for name, places in groups(asked).items()
        },
        "decisions_on_saved_items": [
            {"layer": layer, **_decided(ours, asked, j, saved)} for j, layer in enumerate(layers)
        ],
    }


def groups(asked: Sequence[Item]) -> dict[str, list[int]]:
    """Numbers of the items of every group."""
    found: dict[str, list[int]] = {}
    for number, item in enumerate(asked):
        for name in item.groups():
            found.setdefault(name, []).append(number)
    return dict(sorted(found.items()))


def _decided(
    answers: BySeed, asked: Sequence[Item], decision: int, where: np.ndarray | None
) -> dict[str, float | None]:
    """Means of one decision over all items, or over those of ``where`` [seeds, items].

    ``object_kept``: share of the asked object's rows that run; ``reentered``: rows that run after they were deferred;
    ``object_reentered``: share of items in which rows of the asked object are among those.
    """
    rows = np.stack([a.rows[:, decision] for a in answers]).astype(float)  # [seeds, items, 4]
    sizes = np.array([len(item.box.target.patches()) if item.box.target else 0 for item in asked])
    kept = rows[..., 1] / np.maximum(sizes, 1)
    values = {
        "rows": rows[..., 0],
        "object_kept": kept,
        "reentered": rows[..., 2],
        "object_reentered": (rows[..., 3] > 0).astype(float),
    }
    chosen = np.ones(rows.shape[:2], dtype=bool) if where is None else where
    return {name: _share(value[chosen]) if chosen.any() else None for name, value in values.items()}


def _share(values: np.ndarray) -> float:
    return round(float(values.mean()), 5)
