"""Whether it is the scores: the same schedules, budgets and re-entries with rows drawn at random, run by the reference as given decisions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from reroute_reference import forced_logits, run
from reroute_spec import Schedule, plan
from torch import Tensor

from .answers import Answers
from .findings import RIGHT
from .intervals import estimate
from .items import Item, inputs
from .kept import Kept
from .questions import BOX_TOKENS, iou, read_box
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
    made: dict[float, dict[str, Any]] = {}
    rights: dict[tuple[float, str], np.ndarray] = {}
    for route in found:
        if route.method not in METHODS:
            continue
        budget = float(route.budget)
        drawn = np.stack(
            [
                _kept_right(kept, digest, model, asked, route, seed)
                for seed, (digest, model) in enumerate(models.items())
            ]
        ).astype(float)
        scored = np.stack([one.iou[: len(asked)] >= RIGHT for one in collected[route.name]]).astype(float)
        rights[budget, route.method] = drawn
        made.setdefault(budget, {"budget": budget, "items": len(asked)})[route.method] = {
            "drawn": estimate(drawn),
            "scored": estimate(scored),
            "scored_over_drawn": estimate(scored - drawn),
        }
    for budget, one in made.items():
        removed, rerouted = (rights[budget, method] for method in METHODS)
        one["drawn_rerouted_over_removed"] = estimate(rerouted - removed)
    return list(made.values())


def _kept_right(
    kept: Kept, digest: str, model: Any, asked: Sequence[Item], route: Route, seed: int
) -> np.ndarray:
    def make() -> dict[str, np.ndarray]:
        return {"right": _right(model, asked, route, seed)}

    return kept.arrays(f"drawn {seed}", digest, route.schedule, make)["right"]


def _right(model: Any, asked: Sequence[Item], route: Route, seed: int) -> np.ndarray:
    overlaps = []
    for first in range(0, len(asked), _BATCH):
        few = asked[first : first + _BATCH]
        names = [f"{seed}/{float(route.budget)}/{first + i}" for i in range(len(few))]
        decisions = [_drawn(route.schedule, model, name) for name in names]
        for item, said in zip(few, _boxes(model, few, route.schedule, decisions), strict=True):
            assert item.box.target is not None
            overlaps.append(iou(read_box(said), item.box.target.box))
    return np.array(overlaps) >= RIGHT


def _drawn(schedule: Schedule, model: Any, name: str) -> list[list[int]]:
    """A request's decisions: of every pool as many rows as the plan says, all equally likely."""
    drawn, pool = random.Random(name), list(range(ROWS))
    made = plan(schedule, model.config.text_config.num_hidden_layers, VISUAL)
    text = len(VISUAL) - ROWS
    found = []
    for decision in schedule.decisions:
        found.append(sorted(drawn.sample(pool, made.kv_rows[decision.layer] - text)))
        if schedule.action == "delete":
            pool = found[-1]
    return found


@torch.no_grad()
def _boxes(
    model: Any, asked: Sequence[Item], schedule: Schedule, decisions: list[list[list[int]]]
) -> list[list[int]]:
    """Four tokens of every item, greedily."""
    output = run(
        model, inputs([i.scene for i in asked], [i.box for i in asked]), schedule, decisions=decisions
    )
    boxes = []
    for b, cache in enumerate(output.cache):
        said: list[Tensor] = [output.logits[b, -1].argmax().reshape(1)]
        while len(said) < BOX_TOKENS:
            said.append(forced_logits(model, cache, said[-1]).argmax(dim=-1))
        boxes.append(torch.cat(said).tolist())
    return boxes
