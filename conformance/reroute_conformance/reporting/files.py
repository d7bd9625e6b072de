"""Writes the files of a report to a folder: JSON lines, JUnit XML, a page of HTML and the verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .junit import junit
from .page import page
from .records import Record, verdict_line

FILES = ("report.jsonl", "junit.xml", "report.html", "verdict.txt")
"""The files that :func:`write_report` writes. The failing cases stand beside them."""


def write_report(records: Sequence[Record], folder: Path) -> None:
    """Write :data:`FILES` to a folder that exists. The verdict comes last: where it stands, the others do."""
    lines = "".join(json.dumps(record) + "\n" for record in records)
    verdict = f"Report: {folder / 'report.html'}\n{verdict_line(records)}\n"
    for name, content in zip(FILES, (lines, junit(records), page(records), verdict), strict=True):
        (folder / name).write_text(content, "utf-8")
