"""Synthetic scenes: coloured shapes that differ in little from one another, drawn from a name alone.

The name of a scene, ``SPLIT/…``, is the seed of everything in it, so splits never share a scene.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

from PIL import Image, ImageDraw

SIDE, PATCH = 96, 8
GRID = SIDE // PATCH
ROWS = GRID * GRID
"""Pixels of a picture's side and of a patch's; visual rows of a picture."""

SIZES = ("small", "big")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle")

_RGB = {
    "red": (205, 45, 45),
    "green": (45, 150, 70),
    "blue": (45, 85, 200),
    "yellow": (235, 200, 50),
    "purple": (140, 70, 170),
    "cyan": (50, 180, 195),
}
_SIDES = {"small": (14, 18), "big": (24, 30)}
_FEWEST, _MOST = 3, 7
_NEIGHBOUR = 0.6  # how often an object differs from an earlier one in a single attribute

Kind = tuple[str, str, str]
"""Size, colour, shape. No two objects of a scene have the same."""

KINDS: tuple[Kind, ...] = tuple(product(SIZES, COLOURS, SHAPES))
HELD_OUT: frozenset[Kind] = frozenset(
    (SIZES[i % 2], colour, SHAPES[i % 3]) for i, colour in enumerate(COLOURS)
)
"""Never drawn in training: one of every colour, of every size and shape together."""


@dataclass(frozen=True)
class Thing:
    """An object: what it is, and its box in pixels, right and lower edge excluded."""

    kind: Kind
    box: tuple[int, int, int, int]

    @property
    def centre(self) -> tuple[float, float]:
        """Of the box, x and y."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    def patches(self) -> list[int]:
        """Visual ordinals of the patches whose centre is inside the box."""
        left, top, right, bottom = self.box
        middles = [PATCH * i + PATCH / 2 for i in range(GRID)]
        return [
            row * GRID + column
            for row, y in enumerate(middles)
            for column, x in enumerate(middles)
            if left <= x < right and top <= y < bottom
        ]


@dataclass(frozen=True)
class Scene:
    """What is in a picture.

    Attributes:
        name: the seed that it was drawn from.
        things: the objects; of a held-out scene, the first is of a held-out kind.
    """

    name: str
    things: tuple[Thing, ...]

    def draw(self) -> Image.Image:
        """The picture, [SIDE, SIDE] RGB: the ground and every colour vary a little from scene to scene."""
        drawn = random.Random(f"{self.name}/paint")
        grey = drawn.randint(205, 245)
        image = Image.new("RGB", (SIDE, SIDE), (grey, grey, grey))
        pen = ImageDraw.Draw(image)
        for thing in self.things:
            colour = tuple(channel + drawn.randint(-12, 12) for channel in _RGB[thing.kind[1]])
            _outline(pen, thing, colour)
        return image

    def labels(self) -> list[int]:
        """Per patch, the place in ``things`` of the object at its centre, or -1."""
        image = Image.new("L", (SIDE, SIDE), 255)
        pen = ImageDraw.Draw(image)
        for place, thing in enumerate(self.things):
            _outline(pen, thing, place)
        found = [image.getpixel((PATCH * x + PATCH // 2, PATCH * y + PATCH // 2)) for y, x in _PATCHES]
        return [-1 if place == 255 else int(place) for place in found]  # type: ignore[arg-type]


_PATCHES = tuple(product(range(GRID), range(GRID)))


def scene(name: str, *, held_out: bool = False) -> Scene:
    """The scene of a name.

    Args:
        name: begins with its split.
        held_out: whether its first object is of a kind that training never draws; others then may be too.
    """
    drawn = random.Random(name)
    while True:
        first = drawn.choice(sorted(HELD_OUT)) if held_out else None
        kinds = _kinds(drawn, drawn.randint(_FEWEST, _MOST), first)
        things = _placed(drawn, kinds)
        if things is not None:
            return Scene(name, things)


def _kinds(drawn: random.Random, count: int, first: Kind | None) -> list[Kind]:
    """Different kinds, most of them one attribute away from another: what is asked for needs all of its words."""
    allowed = [kind for kind in KINDS if first is not None or kind not in HELD_OUT]
    kinds = [first or drawn.choice(allowed)]
    while len(kinds) < count:
        left = [kind for kind in allowed if kind not in kinds]
        if drawn.random() < _NEIGHBOUR:
            near = drawn.choice(kinds)
            left = [kind for kind in left if distance(kind, near) == 1] or left
        kinds.append(drawn.choice(left))
    return kinds


def distance(one: Kind, other: Kind) -> int:
    """Attributes in which two kinds differ."""
    return sum(a != b for a, b in zip(one, other, strict=True))


def _placed(drawn: random.Random, kinds: Iterable[Kind]) -> tuple[Thing, ...] | None:
    """Boxes a pixel or more apart, or None where one finds no room."""
    things: list[Thing] = []
    for kind in kinds:
        for _ in range(40):
            side = drawn.randint(*_SIDES[kind[0]])
            left, top = drawn.randint(0, SIDE - side), drawn.randint(0, SIDE - side)
            box = (left, top, left + side, top + side)
            if all(_apart(box, thing.box) for thing in things):
                things.append(Thing(kind, box))
                break
        else:
            return None
    return tuple(things)


def _apart(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]


def _outline(pen: ImageDraw.ImageDraw, thing: Thing, colour: object) -> None:
    left, top, right, bottom = thing.box
    inside = (left, top, right - 1, bottom - 1)
    shape = thing.kind[2]
    if shape == "circle":
        pen.ellipse(inside, fill=colour)  # type: ignore[arg-type]
    elif shape == "square":
        pen.rectangle(inside, fill=colour)  # type: ignore[arg-type]
    else:
        corners = [(left, bottom - 1), (right - 1, bottom - 1), ((left + right - 1) / 2, top)]
        pen.polygon(corners, fill=colour)  # type: ignore[arg-type]
