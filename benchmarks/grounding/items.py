"""Validation and test: one picture each, one question of either sort about it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .questions import Question, ask_box, ask_there
from .scenes import SIDE, Scene, distance, scene

_SIDE_QUESTIONS = 0.3  # of the questions, where the scene has twins


@dataclass(frozen=True)
class Item:
    """A scene, where something in it is, and whether something is in it.

    Attributes:
        held_out: whether the asked object is of a kind that training never drew.
    """

    scene: Scene
    box: Question
    there: Question
    held_out: bool

    def groups(self) -> list[str]:
        """What kind of item it is, for tables."""
        assert self.box.target is not None
        kind = self.box.target.kind
        others = [thing.kind for thing in self.scene.things if thing.kind != kind]
        near = min(distance(kind, other) for other in others)
        return [
            "held-out kind" if self.held_out else "trained kind",
            f"{kind[0]} object",
            "asked by side" if self.box.kind == "side" else "asked by attributes",
            "one attribute apart" if near == 1 else "further apart",
            "few objects (3-4)" if len(self.scene.things) < 5 else "many objects (5-7)",
        ]


def items(split: str, count: int) -> list[Item]:
    """The first items of a split; in ``test`` every second one asks for a kind that training never drew.

    Args:
        split: ``validation`` or ``test``. Nothing is chosen by looking at ``test``.
        count: how many; more of them begin with the same ones.
    """
    return [_item(f"{split}/{index}", split == "test" and index % 2 == 1) for index in range(count)]


def _item(name: str, held_out: bool) -> Item:
    found = scene(name, held_out=held_out)
    drawn = random.Random(f"{name}/questions")
    target = found.things[0] if held_out else drawn.choice(found.things)
    box = ask_box(found, drawn, target, drawn.random() < _SIDE_QUESTIONS)
    return Item(found, box, ask_there(found, drawn), held_out)


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """Pictures as the tower takes them, [B, 3, SIDE, SIDE], from -1 to 1."""
    drawn = np.stack([np.asarray(one.draw()) for one in scenes])
    assert drawn.shape[1:] == (SIDE, SIDE, 3)
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def box_inputs(asked: Sequence[Item]) -> dict[str, Tensor]:
    """The inputs of the items' questions for a box."""
    return inputs([item.scene for item in asked], [item.box for item in asked])


def inputs(scenes: Sequence[Scene], questions: Sequence[Question]) -> dict[str, Tensor]:
    """What a processor would return; prompts are equally long, so there is no padding."""
    ids = torch.tensor([question.ids() for question in questions])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels(scenes)}
