"""The results as a picture, light or dark as its reader has it: ``python -m benchmarks.grounding.plot``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
from reroute_conformance.bench.presenting.svg import LINE, STYLE, TEXT, svg_of

from .options import file_to_write, write

HERE = Path(__file__).parent

# colours that stand for variables in the SVG, and what those are on a light and on a dark page
_COLOURS = {
    TEXT: ("text", "#1c2024", "#e5e8eb"),
    LINE: ("line", "#dcdfe2", "#343b42"),
    "#030303": ("quiet", "#5a6169", "#a2abb4"),
    "#040400": ("fastv", "#1f77b4", "#62aee8"),
    "#040401": ("pdrop", "#c4552d", "#ec8a63"),
    "#040402": ("nuwa", "#7b5ea7", "#b396df"),
}
_LINES = {
    "fastv": ("#040400", "--", "o"),
    "reroute-fastv": ("#040400", "-", "o"),
    "reroute-every-block": ("#040400", ":", "s"),
    "pdrop": ("#040401", "--", "o"),
    "pdrop-late": ("#040401", "-.", "^"),
    "reroute-pdrop": ("#040401", "-", "o"),
    "nuwa": ("#040402", "--", "o"),
    "reroute-nuwa": ("#040402", "-", "o"),
}
"""Removal is dashed, its reroute form solid in the same colour; dotted and dash-dotted are their variants."""

_ROWS, _FLOPS = (
    "visual rows that run, % of all, mean over blocks",
    "FLOPs of the prompt's blocks, % of unrouted",
)
_PANELS = (
    ("accuracy", "grounding: accuracy at IoU 0.5", _ROWS),
    ("accuracy", "the same, by what it costs", _FLOPS),
    ("gist", "gist: is it there?", _ROWS),
)
_SIZE = (11.4, 4.2)  # inches


def drawing(data: dict[str, Any]) -> str:
    """An SVG of accuracy against rows that run and against FLOPs, with 95% intervals."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter, ScalarFormatter

    style = {**STYLE, "font.size": 9, "axes.titlecolor": TEXT}
    rows = data["setting"]["visual_rows"]
    with matplotlib.rc_context(style):
        figure = Figure(figsize=_SIZE, layout="constrained")
        figure.patch.set_alpha(0)
        panels = figure.subplots(1, len(_PANELS))
        for axes, (metric, title, budget) in zip(panels, _PANELS, strict=True):
            axes.patch.set_alpha(0)
            for method, (colour, dashes, marker) in _LINES.items():
                points = sorted(
                    (
                        100 * (route["flops_ratio"] if budget == _FLOPS else route["average_rows"] / rows),
                        *(route[metric][k] for k in ("mean", "low", "high")),
                    )
                    for route in data["routes"]
                    if route["method"] == method
                )
                if points:
                    label = f"{method} (renumbers)" if method == "pdrop-late" else method
                    _line(axes, points, label, colour, dashes, marker)
            axes.axhline(data["unrouted"][metric]["mean"], color="#030303", linewidth=1, label="unrouted")
            axes.set_title(title, loc="left", fontsize=9.5)
            axes.set_xscale("log")
            axes.set_xticks([10, 15, 20, 30, 50, 75])
            axes.minorticks_off()
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.set_xlabel(budget)
            axes.grid(axis="y", color=LINE, linewidth=0.6)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=5, frameon=False, handlelength=2.6)
        written = svg_of(figure)
    return _for_both(written)


def _line(
    axes: Any, points: list[tuple[float, ...]], label: str, colour: str, dashes: str, marker: str
) -> None:
    at, mean, low, high = zip(*points, strict=True)
    axes.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.plot(at, mean, dashes, color=colour, marker=marker, markersize=3.5, linewidth=1.5, label=label)


def _for_both(svg: str) -> str:
    """Variables in place of colours, with their values for a light and for a dark page."""
    for colour, (name, _, _) in _COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    light, dark = (" ".join(f"--{entry[0]}: {entry[i]};" for entry in _COLOURS.values()) for i in (1, 2))
    css = f"svg {{ {light} }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}"
    start = svg.index(">") + 1
    return f"{svg[:start]}\n <style>{css}</style>{svg[start:]}"


def main(arguments: list[str] | None = None) -> int:
    """Draw committed results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    parser.add_argument("--out", type=file_to_write, default=HERE / "results.svg")
    options = parser.parse_args(arguments)
    try:
        data = json.loads(options.json.read_text("utf-8"))
        jsonschema.validate(data, json.loads((HERE / "results.schema.json").read_text("utf-8")))
    except (OSError, ValueError, jsonschema.ValidationError) as error:
        sys.exit(f"--json {options.json}: no results of an evaluation ({str(error).splitlines()[0]})")
    write(options.out, drawing(data))
    print(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
