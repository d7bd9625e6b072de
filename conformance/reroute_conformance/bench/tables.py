"""A run in words and rows: what the terminal, the README and the page show, so that all of them say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reroute_spec import RerouteError

from .works import PLAIN, UNROUTED

_SHOWN = ("prefill", "decode", "block", "score", "select", "cache")
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
TITLES = {
    "select": "Select: which rows a decision keeps",
    "score": "Score: one decision's scores",
    "block": "Block: decision, one block on the rows it keeps, write back",
    "prefill": "Prefill: 576 visual and 65 text rows, 32 narrow blocks",
    "decode": "Decode: four tokens after that prefill",
    "cache": "Cache: eight requests reordered",
    "memory": "Memory",
    "scaling": "Scaling: prefills of narrow blocks",
}


@dataclass(frozen=True)
class Row:
    """A line of a suite's table, all of it text.

    Attributes:
        case, name: whose it is; ``case`` is empty where it is the line before's.
        cells: under :func:`columns`; empty where nothing was measured.
        reason: why it was not.
    """

    case: str
    name: str
    cells: tuple[str, ...]
    reason: str = ""


def columns(case: dict[str, Any]) -> tuple[str, ...]:
    """Headings of :attr:`Row.cells` in a suite of cases like this one."""
    if case["suite"] == "memory":
        return "KV held", "of unrouted", "by the plan", "peak allocation"
    faster = f"times {case['base']}'s speed"
    shared = ("median", "spread", faster, "least possible", "reached")
    return (
        (*shared, "of the floor's speed")
        if any("of_floor" in own for own in case["measured"].values())
        else shared
    )


def suites(record: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The run's cases by suite."""
    found: dict[str, list[dict[str, Any]]] = {}
    for case in record["cases"]:
        found.setdefault(case["suite"], []).append(case)
    return found


def rows(case: dict[str, Any]) -> Iterator[Row]:
    """The lines of one case."""
    title = case["case"]
    for name, own in case["measured"].items():
        yield Row(
            title, name, tuple(_weight(case, name, own) if case["suite"] == "memory" else _time(case, own))
        )
        title = ""
    for name, reason in case.get("unmeasured", {}).items():
        yield Row(title, name, (), reason)


def _time(case: dict[str, Any], own: dict[str, Any]) -> Iterator[str]:
    low, high = own["quartiles_s"]
    yield duration(own["median_s"])
    yield f"{(high - low) / own['median_s']:.0%}"
    yield f"{own['faster'][0]:.2f}"
    yield duration(own["floor"]["seconds"])
    yield f"{own['reached']:.0%}" if own["reached"] >= 0.01 else "< 1%"
    if any("of_floor" in other for other in case["measured"].values()):
        yield f"{own['of_floor'][0]:.2f}" if "of_floor" in own else ""


def _weight(case: dict[str, Any], name: str, own: dict[str, Any]) -> Iterator[str]:
    dense, planned = case["unrouted_kv_bytes"], case["plan_kv_bytes"]
    held = own.get("kv_bytes", dense if name == UNROUTED else None)
    yield size(held) if held is not None else ""
    yield f"{held / dense:.0%}" if held is not None else ""
    if held is None or name == UNROUTED:
        yield ""
    else:
        yield "as planned" if held == planned else f"{size(planned)} planned"
    yield size(own["peak_bytes"])


def duration(seconds: float) -> str:
    """In the largest unit of which there is one."""
    scale, unit = next((entry for entry in _UNITS if seconds >= entry[0]), _UNITS[-1])
    return f"{seconds / scale:.3g} {unit}" if seconds < 999 * scale else f"{seconds / scale:.0f} {unit}"


def size(count: float) -> str:
    """In MiB."""
    return f"{count / 2**20:.1f} MiB"


def machine_line(record: dict[str, Any]) -> str:
    """The machine, what it does at most, and the versions."""
    machine, rates = record["machine"], record["rates"]
    where = machine.get("gpu", machine["processor"])
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{where}; {machine['threads']} threads, {machine['dtype']}; measured {rates['flops'] / 1e9:.0f} GFLOP/s and "
        f"{rates['bytes'] / 1e9:.1f} GB/s; {versions}"
    )


def markdown(record: dict[str, Any]) -> str:
    """The README's table: medians beside what they are compared with, the machine and the command."""
    found = suites(record)
    lines = [
        "| | | median | times unrouted | times reference | of the floor's speed | of what the machine can do |"
    ]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    for suite in _SHOWN:
        for case in found.get(suite, ()):
            lines += _markdown_rows(suite, case)
    date = record.get("date", "")[:10]
    lines += [
        "",
        f"{date}, {machine_line(record)}. Made by",
        "",
        "```sh",
        record.get("command", "vlm-reroute bench"),
        "```",
    ]
    return "\n".join(lines)


def _markdown_rows(suite: str, case: dict[str, Any]) -> Iterator[str]:
    reference = case["measured"].get("reference")
    title = f"{suite}: {case['case']}"
    for name, own in case["measured"].items():
        against = ["", ""]
        if case["base"] == UNROUTED:
            against[0] = f"{own['faster'][0]:.2f}"
        if reference is not None:
            against[1] = f"{reference['median_s'] / own['median_s']:.2f}"
        floor = f"{own['of_floor'][0]:.2f}" if "of_floor" in own and name != PLAIN else ""
        reached = f"{own['reached']:.0%}" if own["reached"] >= 0.01 else "< 1%"
        yield f"| {title} | {name} | {duration(own['median_s'])} | {against[0]} | {against[1]} | {floor} | {reached} |"
        title = ""


def write_between(path: Path, device: str, text: str) -> None:
    """Put ``text`` between the marks of a device in a file, in place of what is there.

    Raises:
        RerouteError: a file that cannot be read, or without the marks.
    """
    begin, end = f"<!-- bench:{device} -->", f"<!-- /bench:{device} -->"
    try:
        whole = path.read_text("utf-8")
    except OSError as error:
        raise RerouteError("--readme", f"{path} cannot be read ({error})", "give a Markdown file") from None
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(whole):
        raise RerouteError(
            "--readme", f"{path} has no {begin} … {end}", "add the two marks where the table is to be"
        )
    path.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", whole, count=1), "utf-8")
