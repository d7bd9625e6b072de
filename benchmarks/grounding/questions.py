"""What is asked of a scene, in tokens: where something is (grounding), and whether something is there (gist).

Every prompt is ``<s>``, the picture's rows, three words and the task: ``big red circle box``, ``left red circle box`` (of the two
red circles the one further left), ``any red circle there``, ``any red thing there``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from .scenes import COLOURS, ROWS, SHAPES, SIDE, SIZES, Kind, Scene, Thing

STEP = 4
BINS = SIDE // STEP + 1
"""A location token stands for an edge at a multiple of STEP pixels."""

SIDES = {"left": (0, -1), "right": (0, 1), "upper": (1, -1), "lower": (1, 1)}  # axis, direction
_CLEARLY = 8  # pixels between two centres that a side tells apart

WORDS = (
    "<pad>", "<s>", "<image>", "box", "there", "yes", "no", "any", "thing",
    *SIDES, *SIZES, *COLOURS, *SHAPES,
)  # fmt: skip
VOCABULARY = (*WORDS, *(f"<{edge}>" for edge in range(BINS)))
TOKEN = {word: token for token, word in enumerate(VOCABULARY)}
FIRST_BIN = len(WORDS)
PROMPT_ROWS = 1 + ROWS + 4
BOX_TOKENS = 4

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Question:
    """One question about a scene.

    Attributes:
        words: three words and the task.
        answer: its tokens.
        kind: ``attributes`` or ``side`` (grounding); ``colour`` or ``colour and shape`` (gist).
        target: what a box is asked of, or None.
    """

    words: tuple[str, str, str, str]
    answer: tuple[int, ...]
    kind: str
    target: Thing | None = None

    @property
    def grounds(self) -> bool:
        """Whether the answer is a box."""
        return self.target is not None

    def ids(self) -> list[int]:
        """The prompt's tokens, one per row."""
        return [TOKEN["<s>"], *[TOKEN["<image>"]] * ROWS, *(TOKEN[word] for word in self.words)]


def box_tokens(box: tuple[int, int, int, int]) -> tuple[int, ...]:
    """The nearest edges: left, top, right, bottom."""
    return tuple(FIRST_BIN + round(edge / STEP) for edge in box)


def read_box(tokens: list[int]) -> Box | None:
    """The box that an answer says, or None where it says none."""
    edges = [(token - FIRST_BIN) * STEP for token in tokens[:BOX_TOKENS]]
    if len(edges) < BOX_TOKENS or min(edges) < 0 or edges[0] >= edges[2] or edges[1] >= edges[3]:
        return None
    return (float(edges[0]), float(edges[1]), float(edges[2]), float(edges[3]))


def iou(one: Box | None, other: Box | tuple[int, int, int, int]) -> float:
    """Intersection over union; 0 of no box."""
    if one is None:
        return 0.0
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (areas - shared)


def ask_box(scene: Scene, drawn: random.Random, target: Thing, side: bool) -> Question:
    """Where ``target`` is: by its side where that is wanted and tells it from its twin of another size, else by its attributes."""
    size, colour, shape = target.kind
    answer = box_tokens(target.box)
    twin = next((t for t in scene.things if t.kind[1:] == target.kind[1:] and t is not target), None)
    if side and twin is not None:
        words = [
            word
            for word, (axis, direction) in SIDES.items()
            if direction * (target.centre[axis] - twin.centre[axis]) >= _CLEARLY
        ]
        if words:
            return Question((drawn.choice(words), colour, shape, "box"), answer, "side", target)
    return Question((size, colour, shape, "box"), answer, "attributes", target)


def ask_there(scene: Scene, drawn: random.Random) -> Question:
    """Whether something is there: as often yes as no, where there is something that is not."""
    by_shape, wanted = drawn.random() < 0.5, drawn.random() < 0.5
    seen = {_looks(thing.kind, by_shape) for thing in scene.things}
    every = [(colour, shape) for colour in COLOURS for shape in (SHAPES if by_shape else ("thing",))]
    missing = [looks for looks in every if looks not in seen]
    yes = wanted or not missing
    colour, shape = drawn.choice(sorted(seen) if yes else missing)
    words = ("any", colour, shape, "there")
    return Question(words, (TOKEN["yes" if yes else "no"],), "colour and shape" if by_shape else "colour")


def _looks(kind: Kind, by_shape: bool) -> tuple[str, str]:
    return kind[1], kind[2] if by_shape else "thing"
