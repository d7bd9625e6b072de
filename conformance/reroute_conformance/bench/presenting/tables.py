"""Turns a run of the benchmark into the words and rows of the terminal, the README and the page, so that all say the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..measuring.works import UNROUTED
from .compare import Change, Ratio, Unpaired

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
QUARTILES = "medians of the rounds' own, in brackets their first and third quartile (least and largest of three rounds)"
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
    """One line of a suite's table, as text.

    Attributes:
        case, name: the case and the one who was measured. ``case`` is empty where it is the case of the line before.
        cells: the values under the headings of :func:`columns`; empty where nothing was measured.
        reason: why nothing was measured.
    """

    case: str
    name: str
    cells: tuple[str, ...]
    reason: str = ""


def columns(cases: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """Headings of :attr:`Row.cells` in the table of these cases, which are of one suite."""
    if cases[0]["suite"] == "memory":
        return "KV held", "of unrouted", "by the plan", "peak allocation"
    faster = f"times {cases[0]['base']}'s speed"
    shared = ("median", "spread", faster, "least possible", "reached")
    return (*shared, "of the floor's speed") if _floored(cases) else shared


def _floored(cases: Sequence[dict[str, Any]]) -> bool:
    return any("of_floor" in own for case in cases for own in case["measured"].values())


def suites(record: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The run's cases by suite."""
    found: dict[str, list[dict[str, Any]]] = {}
    for case in record["cases"]:
        found.setdefault(case["suite"], []).append(case)
    return found


def rows(case: dict[str, Any], cases: Sequence[dict[str, Any]]) -> Iterator[Row]:
    """The lines of one case in the table of ``cases``."""
    title, floored = case["case"], _floored(cases)
    for name, own in case["measured"].items():
        cells = _weight(case, name, own) if case["suite"] == "memory" else _time(own, floored)
        yield Row(title, name, tuple(cells))
        title = ""
    for name, reason in case["unmeasured"].items():
        yield Row(title, name, (), reason)
        title = ""


def _time(own: dict[str, Any], floored: bool) -> Iterator[str]:
    low, high = own["quartiles_s"]
    yield duration(own["median_s"])
    yield f"{(high - low) / own['median_s']:.0%}"
    yield ratio(own["faster"])
    yield duration(own["floor"]["seconds"])
    yield percent(own["reached"])
    if floored:
        yield ratio(own["of_floor"]) if "of_floor" in own else ""


def _weight(case: dict[str, Any], name: str, own: dict[str, Any]) -> Iterator[str]:
    dense = case["measured"].get(UNROUTED, {}).get("kv_bytes", case["unrouted_kv_bytes"])
    planned = case["unrouted_kv_bytes" if name == UNROUTED else "plan_kv_bytes"]
    held = own.get("kv_bytes")
    if held is None:  # it shows no cache
        yield from ("", "", "")
    else:
        yield size(held)
        yield f"{held / dense:.0%}"
        yield "as planned" if held == planned else f"{size(planned)} planned"
    yield size(own["peak_bytes"])


def ratio(values: Sequence[float]) -> str:
    """A median, and its quartiles where they are others."""
    median, low, high = (f"{value:.2f}" if value < 100 else f"{value:.0f}" for value in values)
    return median if values[1] == values[2] else f"{median} ({low}-{high})"


def percent(share: float) -> str:
    """A share of one as a percentage."""
    return f"{share:.0%}" if share >= 0.01 else "< 1%"


def counted(count: int, noun: str, nouns: str = "") -> str:
    """A number of things, in words that fit it."""
    return f"{count or 'no'} {noun if count == 1 else nouns or noun + 's'}"


def moved(change: Change) -> str:
    """A change in words."""
    if change.what == "seconds":
        before, after = (
            f"{duration(median)} ({duration(low)}-{duration(high)})"
            for median, low, high in (change.before, change.after)
        )
    else:
        before, after = map(_exact, (change.before, change.after))
    what = "" if change.what == "seconds" else f" {change.what}"
    word = "better" if change.better else "worse"
    return f"{change.suite}, {change.case}, {change.name}:{what} {before} → {after}, {word}"


def _exact(values: Ratio) -> str:
    median, low, high = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
    return median if low == high else f"{median} ({low}-{high})"


def untold(entry: Unpaired) -> str:
    """What only one of two runs has, in words."""
    whose = ", ".join(filter(None, (entry.suite, entry.case, entry.name)))
    kind = "" if entry.case else "suite "
    return f"{kind}{whose}: {'new in this run' if entry.new else 'not in this run'}"


def duration(seconds: float) -> str:
    """A time in the largest unit of which it has at least one."""
    scale, unit = next((entry for entry in _UNITS if seconds >= entry[0]), _UNITS[-1])
    return f"{seconds / scale:.3g} {unit}" if seconds < 999 * scale else f"{seconds / scale:.0f} {unit}"


def size(count: float) -> str:
    """A number of bytes in MiB."""
    return f"{count / 2**20:.1f} MiB"


def machine_line(record: dict[str, Any]) -> str:
    """The machine, what it does at most, and the versions."""
    machine, rates = record["machine"], record["rates"]
    where = machine.get("gpu", machine["processor"])
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    return (
        f"{where}; {counted(machine['threads'], 'thread')}, {machine['dtype']}; measured {rates['flops'] / 1e9:.0f} GFLOP/s and "
        f"{rates['bytes'] / 1e9:.1f} GB/s; {versions}"
    )
