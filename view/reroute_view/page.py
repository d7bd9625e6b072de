"""A view as one page of HTML that needs nothing else: no network, pictures and script within it. It works from disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from itertools import groupby
from typing import Any

from reroute_spec import RerouteError
from reroute_spec.budget import format_keep
from reroute_spec.grids import Place
from reroute_spec.view import Run, ShownImage, View

from .colours import CIVIDIS, COLOURS
from .stages import (
    WORDS,
    Stage,
    frame_name,
    in_words,
    percent,
    rows_run,
    shown,
    stage_line,
    stage_title,
    stages,
    steps,
)


def check_jinja2() -> None:
    """Raises:
    RerouteError: it is not installed.
    """
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise RerouteError("html", "needs jinja2", "pip install 'vlm-reroute[view]'") from None


def page(view: View) -> str:
    """The page of a view. Every text in it is escaped, whoever it is from.

    Raises:
        RerouteError: jinja2 is not installed.
    """
    check_jinja2()
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "percent": percent}
    own = files(__package__)
    template = own.joinpath("page.html.jinja").read_text("utf-8")
    images, placed = shown(view)
    found = [stages(run) for run in view.runs]
    runs = [_run(*each, images) for each in zip(view.runs, found, placed, strict=True)]
    # "<" could end the script element that holds it
    data = json.dumps(_data(view, found, images, placed), allow_nan=False).replace("<", "\\u003c")
    return environment.from_string(template).render(
        view=view,
        runs=runs,
        known=bool(view.images),
        decides=any(run["decisions"] for run in runs),
        pictured=any(image.pictures for image in images),
        states=[(state, WORDS[state]) for state in WORDS if any(state in run["states"] for run in runs)],
        gaps=_gaps(images, placed),
        images=[_image_in_words(index, image, len(images)) for index, image in enumerate(view.images)],
        style=Markup(own.joinpath("page.css").read_text("utf-8")),
        script=Markup(own.joinpath("page.js").read_text("utf-8")),
        data=Markup(data),
        colours=COLOURS,
    )


def _data(
    view: View,
    found: Sequence[list[Stage]],
    images: Sequence[ShownImage],
    placed: Sequence[list[Place | None]],
) -> dict[str, Any]:
    """What the script draws."""
    starts: list[int] = []
    tiles: list[dict[str, Any]] = []
    for index, image in enumerate(images):
        starts.append(len(tiles))
        for frame in range(image.grid.frames):
            picture = image.pictures[frame] if image.pictures else None
            tiles.append(
                {
                    "rows": image.grid.rows,
                    "columns": image.grid.columns,
                    "picture": picture,
                    "name": frame_name(images, index, frame),
                }
            )
    runs = []
    for run, own, places in zip(view.runs, found, placed, strict=True):
        cells = [None if p is None else [starts[p.image] + p.frame, p.row, p.column] for p in places]
        runs.append(
            {
                "name": run.name,
                "cells": cells,
                "rows": list(run.trace.visual_rows),
                "stages": [_stage_data(stage) for stage in own],
            }
        )
    cut = [{"first": s.first, "last": s.last, "stages": s.stages} for s in steps(found)]
    heat = [[round(level * 255) for level in colour] for colour in CIVIDIS]
    return {
        "tiles": tiles,
        "runs": runs,
        "steps": cut,
        "words": WORDS,
        "colours": COLOURS,
        "heat": heat,
        "model": view.model,
        "prompt": view.prompt,
    }


def _stage_data(stage: Stage) -> dict[str, Any]:
    return {
        "first": stage.first,
        "last": stage.last,
        "states": stage.states,
        "scores": [_finite(score) for score in stage.scores],
        "ranks": stage.ranks,
        "title": stage_title(stage),
        "line": stage_line(stage),
    }


def _run(
    run: Run, found: list[Stage], places: list[Place | None], images: tuple[ShownImage, ...]
) -> dict[str, Any]:
    text = run.trace.num_rows - len(run.trace.visual_rows)
    blocks = [
        {"index": block, "rows": rows, "visual": rows - text, "text": text, "kv": kv}
        for block, (rows, kv) in enumerate(zip(rows_run(run, found), run.trace.kv_rows, strict=True))
    ]
    return {
        "name": run.name,
        "method": _method(run),
        "removes": run.removes,
        "states": {state for stage in found for state in stage.states},
        "decisions": [
            {
                "title": stage_title(stage),
                "stage": stage,
                "record": stage.decision,
                "edge": stage.edge,
                "patches": {state: in_words(stage, places, state, images) for state in WORDS},
            }
            for stage in found
            if stage.decision is not None
        ],
        "blocks": blocks,
        "ranges": _ranges(blocks),
        "highest": max([run.trace.num_rows, *run.trace.kv_rows]),
        "num_rows": run.trace.num_rows,
        "average": sum(block["visual"] for block in blocks) / len(blocks) if blocks else 0.0,
        "kv": sum(run.trace.kv_rows),
        "unrouted": run.trace.num_rows * sum(kv > 0 for kv in run.trace.kv_rows),
    }


def _ranges(blocks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring blocks with the same rows as one line of a table."""
    lines = []
    for _, group in groupby(blocks, key=lambda block: (block["rows"], block["kv"])):
        same = list(group)
        first, last = same[0]["index"], same[-1]["index"]
        lines.append({**same[0], "blocks": str(first) if first == last else f"{first} to {last}"})
    return lines


def _method(run: Run) -> str:
    if run.schedule is None:
        return ""
    verb = "removes what it leaves out" if run.removes else "defers what it leaves out"
    keeps = ", ".join(f"{format_keep(d.keep)} at {d.layer}" for d in run.schedule.decisions)
    return f"{verb}; keeps {keeps}" if keeps else "decides nothing"


def _gaps(images: Sequence[ShownImage], placed: Sequence[list[Place | None]]) -> bool:
    """Whether some cell is no visual row in some run."""
    cells = sum(image.grid.size - image.grid.leading for image in images)
    return any(sum(place is not None for place in places) < cells for places in placed)


def _image_in_words(index: int, image: ShownImage, count: int) -> str:
    grid = image.grid
    name = f"{grid.kind} {index + 1}" if count > 1 else grid.kind
    frames = f"{grid.frames} frames of " if grid.frames > 1 else ""
    return f"{name}: {frames}{grid.rows} x {grid.columns} rows"


def _finite(score: float | None) -> float | None:
    """JSON holds no infinities; the largest number stands for one."""
    return None if score is None else max(-1e300, min(1e300, score))


def number(value: float | None) -> str:
    """A score as people read it."""
    return "–" if value is None else f"{value:.4g}"  # noqa: RUF001
