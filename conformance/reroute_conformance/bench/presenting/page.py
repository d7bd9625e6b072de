"""Turns a run of the benchmark into one page of HTML with plots, which needs no network and no scripts.

Everything that the page says of a run comes from the run's data.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..measuring.works import MAP, PLAIN, UNROUTED
from .compare import Comparison
from .plots import curves, speeds
from .tables import QUARTILES, TITLES, columns, machine_line, moved, rows, suites, untold

_BARS = ("prefill", "block", "decode", "score", "select", "cache")
_AXES = {
    "visual": "Visual rows of one request",
    "batch": "Requests of 128 visual rows in a batch",
    "decisions": "Decisions in 16 blocks",
    "blocks": "Blocks, with two decisions",
}


def page(record: dict[str, Any], comparison: Comparison | None = None) -> str:
    """The page of a run. Every text in it is escaped, whoever it is from.

    Args:
        record: see :mod:`~reroute_conformance.bench.measuring.run`.
        comparison: with an earlier run; None where there is none to compare with.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"moved": moved, "untold": untold}
    template = files(__package__).joinpath("page.html.jinja").read_text("utf-8")
    by_suite, order = suites(record), _order(record)
    scaling = by_suite.pop("scaling", [])
    return environment.from_string(template).render(
        record=record,
        machine=machine_line(record),
        suites=[
            {
                "name": name,
                "title": TITLES[name],
                "columns": columns(cases),
                "rows": [row for case in cases for row in rows(case, cases)],
                "base": cases[0].get("base"),
                "plot": Markup(speeds(cases, order, f"times {cases[0]['base']}'s speed"))
                if name in _BARS and any(case["measured"] for case in cases)
                else None,
            }
            for name, cases in by_suite.items()
        ],
        curves=[
            _curve(axis, scaling, order) for axis in _AXES if any(case["axis"] == axis for case in scaling)
        ],
        comparison=comparison,
        quartiles=QUARTILES,
        unrouted=UNROUTED,
        plain=PLAIN,
    )


def _order(record: dict[str, Any]) -> list[str]:
    """Everybody who was measured: what targets stand beside, then the targets."""
    measured = dict.fromkeys(name for case in record["cases"] for name in case["measured"])
    beside = [name for name in (UNROUTED, PLAIN, MAP) if name in measured]
    return beside + [name for name in measured if name not in beside]


def _curve(axis: str, scaling: Sequence[dict[str, Any]], order: Sequence[str]) -> dict[str, Any]:
    cases = [case for case in scaling if case["axis"] == axis]
    return {
        "axis": axis,
        "title": _AXES[axis],
        "speed": Markup(curves(cases, order, axis, "times unrouted", lambda own: own["faster"])),
        "overhead": Markup(curves(cases, order, axis, "% of the time", overhead)),
        "columns": columns(cases),
        "rows": [row for case in cases for row in rows(case, cases)],
    }


def overhead(own: dict[str, Any]) -> tuple[float, float, float] | None:
    """Percent of a routed prefill that its blocks, called plainly, do not take: median and quartiles."""
    if "of_floor" not in own:
        return None
    median, low, high = own["of_floor"]
    return 100 * (1 - median), 100 * (1 - high), 100 * (1 - low)
