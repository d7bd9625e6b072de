"""The results as a table."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table

from .control import METHODS


def table(data: dict[str, Any]) -> Group:
    """Accuracies and costs of every route, then the paired differences."""
    setting, trainings = data["setting"], len(data["made"]["weights_sha256"])
    title = f"{setting['items']} test items, {trainings} training(s), {setting['visual_rows']} visual rows"
    routes = Table(title=title)
    for heading in ("route", "rows", "FLOPs", "KV", "accuracy at IoU 0.5", "mean IoU", "gist"):
        routes.add_column(heading, justify="left" if heading == "route" else "right", no_wrap=True)
    one = data["unrouted"]
    routes.add_row("unrouted", f"{setting['visual_rows']:.1f}", "100%", "100%", *_cells(one))
    before = None
    for route in data["routes"]:
        if before not in (None, route["budget"]):
            routes.add_section()
        before = route["budget"]
        costs = (f"{route['average_rows']:.1f}", f"{route['flops_ratio']:.0%}", f"{route['kv_ratio']:.0%}")
        routes.add_row(f"{route['method']} {route['budget']:.0%}", *costs, *_cells(route))
    pairs = Table(title="points by which the first is more accurate than the second, 95% interval")
    for heading in ("pair", "budget", "accuracy", "gist", "saved", "lost"):
        pairs.add_column(heading, justify="left" if heading == "pair" else "right", no_wrap=True)
    for pair in data["pairs"]:
        pairs.add_row(
            f"{pair['reroute']} / {pair['remove']}",
            f"{pair['budget']:.0%}",
            _points(pair["accuracy"]),
            _points(pair["gist"]),
            f"{pair['saved']:.1%}",
            f"{pair['lost']:.1%}",
        )
    return Group(routes, pairs, _reentries(data), *_random_rows(data))


def _reentries(data: dict[str, Any]) -> Table:
    """Where in depth rows come back, and how often those of the asked object do: in all items, and in those that it saves."""
    found = Table(title="re-entries: rows, items in which rows of the asked object re-enter, of those saved")
    for heading in ("pair", "budget", "block: rows, of all, of saved"):
        found.add_column(heading, justify="right" if heading == "budget" else "left")
    decided = {(route["method"], route["budget"]): route["decisions"] for route in data["routes"]}
    for pair in data["pairs"]:
        if (pair["reroute"], pair["remove"]) in (("reroute-fastv", "fastv"), ("reroute-pdrop", "pdrop")):
            everywhere = decided[pair["reroute"], pair["budget"]]
            both = list(zip(everywhere, pair["decisions_on_saved_items"], strict=True))[1:]
            cells = [
                f"{one['layer']}: {one['reentered']:.1f}, {one['object_reentered']:.0%}, "
                + ("-" if saved["object_reentered"] is None else f"{saved['object_reentered']:.0%}")
                for one, saved in both
            ]
            found.add_row(f"{pair['reroute']} / {pair['remove']}", f"{pair['budget']:.0%}", "   ".join(cells))
    return found


def _random_rows(data: dict[str, Any]) -> list[Table]:
    """What is left of the accuracy where rows are drawn, not scored; nothing where that was not asked."""
    if not data["random_rows"]:
        return []
    found = Table(title=f"rows drawn at random instead, first {data['random_rows'][0]['items']} items")
    methods = [f"{method}: scored, drawn" for method in METHODS]
    headings = ("budget", *methods, "drawn: rerouted over removed, points")
    for heading in headings:
        found.add_column(heading, justify="right", no_wrap=True)
    for one in data["random_rows"]:
        accuracies = [
            ", ".join(f"{one[method][rows]['mean']:.3f}" for rows in ("scored", "drawn"))
            for method in METHODS
        ]
        found.add_row(f"{one['budget']:.0%}", *accuracies, _points(one["drawn_rerouted_over_removed"]))
    return [found]


def _cells(found: dict[str, Any]) -> tuple[str, str, str]:
    accuracy = found["accuracy"]
    return (
        f"{accuracy['mean']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}]",
        f"{found['mean_iou']['mean']:.3f}",
        f"{found['gist']['mean']:.3f}",
    )


def _points(found: dict[str, Any]) -> str:
    return f"{100 * found['mean']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
