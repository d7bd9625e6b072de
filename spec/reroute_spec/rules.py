"""The numbered rules, read from the chapters in ``spec/`` and shipped as ``rules.json``."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path

_HEADING = re.compile(
    r"^### (?P<id>RR-[A-Z]+-\d{3})  (?P<title>.+?) {2,}(?P<strength>MUST|MAY) · "
    r"(?P<kind>exact|numeric|error|undefined) · since (?P<since>\d+\.\d+)$"
)


@dataclass(frozen=True)
class Rule:
    """One rule. ``statement`` is the text between its heading and its source."""

    id: str
    title: str
    strength: str
    kind: str
    since: str
    statement: str
    source: str


@cache
def rules() -> dict[str, Rule]:
    """All rules by id."""
    data = json.loads(resources.files(__package__).joinpath("rules.json").read_text("utf-8"))
    return {entry["id"]: Rule(**entry) for entry in data}


def parse(chapters: Path) -> list[Rule]:
    """The rules of the ``*.md`` chapters in a folder, in reading order.

    Raises:
        ValueError: a heading of another shape, a rule without a source, or a number used twice.
    """
    found: dict[str, Rule] = {}
    for chapter in sorted(chapters.glob("[0-9]*.md")):
        for section in re.split(r"^(?=### )", chapter.read_text("utf-8"), flags=re.MULTILINE)[1:]:
            heading, _, body = section.partition("\n")
            match = _HEADING.match(heading)
            if match is None:
                raise ValueError(f"{chapter.name}: heading of another shape: {heading}")
            statement, separator, source = body.partition("Source: ")
            if not separator or match["id"] in found:
                raise ValueError(f"{chapter.name}: {match['id']} has no source or is there twice")
            texts = (" ".join(text.split()) for text in (statement, source))
            found[match["id"]] = Rule(
                **match.groupdict(), **dict(zip(("statement", "source"), texts, strict=True))
            )
    return list(found.values())


def to_json(parsed: list[Rule]) -> str:
    """The content of ``rules.json``."""
    return json.dumps([asdict(rule) for rule in parsed], indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("rules.json").write_text(to_json(parse(Path(sys.argv[1]))), "utf-8")
