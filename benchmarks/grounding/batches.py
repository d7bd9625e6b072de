"""Training batches: several questions about a picture behind a block mask, so that a picture is encoded once for all of them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from .items import pixels
from .questions import BINS, BOX_TOKENS, FIRST_BIN, STEP, TOKEN, Question, ask_box, ask_there
from .scenes import COLOURS, ROWS, SHAPES, SIZES, Scene, scene

BOXES, THERES = 6, 2
"""Questions of either sort per picture."""

_PREFIX = 1 + ROWS
_BOX_ROWS, _THERE_ROWS = 4 + BOX_TOKENS - 1, 4  # four words, and what of the answer is fed back
LENGTH = _PREFIX + BOXES * _BOX_ROWS + THERES * _THERE_ROWS
_STARTS = [_PREFIX + i * _BOX_ROWS for i in range(BOXES)]
_THERE_STARTS = [_PREFIX + BOXES * _BOX_ROWS + i * _THERE_ROWS for i in range(THERES)]
BOX_PLACES = [start + 3 + t for start in _STARTS for t in range(BOX_TOKENS)]
"""Rows whose next token is an edge, question by question."""
ASKING_PLACES = [start + 3 for start in _STARTS]
THERE_PLACES = [start + 3 for start in _THERE_STARTS]
_LOOKS = (*COLOURS, *product(COLOURS, SHAPES))
LOOKS = len(_LOOKS)
_SIDE_QUESTIONS = 0.4
_BLUR = 0.6  # of a location label, in bins


@dataclass(frozen=True)
class Batch:
    """Pictures with all that a step learns from.

    Attributes:
        pixel_values: [B, 3, SIDE, SIDE].
        input_ids: [B, LENGTH], the picture's rows as placeholders.
        edges: pixels of the asked boxes, [B, BOXES, 4].
        answers: tokens, [B, THERES].
        patches: size, colour and shape at every patch's centre, 0 for none, [B, ROWS, 3].
        seen: for every colour, and for every colour and shape, whether the picture has it, [B, LOOKS].
    """

    pixel_values: Tensor
    input_ids: Tensor
    edges: Tensor
    answers: Tensor
    patches: Tensor
    seen: Tensor


def batch(name: str, pictures: int) -> Batch:
    """The training batch of a name: the same whenever it is asked for."""
    drawn = random.Random(name)
    scenes = [scene(f"train/{name}/{i}") for i in range(pictures)]
    asked = [_questions(one, drawn) for one in scenes]
    return Batch(
        pixels(scenes),
        torch.tensor([_ids(questions) for questions in asked]),
        torch.tensor([[q.target.box for q in questions if q.target is not None] for questions in asked]),
        torch.tensor([[q.answer[0] for q in questions if not q.grounds] for questions in asked]),
        torch.tensor([_patches(one) for one in scenes]),
        torch.tensor([_seen(one) for one in scenes]),
    )


def positions() -> Tensor:
    """Every question stands right behind the picture, [1, LENGTH]."""
    rows = list(range(_PREFIX))
    for length, count in ((_BOX_ROWS, BOXES), (_THERE_ROWS, THERES)):
        rows += [_PREFIX + place for place in range(length)] * count
    return torch.tensor([rows])


def mask() -> Tensor:
    """Causal, and no question sees another, [1, 1, LENGTH, LENGTH], added to logits."""
    block = torch.zeros(LENGTH, dtype=torch.long)
    for index, start in enumerate([*_STARTS, *_THERE_STARTS]):
        block[start:] = index + 1
    sees = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    sees &= (block[:, None] == block[None]) | (block[None] == 0)
    return torch.zeros(LENGTH, LENGTH).masked_fill(~sees, torch.finfo(torch.float32).min)[None, None]


def soft_edges(edges: Tensor) -> Tensor:
    """A bell over the bins around each edge, [..., BINS]: a near miss is nearly right."""
    bins = torch.arange(BINS, dtype=torch.float32) * STEP
    away = (edges[..., None].float() - bins) / STEP
    return torch.softmax(-0.5 * (away / _BLUR) ** 2, dim=-1)


def _questions(one: Scene, drawn: random.Random) -> list[Question]:
    targets = list(one.things)
    drawn.shuffle(targets)
    targets = (targets * BOXES)[:BOXES]
    boxes = [ask_box(one, drawn, target, drawn.random() < _SIDE_QUESTIONS) for target in targets]
    return boxes + [ask_there(one, drawn) for _ in range(THERES)]


def _ids(questions: list[Question]) -> list[int]:
    ids = [TOKEN["<s>"], *[TOKEN["<image>"]] * ROWS]
    for question in questions:
        ids += [TOKEN[word] for word in question.words] + list(question.answer[:-1])
    return ids


def _patches(one: Scene) -> list[list[int]]:
    kinds = [
        [SIZES.index(t.kind[0]) + 1, COLOURS.index(t.kind[1]) + 1, SHAPES.index(t.kind[2]) + 1]
        for t in one.things
    ]
    return [[0, 0, 0] if place < 0 else kinds[place] for place in one.labels()]


def _seen(one: Scene) -> list[float]:
    looks = {thing.kind[1] for thing in one.things} | {thing.kind[1:] for thing in one.things}
    return [float(look in looks) for look in _LOOKS]


assert len(TOKEN) == FIRST_BIN + BINS  # logits of the last BINS tokens are those of the edges
