"""Draws the plots of a page with matplotlib, as SVG that takes the colours of the page, light or dark.

A plot holds nothing but lines and words.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from reroute_spec import RerouteError

from ..measuring.works import MAP, PLAIN, UNROUTED
from .svg import LINE, STYLE, TEXT, svg_of

_INK = {TEXT: "var(--text)", LINE: "var(--line)", "#030303": "var(--card)"}
_WIDTH, _WORDS, _SMALL = 4.3, 12, 11
"""Inches and points. A phone shows a plot about as many pixels wide as it has points here, so its words have the size of the
page's words."""
_SERIES = tuple(f"#0404{index:02x}" for index in range(8))
"""Colours that stand for the page's variables ``--series-0`` …; who is measured keeps the same one in all plots."""


def check_matplotlib() -> None:
    """Refuse to draw plots where matplotlib is missing.

    Raises:
        RerouteError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise RerouteError("--html", "needs matplotlib", "pip install 'vlm-reroute[bench]'") from None


def speeds(cases: Sequence[dict[str, Any]], order: Sequence[str], label: str) -> str:
    """Bars: how many times the base's speed everybody has. A case's name stands above its bars, where there is room for it."""
    names = [name for name in order if any(name in case["measured"] for case in cases)]
    lines = len(names) + 1.4  # of a case: its name, its bars, a gap

    def draw(axes: Any) -> None:
        for index, name in enumerate(names):
            bars = [
                (row * lines + 1 + index, *case["measured"][name]["faster"])
                for row, case in enumerate(cases)
                if name in case["measured"]
            ]
            axes.barh(
                [place for place, *_ in bars],
                [median for _, median, _, _ in bars],
                0.84,
                xerr=[
                    [max(0.0, median - low) for _, median, low, _ in bars],
                    [max(0.0, high - median) for _, median, _, high in bars],
                ],
                color=_colour(name, order),
                label=name,
                ecolor=TEXT,
                error_kw={"elinewidth": 1},
            )
            for place, median, _, high in bars:
                axes.annotate(
                    f"{median:.2f}",
                    (max(median, high), place),
                    (5, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=_SMALL,
                )
        for row, case in enumerate(cases):
            axes.annotate(
                case["case"],
                (0, row * lines),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize=_WORDS,
                bbox={"facecolor": "#030303", "edgecolor": "none", "pad": 1},  # no line through a name
            )
        axes.set_yticks([])
        axes.set_ylim(len(cases) * lines - 0.8, -0.6)
        axes.margins(x=0.15)
        axes.set_xlabel(label)
        axes.grid(axis="x", color=LINE, linewidth=0.6)

    return _svg(draw, height=0.6 + 0.26 * lines * len(cases), names=names)


def curves(
    cases: Sequence[dict[str, Any]],
    order: Sequence[str],
    axis: str,
    label: str,
    value: Callable[[dict[str, Any]], Sequence[float] | None],
) -> str:
    """Lines: a median along the axis of a scaling curve, and its quartiles."""
    points = {
        name: [
            (case["parameters"][axis], *found)
            for case in cases
            if name in case["measured"] and (found := value(case["measured"][name])) is not None
        ]
        for name in order
    }

    def draw(axes: Any) -> None:
        ticks = [case["parameters"][axis] for case in cases]
        for name, own in points.items():
            if not own:
                continue
            places, medians, lows, highs = zip(*own, strict=True)
            colour = _colour(name, order)
            axes.fill_between(places, lows, highs, color=colour, alpha=0.25, linewidth=0)
            axes.plot(places, medians, marker="o", markersize=5, linewidth=1.8, color=colour, label=name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel(_AXES[axis])
        axes.set_ylabel(label)
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.grid(axis="y", color=LINE, linewidth=0.6)

    return _svg(draw, height=3.4, names=[name for name, own in points.items() if own])


_AXES = {
    "visual": "visual rows",
    "batch": "requests in a batch",
    "decisions": "decisions",
    "blocks": "blocks",
}


def _colour(name: str, order: Sequence[str]) -> str:
    fixed = (UNROUTED, PLAIN, "reference", MAP)
    others = [other for other in order if other not in fixed]
    place = fixed.index(name) if name in fixed else len(fixed) + others.index(name)
    return _SERIES[place % len(_SERIES)]


def _svg(draw: Callable[[Any], None], *, height: float, names: Sequence[str]) -> str:
    """One plot; its legend stands above it, in as many columns as names leave room for."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = 2 if max(map(len, names), default=0) <= 17 else 1
    height += 0.24 * -(-len(names) // columns)
    style: Any = {
        **STYLE,
        "font.size": _WORDS,
        "xtick.labelsize": _SMALL,
        "ytick.labelsize": _SMALL,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize=_SMALL, handlelength=1)
        written = svg_of(figure)
    return _for_page(written)


def _for_page(svg: str) -> str:
    """The SVG of a plot as it can stand in a page.

    Colours that stand for others become the page's variables, and names become such as no other plot has.
    """
    for colour, variable in _INK.items():
        svg = svg.replace(colour, variable)
    for index, colour in enumerate(_SERIES):
        svg = svg.replace(colour, f"var(--series-{index})")
    own = f"p{sha256(svg.encode()).hexdigest()[:8]}-"
    svg = re.sub(r'id="([^"]+)"', lambda found: f'id="{own}{found[1]}"', svg)
    svg = re.sub(r"(url\(#|href=\"#)", lambda found: f"{found[1]}{own}", svg)
    svg = re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)
    return svg.strip()
