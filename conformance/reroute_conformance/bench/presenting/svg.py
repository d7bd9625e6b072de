"""Holds the style of plots that are drawn once for light and dark pages, and writes a figure as SVG without its date.

The colours of the style stand for others, which the page puts in their place.
"""

from __future__ import annotations

import io
from typing import Any

TEXT, LINE = "#010101", "#020202"
"""Colours that stand for those of words and of lines."""
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vlm-reroute",  # the same run draws the same page
    "text.parse_math": False,  # a target may call itself anything
    "font.family": "sans-serif",
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": LINE,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}
"""For ``matplotlib.rc_context``; sizes are each drawing's own."""


def svg_of(figure: Any) -> str:
    """The ``svg`` element of a figure, without what stands before it and without its date."""
    written = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(written, format="svg", metadata=nothing)
    svg = written.getvalue()
    return svg[svg.index("<svg") :]
