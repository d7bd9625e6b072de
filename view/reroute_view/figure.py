"""A view as a matplotlib figure: a line per step, what ran and the scores of every run beside each other, rows of blocks below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reroute_spec import RerouteError
from reroute_spec.grids import Place
from reroute_spec.view import Run, ShownImage, View

from .colours import CIVIDIS, COLOURS
from .pictures import pixels
from .stages import DEFERRED, REENTERS, REMOVED, RUNS, WORDS, Stage, percent, rows_run, shown, stages, steps

_PANEL = 2.6  # inches, of one picture
_ACROSS, _GAP = 3, 0.6  # tiles in a line, and cells between them
_INK = {False: ("#111111", "#ffffff", "#a4abb2"), True: ("#e5e8eb", "#14171a", "#b4bcc4")}
_HATCHES = {DEFERRED: "/////", REMOVED: "xxx"}


def check_matplotlib() -> None:
    """Raises:
    RerouteError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise RerouteError("figure", "needs matplotlib", "pip install 'vlm-reroute[view]'") from None


def figure(view: View, *, dark: bool = False) -> Any:
    """A ``matplotlib.figure.Figure``; no window and no global state is touched.

    Args:
        view: to draw.
        dark: light ink on a dark ground.

    Raises:
        RerouteError: matplotlib is not installed.
    """
    check_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    ink, ground, quiet = _INK[dark]
    images, placed = shown(view)
    own = [stages(run) for run in view.runs]
    # before the first decision every row runs: nothing to see where there is another
    every = steps(own)
    cut = [step for step in every if any(map(_decided, own, step.stages))] or every
    boxes, size = _boxes(images)
    style: Any = {
        "text.parse_math": False,  # a prompt may hold anything
        "hatch.linewidth": 0.5,
        "text.color": ink,
        "axes.labelcolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.edgecolor": quiet,
        "font.size": 8,
    }
    across = 2 * len(view.runs)
    high = _PANEL * min(1.6, size[1] / size[0]) if images else 0.0
    lines = len(cut) if images else 0
    with matplotlib.rc_context(style):
        drawn = Figure(
            figsize=(_PANEL * across, lines * (high + 0.45) + 2.6), facecolor=ground, layout="constrained"
        )
        grid = drawn.add_gridspec(lines + 1, across, height_ratios=[high + 0.3] * lines + [1.5])
        for line in range(lines):
            for run, (found, places) in enumerate(zip(own, placed, strict=True)):
                stage = found[cut[line].stages[run]]
                blocks = _blocks(cut[line].first, cut[line].last)
                for column, paint in enumerate((_states, _scores)):
                    axes = drawn.add_subplot(grid[line, 2 * run + column])
                    _frame(axes, size)
                    paint(axes, stage, places, images, boxes)
                    what = f"{stage.running} run" if column == 0 else "scores"
                    if column and stage.decision is not None:
                        what += f", margin {percent(stage.decision.margin)}"
                    axes.set_title(f"{view.runs[run].name}\n{blocks}: {what}", fontsize=8)
        for run, shown_run in enumerate(view.runs):
            axes = drawn.add_subplot(grid[lines, 2 * run : 2 * run + 2], facecolor=ground)
            _bars(axes, shown_run, own[run], ink, quiet)
        heading = " · ".join(part for part in (view.model, _cut(view.prompt, 60 * len(view.runs))) if part)
        drawn.suptitle(heading or "vlm-reroute trace", fontsize=9)
        if images:
            scored = [stage for found in own for stage in found if stage.decision is not None]
            gaps = any(None in stage.scores for stage in scored)
            _legend(
                drawn, {state for found in own for stage in found for state in stage.states}, ground, gaps
            )
    return drawn


def _decided(found: Sequence[Stage], index: int) -> bool:
    return found[index].decision is not None


def _blocks(first: int, last: int) -> str:
    return f"block {first}" if first == last else f"blocks {first} to {last}"


def _cut(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


_Box = tuple[float, float]
"""Left and top, in cells."""


def _boxes(images: Sequence[ShownImage]) -> tuple[list[list[_Box]], tuple[float, float]]:
    """Per image and frame where it lies, in cells, all equally large; and the size of all."""
    tiles = [(i, image.grid) for i, image in enumerate(images) for _ in range(image.grid.frames)]
    found: list[list[_Box]] = [[] for _ in images]
    top = widest = 0.0
    for start in range(0, len(tiles), _ACROSS):
        line, left = tiles[start : start + _ACROSS], 0.0
        for index, grid in line:
            found[index].append((left, top))
            left += grid.columns + _GAP
        top += max(grid.rows for _, grid in line) + _GAP
        widest = max(widest, left - _GAP)
    return found, (max(widest, 1.0), max(top - _GAP, 1.0))


def _frame(axes: Any, size: tuple[float, float]) -> None:
    axes.set_xlim(0, size[0])
    axes.set_ylim(size[1], 0)
    axes.set_aspect("equal")
    axes.axis("off")


def _cells(places: Sequence[Place | None], rows: Sequence[int], boxes: list[list[_Box]]) -> list[Any]:
    from matplotlib.patches import Rectangle

    found = []
    for row in rows:
        if (p := places[row]) is not None:
            left, top = boxes[p.image][p.frame]
            found.append(Rectangle((left + p.column, top + p.row), 1, 1))
    return found


def _outline(cells: Sequence[Any]) -> Any:
    """All cells as one path: where there are thousands, hatching each by itself takes a minute."""
    from matplotlib.path import Path

    around = ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0))
    corners = [(cell.get_x() + x, cell.get_y() + y) for cell in cells for x, y in around]
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    return Path(corners, codes * len(cells))


def _states(
    axes: Any, stage: Stage, places: list[Place | None], images: Sequence[ShownImage], boxes: list[list[_Box]]
) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import PathPatch

    _ground(axes, images, boxes, "#ffffff")
    pictured = any(image.pictures for image in images)
    for state in WORDS:
        rows = [row for row, own in enumerate(stage.states) if own == state]
        cells = _cells(places, rows, boxes)
        if not cells:
            continue
        if state in _HATCHES:
            veil = PatchCollection(cells, facecolor=COLOURS["veil"], edgecolor="none", alpha=0.74)
            axes.add_collection(veil)
            colour = COLOURS["hatch"]
            axes.add_patch(
                PathPatch(
                    _outline(cells), facecolor="none", edgecolor=colour, linewidth=0, hatch=_HATCHES[state]
                )
            )
            continue
        colour = COLOURS["re-enters" if state == REENTERS else "runs"]
        face = "none" if pictured else colour
        edge = colour if pictured else "#ffffff"
        wide = 1.6 if state == REENTERS else 0.6
        axes.add_collection(PatchCollection(cells, facecolor=face, edgecolor=edge, linewidth=wide))
        if state == REENTERS:
            centres = [(c.get_x() + c.get_width() / 2, c.get_y() + c.get_height() / 2) for c in cells]
            cell = 72 * _PANEL / max(axes.get_xlim()[1], axes.get_ylim()[0])  # points
            axes.scatter(
                *zip(*centres, strict=True),
                s=max(4.0, (cell / 3.5) ** 2),
                color=COLOURS["ink"],
                edgecolor="white",
                linewidth=0.5,
                zorder=3,
            )


def _scores(
    axes: Any, stage: Stage, places: list[Place | None], images: Sequence[ShownImage], boxes: list[list[_Box]]
) -> None:
    import math

    from matplotlib.collections import LineCollection, PatchCollection
    from matplotlib.colors import LinearSegmentedColormap

    _ground(axes, (), boxes, COLOURS["veil"], images)
    rows = [row for row, score in enumerate(stage.scores) if score is not None and places[row] is not None]
    left_out = _cells(places, [row for row, score in enumerate(stage.scores) if score is None], boxes)
    if not rows:
        axes.text(0.5, 0.5, "not scored", transform=axes.transAxes, ha="center", va="center", color="#111111")
        return
    # a dash: without it, grey shows the palest cell as the highest score
    dashes = [[(c.get_x() + x, c.get_y() + 0.5) for x in (0.3, 0.7)] for c in left_out]
    axes.add_collection(LineCollection(dashes, colors=COLOURS["hatch"], linewidths=0.6))
    scores = [score for row in rows if (score := stage.scores[row]) is not None]
    positive = [score for score in scores if 0 < score < math.inf]
    least = min(positive, default=1.0)
    levels = [math.log(min(max(score, least), 1e300)) for score in scores]
    heat = LinearSegmentedColormap.from_list("cividis", CIVIDIS)
    collection = PatchCollection(_cells(places, rows, boxes), cmap=heat, linewidth=0)
    collection.set_array(levels)
    axes.add_collection(collection)
    framed = _cells(places, [row for row in rows if stage.states[row] in (RUNS, REENTERS)], boxes)
    for colour, wide in (("#111111", 1.6), ("#ffffff", 0.7)):
        axes.add_collection(PatchCollection(framed, facecolor="none", edgecolor=colour, linewidth=wide))


def _ground(
    axes: Any,
    pictures: Sequence[ShownImage],
    boxes: list[list[_Box]],
    colour: str,
    images: Sequence[ShownImage] = (),
) -> None:
    """Pictures, or an even ground, where tiles lie."""
    from matplotlib.patches import Rectangle

    for image, own in zip(pictures or images, boxes, strict=True):
        for frame, (left, top) in enumerate(own):
            wide, high = image.grid.columns, image.grid.rows
            if pictures and image.pictures:
                extent = (left, left + wide, top + high, top)
                axes.imshow(pixels(image.pictures[frame]), extent=extent, zorder=0, aspect="equal")
            else:
                axes.add_patch(Rectangle((left, top), wide, high, facecolor=colour, zorder=0))


def _bars(axes: Any, run: Run, found: Sequence[Stage], ink: str, quiet: str) -> None:
    ran, text = rows_run(run, found), run.trace.num_rows - len(run.trace.visual_rows)
    blocks = range(len(ran))
    axes.bar(
        blocks, [rows - text for rows in ran], 0.84, bottom=text, color="#0072B2", label="visual rows run"
    )
    axes.bar(blocks, [text] * len(ran), 0.84, color=quiet, label="text rows")
    axes.scatter(blocks, run.trace.kv_rows, marker="_", s=60, color=ink, label="KV rows", zorder=3)
    axes.axhline(run.trace.num_rows, color=quiet, linewidth=0.8, linestyle=":")
    axes.set_ylim(0, 1.05 * max([run.trace.num_rows, *run.trace.kv_rows, 1]))
    axes.set_title(f"{run.name}: rows and KV rows per block", fontsize=8)
    axes.set_xlabel("block")
    axes.locator_params(axis="x", integer=True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False, ncols=3, loc="upper right")


def _legend(drawn: Any, present: set[str], ground: str, gaps: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for state, words in WORDS.items():
        if state not in present:
            continue
        if state in _HATCHES:
            colour = COLOURS["hatch"]
            handles.append(
                Patch(
                    facecolor=COLOURS["veil"],
                    edgecolor=colour,
                    hatch=_HATCHES[state],
                    linewidth=0,
                    label=words,
                )
            )
        elif state == REENTERS:
            handles.append(
                Line2D(
                    [],
                    [],
                    marker="o",
                    color="none",
                    markerfacecolor=COLOURS["ink"],
                    markeredgecolor=COLOURS["re-enters"],
                    markeredgewidth=2,
                    label=words,
                )
            )
        else:
            handles.append(Patch(facecolor=ground, edgecolor=COLOURS["runs"], linewidth=1.5, label=words))
    handles.append(Patch(facecolor=CIVIDIS[-1], edgecolor="none", label="high score"))
    handles.append(Patch(facecolor=CIVIDIS[0], edgecolor="none", label="low score (log scale)"))
    if gaps:
        dash = Line2D(
            [], [], marker="_", color="none", markeredgecolor=COLOURS["hatch"], label="no candidate"
        )
        handles.append(dash)
    drawn.legend(
        handles=handles, loc="outside lower center", ncols=min(6, len(handles)), frameon=False, fontsize=8
    )
