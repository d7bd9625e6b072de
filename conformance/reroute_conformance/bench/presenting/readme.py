"""Makes the README's table of a run of the benchmark, and puts it between two marks in a file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reroute_spec import RerouteError

from ..measuring.works import PLAIN, UNROUTED
from .tables import QUARTILES, duration, machine_line, percent, ratio, suites

NO_GPU = "No run on a GPU yet: `benchmarks/gpu/run.sh` makes this table."
_SHOWN = ("prefill", "decode", "block", "score", "select", "cache")


def markdown(record: dict[str, Any]) -> str:
    """Medians beside what they are compared with, the machine and the command."""
    found = suites(record)
    lines = [
        "| | | median | times unrouted | times reference | of the floor's speed | of what the machine can do |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for suite in _SHOWN:
        for case in found.get(suite, ()):
            lines += _rows(suite, case)
    command = record["command"]
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    lines += [
        "",
        f"Ratios are {QUARTILES}. {record['date'][:10]}, {escaped(machine_line(record))}. Made by",
        "",
        "<!-- not run: measures for minutes, on an idle machine -->",  # for who runs a page's blocks
        f"{fence}sh",
        command,
        fence,
    ]
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Text that stands in a cell of a Markdown table as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|&~$])", r"\\\1", " ".join(text.split()))


def _rows(suite: str, case: dict[str, Any]) -> Iterator[str]:
    title = escaped(f"{suite}: {case['case']}")
    for name, own in case["measured"].items():
        cells = (
            title,
            escaped(name),
            duration(own["median_s"]),
            ratio(own["faster"]) if case["base"] == UNROUTED else "",
            ratio(own["of_reference"]) if "of_reference" in own else "",
            ratio(own["of_floor"]) if "of_floor" in own and name != PLAIN else "",
            percent(own["reached"]),
        )
        yield f"| {' | '.join(cells)} |"
        title = ""


def check_marks(path: Path, device: str) -> None:
    """Whether a table can be put there, before one is measured.

    Raises:
        RerouteError: a file that cannot be read or written, or without the marks.
    """
    _between(path, device)
    if not os.access(path, os.W_OK):
        raise RerouteError("--readme", f"{path} cannot be written", "give a writable file")


def write_between(path: Path, device: str, text: str) -> None:
    """Put ``text`` between the marks of a device in a file, in place of what is there.

    Where a GPU's table is to be and there is none yet, the file then says how to make it.

    Raises:
        RerouteError: a file that cannot be read or written, or without the marks.
    """
    whole, found = _between(path, device)
    whole = whole[: found.start(1)] + f"\n{text}\n" + whole[found.end(1) :]
    begin, end = map(re.escape, _marks("cuda"))
    whole = re.sub(rf"({begin})\s*(?={end})", rf"\1\n{NO_GPU}\n", whole)
    try:
        path.write_text(whole, "utf-8")
    except OSError as error:
        raise RerouteError(
            "--readme", f"{path} cannot be written ({error})", "give a writable file"
        ) from None


def _marks(device: str) -> tuple[str, str]:
    return f"<!-- bench:{device} -->", f"<!-- /bench:{device} -->"


def _between(path: Path, device: str) -> tuple[str, re.Match[str]]:
    """The text of a file, and what of it stands between the marks of a device."""
    begin, end = _marks(device)
    try:
        whole = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RerouteError(
            "--readme", f"{path} cannot be read ({error})", "give a Markdown file in UTF-8"
        ) from None
    found = re.search(f"{re.escape(begin)}(.*?){re.escape(end)}", whole, re.DOTALL)
    if found is None:
        raise RerouteError(
            "--readme", f"{path} has no {begin} … {end}", "add the two marks where the table is to be"
        )
    return whole, found
