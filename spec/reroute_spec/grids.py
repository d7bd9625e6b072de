"""Which image, frame, row and column a visual row stands for: rows follow images row by row, and videos frame by frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from .errors import RerouteError

Kind = Literal["image", "video"]


class Sized(Protocol):
    """What a run of placeholders stands for: a grid, or whatever knows its own."""

    @property
    def size(self) -> int:
        """Its decoder rows."""
        ...


_S = TypeVar("_S", bound=Sized)


@dataclass(frozen=True)
class Grid:
    """The rows that a decoder is given for one image or video.

    Attributes:
        kind: ``image`` or ``video``.
        frames: of a video, as the model merges them; 1 for an image.
        rows, columns: of one frame, in decoder rows: patches, or what several patches are merged into.
        leading: rows before the first frame that stand for no place in it, such as a class token.
    """

    kind: Kind
    frames: int
    rows: int
    columns: int
    leading: int = 0

    @property
    def size(self) -> int:
        """All its decoder rows."""
        return self.leading + self.frames * self.rows * self.columns


@dataclass(frozen=True)
class Place:
    """A cell of a grid, everything counted from 0.

    Attributes:
        image: place of the image or video in the prompt.
        frame, row, column: of its grid.
    """

    image: int
    frame: int
    row: int
    column: int


def place(grids: Sequence[Grid], index: int) -> Place | None:
    """Where the visual row ``index`` of a request stands; None for a row that stands for no place.

    Args:
        grids: of its images and videos, in prompt order.
        index: counts all their rows from 0. It is the ordinal where every row is routable.

    Raises:
        RerouteError: the grids have fewer rows.
    """
    left = index
    for image, grid in enumerate(grids):
        if 0 <= left < grid.size:
            cell = left - grid.leading
            if cell < 0:
                return None
            frame, cell = divmod(cell, grid.rows * grid.columns)
            row, column = divmod(cell, grid.columns)
            return Place(image, frame, row, column)
        left -= grid.size
    total = sum(grid.size for grid in grids)
    raise RerouteError("index", f"{index} of {total} rows", "give the index of a visual row, from 0")


def in_prompt_order(ids: Sequence[Sequence[int]], media: Mapping[int, Sequence[_S]]) -> list[list[_S]] | None:
    """Per request its images and videos in prompt order, or None where they do not fit the placeholders.

    Text may stand inside a video (Qwen3-VL and Qwen3.5 put a timestamp before every frame), and images may touch: only
    the counts say where one ends.

    Args:
        ids: tokens of every request of a batch.
        media: by placeholder id, everything of that kind in the order of the batch.
    """
    waiting = {token: list(sized) for token, sized in media.items()}
    found = []
    for request in ids:
        own: list[_S] = []
        missing = dict.fromkeys(waiting, 0)
        for token in request:
            if token not in waiting:
                continue
            if not missing[token]:
                if not waiting[token]:
                    return None
                own.append(waiting[token].pop(0))
                missing[token] = own[-1].size
            missing[token] -= 1
        if any(missing.values()):
            return None
        found.append(own)
    return None if any(waiting.values()) else found
