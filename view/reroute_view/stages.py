"""What a page and a figure show of a view, as plain lists: states of rows stage by stage, rows of blocks, numbers of decisions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from reroute_spec import DecisionRecord
from reroute_spec.grids import Grid, Place
from reroute_spec.view import Run, ShownImage, View

RUNS, REENTERS, DEFERRED, REMOVED = "r", "e", "d", "x"
WORDS = {RUNS: "runs", REENTERS: "runs, re-entered", DEFERRED: "deferred", REMOVED: "removed"}
_LINE = 24
"""Columns in which rows stand where no grid is known."""


@dataclass(frozen=True)
class Stage:
    """Blocks of a run between two of its decisions.

    Attributes:
        first, last: its blocks.
        states: per ordinal one of :data:`WORDS`.
        decision: at whose blocks' input; None before the first.
        scores: per ordinal, None where it was no candidate.
        ranks: likewise; 1 is the highest score.
    """

    first: int
    last: int
    states: str
    decision: DecisionRecord | None
    scores: list[float | None]
    ranks: list[int | None]

    @property
    def running(self) -> int:
        """Visual rows that run."""
        return sum(self.states.count(state) for state in (RUNS, REENTERS))

    @property
    def edge(self) -> tuple[float | None, float | None]:
        """The lowest score that runs and the highest candidate's that does not; over all spans."""
        chosen = [
            s for s, state in zip(self.scores, self.states, strict=True) if s is not None and state in "re"
        ]
        others = [
            s for s, state in zip(self.scores, self.states, strict=True) if s is not None and state in "dx"
        ]
        return min(chosen, default=None), max(others, default=None)


@dataclass(frozen=True)
class Step:
    """Blocks in which no run decides anew: what a slider stops at.

    Attributes:
        first, last: the blocks.
        stages: per run the index of its stage.
    """

    first: int
    last: int
    stages: tuple[int, ...]


def stages(run: Run) -> list[Stage]:
    """The stages of a run; the first has no decision unless block 0 decides."""
    decisions, count, blocks = run.trace.decisions, len(run.trace.visual_rows), len(run.trace.kv_rows)
    found = []
    if not decisions or decisions[0].layer:
        last = decisions[0].layer - 1 if decisions else blocks - 1
        found.append(Stage(0, last, RUNS * count, None, [None] * count, [None] * count))
    ends = [*(decision.layer - 1 for decision in decisions[1:]), blocks - 1]
    for decision, last in zip(decisions, ends, strict=False):  # without decisions nothing ends
        found.append(_stage(decision, last, count, REMOVED if run.removes else DEFERRED))
    return found


def _stage(decision: DecisionRecord, last: int, count: int, out: str) -> Stage:
    selected, again = set(decision.selected), set(decision.reentered)
    states = "".join(REENTERS if row in again else RUNS if row in selected else out for row in range(count))
    scores: list[float | None] = [None] * count
    ranks: list[int | None] = [None] * count
    # ties go to the lower ordinal, as in the selection
    order = sorted(range(len(decision.pool)), key=lambda place: (-decision.scores[place], place))
    for rank, index in enumerate(order, start=1):
        row = decision.pool[index]
        scores[row], ranks[row] = decision.scores[index], rank
    return Stage(decision.layer, last, states, decision, scores, ranks)


def steps(all_stages: Sequence[Sequence[Stage]]) -> list[Step]:
    """The :func:`stages` of all runs, cut at every decision of any."""
    starts = sorted({stage.first for own in all_stages for stage in own})
    ends = [*(start - 1 for start in starts[1:]), max(own[-1].last for own in all_stages)]
    return [
        Step(first, last, tuple(max(i for i, s in enumerate(own) if s.first <= first) for own in all_stages))
        for first, last in zip(starts, ends, strict=True)
    ]


def rows_run(run: Run, found: Sequence[Stage]) -> list[int]:
    """Rows of this turn that every block runs, text among them; ``found`` are the run's :func:`stages`."""
    text = run.trace.num_rows - len(run.trace.visual_rows)
    return [rows for stage in found for rows in [text + stage.running] * (stage.last + 1 - stage.first)]


def shown(view: View) -> tuple[tuple[ShownImage, ...], list[list[Place | None]]]:
    """The images, and per run where every ordinal stands; one blank grid of lines where none is known."""
    known = [view.places(run) for run in view.runs]
    placed = [places for places in known if places is not None]
    if len(placed) == len(known):
        return view.images, placed
    count = max(len(run.trace.visual_rows) for run in view.runs)
    if not count:
        return (), [[] for _ in view.runs]
    columns = min(_LINE, count)
    grid = Grid("image", 1, -(-count // columns), columns)
    lines: list[list[Place | None]] = [
        [Place(0, 0, *divmod(row, columns)) for row in range(len(run.trace.visual_rows))] for run in view.runs
    ]
    return (ShownImage(grid),), lines


def stage_title(stage: Stage) -> str:
    """``Decision 2 at block 7``, or what comes before the first."""
    if stage.decision is None:
        return "Before any decision"
    return f"Decision {stage.decision.stage} at block {stage.decision.layer}"


def stage_line(stage: Stage) -> str:
    """The numbers of a stage in a line."""
    line = f"{stage.running} of {len(stage.states)} visual rows run"
    if stage.decision is not None and stage.decision.stage > 1 and REMOVED not in stage.states:
        line += f", {len(stage.decision.reentered)} of them re-enter"
    if stage.decision is not None:
        line += f"; margin {percent(stage.decision.margin)}"
    return line


def percent(value: float | None) -> str:
    """A margin, which has no value where nothing was left out."""
    if value is None:
        return "none"
    return f"{value:.2%}" if math.isfinite(value) else "undefined"


def in_words(stage: Stage, places: list[Place | None], state: str, images: tuple[ShownImage, ...]) -> str:
    """Which patches are in a state, as text: ``row 1: 2-4, 7; row 3: 1``, counted from 1."""
    cells = [p for p, own in zip(places, stage.states, strict=True) if own == state and p is not None]
    frames = []
    for (image, frame), own in groupby(cells, key=lambda p: (p.image, p.frame)):
        lines = groupby(own, key=lambda p: p.row)
        rows = "; ".join(f"row {row + 1}: {_ranges([p.column + 1 for p in line])}" for row, line in lines)
        name = frame_name(images, image, frame)
        frames.append(f"{name}: {rows}" if name else rows)
    return ". ".join(frames) or "none"


def frame_name(images: Sequence[ShownImage], image: int, frame: int) -> str:
    """``video 2, frame 1``, as far as there are others to be told from."""
    grid = images[image].grid
    parts = [f"{grid.kind} {image + 1}"] if len(images) > 1 else []
    return ", ".join([*parts, *([f"frame {frame + 1}"] if grid.frames > 1 else [])])


def _ranges(numbers: list[int]) -> str:
    """``2-4, 7`` of ascending numbers."""
    parts = []
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(parts)
