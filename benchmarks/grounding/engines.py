"""Whether both engines answer alike: the reference's own ``generate`` beside the fast path, item by item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from reroute_optimized import routed
from reroute_reference import forced_logits, generate, run
from reroute_spec import Schedule

from .items import Item, box_inputs
from .questions import BOX_TOKENS


def differences(
    model: Any, asked: Sequence[Item], schedule: Schedule, fast: np.ndarray, numbers: Sequence[int]
) -> list[dict[str, Any]]:
    """Items whose boxes the engines say differently, with what it hung on.

    Args:
        model: given back as it was.
        asked: items.
        schedule: of both engines.
        fast: tokens that the fast path said, [items, 4].
        numbers: of the items to compare.
    """
    found = []
    given = box_inputs([asked[number] for number in numbers])
    said = generate(model, given, schedule, BOX_TOKENS)[:, -BOX_TOKENS:].numpy()
    for place, number in enumerate(numbers):
        if (said[place] != fast[number]).any():
            one = {name: tensor[place : place + 1] for name, tensor in given.items()}
            found.append(
                {"item": number, "reference": said[place].tolist(), "fast": fast[number].tolist()}
                | _hung_on(model, one, schedule, said[place], fast[number])
            )
    return found


@torch.no_grad()
def _hung_on(
    model: Any, one: dict[str, Any], schedule: Schedule, said: np.ndarray, fast: np.ndarray
) -> dict[str, Any]:
    """The margins of one item: of its decisions, and of the first token that differs."""
    output = run(model, one, schedule)
    with routed(model, schedule) as routing:
        model(**one, logits_to_keep=1)
        decided = routing.traces[0].decisions
    token = int(np.flatnonzero(said != fast)[0])
    logits = output.logits[0, -1]
    if token:
        logits = forced_logits(model, output.cache[0], torch.from_numpy(said[:token]))[-1]
    top = logits.topk(2).values
    records = output.traces[0].decisions
    return {
        "token": token,
        "logit_margin": float(top[0] - top[1]),
        "smallest_decision_margin": min((r.margin for r in records if r.margin is not None), default=None),
        "decisions_that_differ": [
            record.layer
            for record, other in zip(records, decided, strict=True)
            if record.selected != other.selected
        ],
    }
