"""A trace with what it takes to draw it: the grids of its images, their pictures, the prompt. One JSON document, no model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import RerouteError, unknown
from .grids import Grid, Place, place
from .schedule import Schedule, check_keys
from .trace import DecisionRecord, RoutingTrace

_T = TypeVar("_T")
FORMAT = "urn:vlm-reroute:view:1"
_PICTURE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")
_MOST = 1 << 20
"""Cells of all grids. More are no prompt of today's models, and would only exhaust the reader."""


@dataclass(frozen=True)
class ShownImage:
    """An image or video of the prompt.

    Attributes:
        grid: of its rows.
        pictures: one per frame as the model is given it, a ``data:`` address; empty where there is none to show.
    """

    grid: Grid
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """What one schedule decided.

    Attributes:
        name: of the method, for a heading.
        trace: of the request.
        schedule: None where it is not known: deferred and removed rows are then not told apart.
        kept: per ordinal, the row of all images' rows that it is; None where it is that row's own number. Rows are missing
            where a first stage left patches out.
    """

    name: str
    trace: RoutingTrace
    schedule: Schedule | None = None
    kept: tuple[int, ...] | None = None

    @property
    def removes(self) -> bool:
        """Whether rows that are left out are gone for good."""
        return self.schedule is not None and self.schedule.action == "delete"


@dataclass(frozen=True)
class View:
    """One request, and what one schedule, or two beside each other, decided for it.

    Attributes:
        runs: one, or two of the same request.
        images: in prompt order; empty where no grid is known.
        prompt: its text, for the heading.
        model: its name, likewise.
    """

    runs: tuple[Run, ...]
    images: tuple[ShownImage, ...] = ()
    prompt: str = ""
    model: str = ""

    def __post_init__(self) -> None:
        if not 1 <= len(self.runs) <= 2:
            raise RerouteError("runs", f"are {len(self.runs)}", "give one run, or two to compare")
        cells = sum(shown.grid.size for shown in self.images)
        if cells > _MOST:
            raise RerouteError("images", f"have {cells} rows", f"give at most {_MOST}")
        for index, run in enumerate(self.runs):
            _check_run(f"runs[{index}]", run, cells)

    def places(self, run: Run) -> list[Place | None] | None:
        """Per ordinal of a run where it stands; None where no grid is known."""
        if not self.images:
            return None
        grids = [shown.grid for shown in self.images]
        rows = range(len(run.trace.visual_rows)) if run.kept is None else run.kept
        return [place(grids, row) for row in rows]

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the form of ``schemas/view.json``."""
        return {
            "format": FORMAT,
            "model": self.model,
            "prompt": self.prompt,
            "images": [{**vars(shown.grid), "pictures": list(shown.pictures)} for shown in self.images],
            "runs": [
                {
                    "name": run.name,
                    "schedule": None if run.schedule is None else run.schedule.to_dict(),
                    "kept": None if run.kept is None else list(run.kept),
                    "trace": run.trace.to_dict(),
                }
                for run in self.runs
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> View:
        """Reads what ``to_dict`` wrote, or a trace by itself (``schemas/trace.json``), which knows no grid.

        Raises:
            RerouteError: another version, an unknown or missing field, one of another type, or rows that do not fit.
        """
        if isinstance(data, Mapping) and "format" not in data and "num_rows" in data:
            return cls((Run("trace", RoutingTrace.from_dict(data)),))
        if isinstance(data, Mapping) and data.get("format", FORMAT) != FORMAT:
            raise RerouteError("format", f"is {data['format']!r}", f"this version reads {FORMAT!r}")
        check_keys("", data, ("format", "model", "prompt", "images", "runs"), root="view")
        return cls(
            runs=tuple(_run(f"runs[{i}]", run) for i, run in enumerate(_list("runs", data["runs"]))),
            images=tuple(
                _image(f"images[{i}]", image) for i, image in enumerate(_list("images", data["images"]))
            ),
            prompt=_text("prompt", data["prompt"]),
            model=_text("model", data["model"]),
        )


def _run(path: str, data: Any) -> Run:
    check_keys(path, data, ("name", "schedule", "kept", "trace"))
    kept, schedule = data["kept"], data["schedule"]
    if kept is not None:
        rows = _list(f"{path}.kept", kept)
        kept = tuple(_count(f"{path}.kept[{i}]", row) for i, row in enumerate(rows))
    if schedule is not None:
        schedule = _part(f"{path}.schedule", Schedule.from_dict, schedule)
    trace = _part(f"{path}.trace", RoutingTrace.from_dict, data["trace"])
    return Run(_text(f"{path}.name", data["name"]), trace, schedule, kept)


def _part(path: str, read: Callable[[Any], _T], data: Any) -> _T:
    """A part with a form of its own; what it refuses is named from the document's root."""
    name = path.rpartition(".")[2]
    try:
        return read(data)
    except RerouteError as error:
        inner = error.field.removeprefix(name).removeprefix(".")
        raise RerouteError(f"{path}.{inner}".rstrip("."), error.problem, error.remedy) from None


def _image(path: str, data: Any) -> ShownImage:
    check_keys(path, data, ("kind", "frames", "rows", "columns", "leading", "pictures"))
    if data["kind"] not in ("image", "video"):
        raise unknown(f"{path}.kind", data["kind"], ["image", "video"])
    frames, rows, columns = (
        _count(f"{path}.{name}", data[name], 1) for name in ("frames", "rows", "columns")
    )
    pictures = _list(f"{path}.pictures", data["pictures"])
    if pictures and len(pictures) != frames:
        problem = f"are {len(pictures)} of {frames} frames"
        raise RerouteError(f"{path}.pictures", problem, "give one per frame, or none")
    for index, picture in enumerate(pictures):
        # a page shows it as it is: nothing else may come in, least of all the address of another machine
        if not isinstance(picture, str) or not _PICTURE.fullmatch(picture):
            raise RerouteError(
                f"{path}.pictures[{index}]", "is no picture", "give data:image/png;base64,… or jpeg"
            )
    leading = _count(f"{path}.leading", data["leading"])
    grid = Grid(data["kind"], frames, rows, columns, leading)
    return ShownImage(grid, tuple(pictures))


def _check_run(path: str, run: Run, cells: int) -> None:
    """Refuse lists that a page would misplace."""
    count, blocks = len(run.trace.visual_rows), len(run.trace.kv_rows)
    rows = run.trace.visual_rows
    if list(rows) != sorted(set(rows)) or (rows and rows[-1] >= run.trace.num_rows):
        problem = f"are no ascending rows of {run.trace.num_rows}"
        raise RerouteError(f"{path}.trace.visual_rows", problem, "give the prompt row of every ordinal")
    for name, counts in (("num_rows", [run.trace.num_rows]), ("kv_rows", run.trace.kv_rows)):
        if max(counts, default=0) >= 1 << 31:
            raise RerouteError(
                f"{path}.trace.{name}", "are more than any prompt has", "give counts below 2^31"
            )
    if run.kept is None:
        # the last prompt row is never routable, even where it is an image's
        if cells and not cells - 1 <= count <= cells:
            problem = f"are {count}, the images have {cells}"
            raise RerouteError(f"{path}.trace.visual_rows", problem, "say in kept which of them they are")
    elif (
        len(run.kept) != count
        or list(run.kept) != sorted(set(run.kept))
        or (cells and max(run.kept, default=0) >= cells)
    ):
        problem = f"are no {count} ascending rows of {cells}"
        raise RerouteError(f"{path}.kept", problem, "give the row of every ordinal")
    layer = -1
    for index, decision in enumerate(run.trace.decisions):
        where = f"{path}.trace.decisions[{index}]"
        if not layer < decision.layer < blocks:
            raise RerouteError(f"{where}.layer", f"is {decision.layer}", f"give ascending blocks of {blocks}")
        layer = decision.layer
        _check_decision(where, decision, count)


def _check_decision(path: str, decision: DecisionRecord, count: int) -> None:
    for name in ("pool", "selected", "deferred", "reentered"):
        rows = getattr(decision, name)
        if list(rows) != sorted(set(rows)) or (rows and rows[-1] >= count):
            raise RerouteError(
                f"{path}.{name}", f"is no ascending list of {count} ordinals", "see RR-POOL-006"
            )
    if len(decision.scores) != len(decision.pool):
        problem = f"are {len(decision.scores)} for {len(decision.pool)} candidates"
        raise RerouteError(f"{path}.scores", problem, "give one per candidate")
    if any(map(math.isnan, decision.scores)):
        raise RerouteError(f"{path}.scores", "hold NaN", "nothing is decided by it (RR-SEL-005)")


def _count(field: str, value: object, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise RerouteError(field, f"{value!r} is no count", f"give an integer >= {least}")
    return value


def _list(field: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise RerouteError(field, f"is a {type(value).__name__}", "give a list")
    return value


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise RerouteError(field, f"is a {type(value).__name__}", "give a string")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise RerouteError(field, "holds half of a surrogate pair", "give text that UTF-8 can hold")
    return value
