"""The numbered rules, read from the chapters in ``spec/`` and shipped as ``rules.json``."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path

from .errors import RerouteError

_HEADING = re.compile(
    r"^### (?P<id>RR-[A-Z]+-\d{3})  (?P<title>.+?) {2,}(?P<strength>MUST|MAY) · "
    r"(?P<kind>exact|numeric|error|undefined) · since (?P<since>\d+\.\d+)$"
)
_CHECK = re.compile(r"^    check: (?P<check>.+(?:\n {8,}.+)*)\n", re.MULTILINE)
_PARTS = re.compile(
    r"(?P<statement>.*?)(?:^Example: (?P<example>.+?))?^Source: (?P<source>.+?)\n(?:\n|\Z)",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        id, title, since: from its heading.
        chapter: file name of its chapter.
        strength: ``MUST``, or ``MAY`` for what an implementation is free to do or to report.
        kind: ``exact`` (bit for bit), ``numeric`` (by tolerance), ``error`` (has to be refused), ``undefined``.
        statement: the text between heading and source, without example and check; tables and lists keep their lines.
        check: its predicate, a Python expression over the names that ``spec/README.md`` defines; empty where undefined.
        example: a worked example, or empty.
        source: where it comes from.
    """

    id: str
    title: str
    chapter: str
    strength: str
    kind: str
    since: str
    statement: str
    check: str
    example: str
    source: str


@cache
def rules() -> dict[str, Rule]:
    """All rules by id."""
    data = json.loads(resources.files(__package__).joinpath("rules.json").read_text("utf-8"))
    return {entry["id"]: Rule(**entry) for entry in data}


def rule(rule_id: str) -> Rule:
    """One rule.

    Raises:
        RerouteError: no such rule; the nearest id is named.
    """
    if rule_id not in rules():
        near = get_close_matches(rule_id, rules(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise RerouteError(
            "rule", f"{rule_id!r} is not known", f"{hint}`vlm-reroute rules` lists all {len(rules())}"
        )
    return rules()[rule_id]


def parse(chapters: Path) -> list[Rule]:
    """The rules of the ``*.md`` chapters in a folder, in reading order.

    Raises:
        ValueError: a heading of another shape, a rule without statement, check or source, a check that is no Python
            expression, or a number used twice.
    """
    found: dict[str, Rule] = {}
    for chapter in sorted(chapters.glob("[0-9]*.md")):
        for section in re.split(r"^(?=### )", chapter.read_text("utf-8"), flags=re.MULTILINE)[1:]:
            heading, _, body = section.partition("\n")
            match = _HEADING.match(heading)
            if match is None:
                raise ValueError(f"{chapter.name}: heading of another shape: {heading}")
            if match["id"] in found:
                raise ValueError(f"{chapter.name}: {match['id']} is there twice")
            found[match["id"]] = Rule(
                chapter=chapter.name, **match.groupdict(), **_body(match["id"], match["kind"], body)
            )
    return list(found.values())


def _body(rule_id: str, kind: str, body: str) -> dict[str, str]:
    checks = [" ".join(match["check"].split()) for match in _CHECK.finditer(body)]
    if len(checks) != (kind != "undefined"):
        raise ValueError(f"{rule_id} has {len(checks)} checks; every rule that is not undefined has one")
    for check in checks:
        try:
            compile(check, rule_id, "eval")
        except SyntaxError as error:
            raise ValueError(f"{rule_id}: its check is no Python expression: {error}") from None
    parts = _PARTS.match(_CHECK.sub("", body))
    if parts is None or not parts["statement"].strip():
        raise ValueError(f"{rule_id} has no statement or no source")
    texts = {name: _unwrapped(parts[name] or "") for name in ("statement", "example", "source")}
    return {**texts, "check": "".join(checks)}


def _unwrapped(text: str) -> str:
    """Paragraphs on one line each; lines of tables and lists stay lines."""
    lines: list[str] = []
    fresh = True
    for line in text.strip().splitlines():
        own = not line or line.startswith(("|", "- "))
        if own or fresh:
            lines.append(line)
        else:
            lines[-1] += " " + line.strip()
        fresh = own and not line.startswith("- ")
    return re.sub(r"\n{2,}", "\n\n", "\n".join(lines))


def to_json(parsed: list[Rule]) -> str:
    """The content of ``rules.json``."""
    return json.dumps([asdict(rule) for rule in parsed], indent=1, ensure_ascii=False) + "\n"


def to_index(parsed: list[Rule]) -> str:
    """The content of ``INDEX.md``: a line per rule."""
    counts = ", ".join(
        f"{sum(rule.strength == strength for rule in parsed)} {strength}" for strength in ("MUST", "MAY")
    )
    lines = [
        "# Index",
        "",
        f"{len(parsed)} rules: {counts}. Generated by `make rules`; not edited by hand.",
        "",
        "| rule | title | strength | class | chapter |",
        "|---|---|---|---|---|",
    ]
    for rule in parsed:
        chapter = f"[{rule.chapter.removesuffix('.md')}]({rule.chapter})"
        lines.append(f"| {rule.id} | {rule.title} | {rule.strength} | {rule.kind} | {chapter} |")
    return "\n".join(lines) + "\n"


def write(chapters: Path) -> None:
    """Generate ``rules.json`` and ``INDEX.md`` from the chapters in a folder."""
    parsed = parse(chapters)
    Path(__file__).with_name("rules.json").write_text(to_json(parsed), "utf-8")
    chapters.joinpath("INDEX.md").write_text(to_index(parsed), "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
