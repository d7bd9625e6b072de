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
from .questions import BOX_TOKENS, iou, read_box
from .routes import VISUAL, Route
from .scenes import ROWS

METHODS = ("reroute-fastv", "fastv")
_BATCH = 50


def drawn_at_random(
    models: Sequence[Any],
    asked: Sequence[Item],
    found: Sequence[Route],
    collected: Mapping[str, Sequence[Answers]],
) -> list[dict[str, Any]]:
    """Accuracy of :data:`METHODS` with drawn rows, beside that with scored ones on the same items.

    Args:
        models: trained ones.
        asked: the first of the test items.
        found, collected: routes, and what every model answered under them, by the route's name.
    """
    made = []
    for route in found:
        if route.method in METHODS:
            drawn = np.stack([_right(model, asked, route, seed) for seed, model in enumerate(models)])
            scored = np.stack([one.iou[: len(asked)] >= RIGHT for one in collected[route.name]])
            made.append(
                {
                    "method": route.method,
                    "budget": float(route.budget),
                    "items": len(asked),
                    "drawn": estimate(drawn.astype(float)),
                    "scored": estimate(scored.astype(float)),
                    "scored_over_drawn": estimate(scored.astype(float) - drawn.astype(float)),
                }
            )
    return made


def _right(model: Any, asked: Sequence[Item], route: Route, seed: int) -> np.ndarray:
    overlaps = []
    for first in range(0, len(asked), _BATCH):
        few = asked[first : first + _BATCH]
        decisions = [
            _drawn(route.schedule, model, f"{seed}/{route.name}/{first + i}") for i in range(len(few))
        ]
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
