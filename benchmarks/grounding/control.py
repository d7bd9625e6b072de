"""Whether it is the scores: the same schedules, budgets and re-entries with rows drawn at random, run by the reference as given decisions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from reroute_reference import generate
from reroute_spec import plan

from .answers import Answers, overlaps
from .findings import RIGHT
from .intervals import estimate
from .items import Item, box_inputs
from .kept import Kept
from .questions import BOX_TOKENS
from .routes import VISUAL, Route
from .scenes import ROWS

METHODS = ("fastv", "reroute-fastv")
_BATCH = 50


def drawn_at_random(
    models: Mapping[str, Any],
    asked: Sequence[Item],
    found: Sequence[Route],
    collected: Mapping[str, Sequence[Answers]],
    kept: Kept,
) -> list[dict[str, Any]]:
    """By budget, accuracy with drawn rows beside that with scored ones, and what re-entry alone does: both methods draw, from one
    source, so that they differ in nothing before the second decision.

    Args:
        models: trained ones, by the digest of their weights.
        asked: the first of the test items.
        found, collected: routes, and what every model answered under them, by the route's name.
        kept: of these items.
    """
    by_name = {(route.method, route.budget): route for route in found}
    made = []
    for budget in dict.fromkeys(route.budget for route in found):
        one: dict[str, Any] = {"budget": float(budget), "items": len(asked)}
        rights = []
        for method in METHODS:
            route = by_name[method, budget]
            drawn = _drawn_right(models, asked, route, kept).astype(float)
            scored = np.stack([answers.iou[: len(asked)] >= RIGHT for answers in collected[route.name]])
            rights.append(drawn)
            one[method] = {
                "drawn": estimate(drawn),
                "scored": estimate(scored.astype(float)),
                "scored_over_drawn": estimate(scored - drawn),
            }
        removed, rerouted = rights
        made.append({**one, "drawn_rerouted_over_removed": estimate(rerouted - removed)})
    return made


def _drawn_right(models: Mapping[str, Any], asked: Sequence[Item], route: Route, kept: Kept) -> np.ndarray:
    """Whether every model's boxes are right with drawn rows, [models, items]."""
    return np.stack(
        [
            kept.arrays(f"drawn {seed}", digest, route.schedule, partial(_right, model, asked, route, seed))[
                "right"
            ]
            for seed, (digest, model) in enumerate(models.items())
        ]
    )


def _right(model: Any, asked: Sequence[Item], route: Route, seed: int) -> dict[str, np.ndarray]:
    planned = plan(route.schedule, model.config.text_config.num_hidden_layers, VISUAL).kv_rows
    kept = [planned[decision.layer] - (len(VISUAL) - ROWS) for decision in route.schedule.decisions]
    found = []
    for first in range(0, len(asked), _BATCH):
        few = asked[first : first + _BATCH]
        decisions = [
            _drawn(kept, route.schedule.action, f"{seed}/{float(route.budget)}/{first + i}")
            for i in range(len(few))
        ]
        said = generate(model, box_inputs(few), route.schedule, BOX_TOKENS, decisions=decisions)
        found.append(overlaps(few, said[:, -BOX_TOKENS:]))
    return {"right": np.concatenate(found) >= RIGHT}


def _drawn(kept: Sequence[int], action: str, name: str) -> list[list[int]]:
    """A request's decisions: ``kept`` rows of every pool, all equally likely."""
    drawn, pool, found = random.Random(name), list(range(ROWS)), []
    for count in kept:
        found.append(sorted(drawn.sample(pool, count)))
        if action == "delete":
            pool = found[-1]
    return found
