"""Asking a model, routed or not: what it answers, and what of the picture its decisions let through."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from reroute_optimized import routed
from reroute_spec import RoutingTrace, Schedule
from torch import Tensor

from .items import Item, box_inputs
from .questions import BOX_TOKENS, iou, read_box

_BATCH = 50


@dataclass(frozen=True)
class Answers:
    """Of one model under one schedule, item by item.

    Attributes:
        tokens: the box as it was said, [items, 4].
        iou: with the asked box, [items].
        gist: whether yes or no was right, [items].
        rows: per decision: rows selected, of those on the asked object, rows that re-entered, of those on the object,
            [items, decisions, 4]. Rows of the object are the patches whose centre is in its box.
    """

    tokens: np.ndarray
    iou: np.ndarray
    gist: np.ndarray
    rows: np.ndarray


def ask(model: Any, asked: Sequence[Item], schedule: Schedule | None) -> Answers:
    """Both questions of every item, through the fast path inside ``generate``; unrouted without a schedule."""
    parts = [_batch(model, asked[i : i + _BATCH], schedule) for i in range(0, len(asked), _BATCH)]
    return Answers(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


@torch.no_grad()
def _batch(model: Any, asked: Sequence[Item], schedule: Schedule | None) -> tuple[np.ndarray, ...]:
    given = box_inputs(asked)
    routing = nullcontext() if schedule is None else routed(model, schedule)
    traces: Sequence[RoutingTrace] = ()
    with routing as result:
        said = model.generate(**given, max_new_tokens=BOX_TOKENS, do_sample=False)[:, -BOX_TOKENS:]
        if result is not None:
            traces = result.traces
        ids = torch.tensor([item.there.ids() for item in asked])
        logits = model(**{**given, "input_ids": ids}, logits_to_keep=1).logits[:, -1]
        right = (logits.argmax(-1) == torch.tensor([item.there.answer[0] for item in asked])).numpy()
    decisions = 0 if schedule is None else len(schedule.decisions)
    rows = np.zeros((len(asked), decisions, 4), dtype=np.int16)
    for place, (trace, item) in enumerate(zip(traces, asked, strict=bool(traces))):
        assert item.box.target is not None
        target = set(item.box.target.patches())
        for j, record in enumerate(trace.decisions):
            rows[place, j] = (
                len(record.selected),
                len(target.intersection(record.selected)),
                len(record.reentered),
                len(target.intersection(record.reentered)),
            )
    return said.numpy(), overlaps(asked, said), right, rows


def overlaps(asked: Sequence[Item], said: Tensor) -> np.ndarray:
    """IoU of the boxes that were said, [items, 4] tokens, with those that were asked for, [items]."""
    found = []
    for item, tokens in zip(asked, said.tolist(), strict=True):
        assert item.box.target is not None
        found.append(iou(read_box(tokens), item.box.target.box))
    return np.array(found)
