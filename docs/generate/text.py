"""Markdown of the repository as Markdown of the site."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

_CODE = r"```.*?^ *```|^ {4}.*?$|`[^`\n]+`|<!--.*?-->"
_LINK = r"\[(?P<text>(?:[^\[\]`]|`[^`]*`)*)\]\((?P<to>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)"
_OTHER_LINK = r"\[(?:[^\[\]`]|`[^`]*`)*\]\([^)]*\)"
_RULE = r"(?<![\w#-])(?P<rule>RR-[A-Z]+-\d{3})(?![\w-])"
_SEEN = re.compile(f"(?P<code>{_CODE})|^#+ .*?$|{_LINK}|{_OTHER_LINK}|{_RULE}", re.DOTALL | re.MULTILINE)
"""What is looked at, from the left: so a rule in a heading, a link or code stays as it is."""
_HEADING = re.compile(r"^### (RR-[A-Z]+-\d{3})  (.+?) {2,}((?:MUST|MAY) · .+)$")
_NEVER_ASSIGNED = "RR-SCORE-005"


def targets(markdown: str, place: str) -> Iterator[str]:
    """Files of the repository that a page at ``place`` links to."""
    for match in _SEEN.finditer(markdown):
        if match["to"]:
            yield normpath(join(dirname(place), match["to"]))


def raw(place: str) -> str:
    """Where a file that is no page stands on the site."""
    return f"source/{place}" + (".txt" if place.endswith(".md") else "")


def site(markdown: str, place: str, uri: str, pages: Mapping[str, str], root: Path) -> str:
    """A page of the repository as the site has it.

    Args:
        markdown: its text.
        place: its file in the repository.
        uri: its place on the site.
        pages: of every file that is a page, its place on the site.
        root: of the repository.
    """

    def changed(match: re.Match[str]) -> str:
        if match["rule"] and match["rule"] != _NEVER_ASSIGNED:
            # an unknown number becomes a link that the strict build refuses
            chapter = f"spec/{_chapters(root).get(match['rule'], 'unknown.md')}"
            return f"[{match['rule']}]({relpath(chapter, dirname(uri))}#{match['rule'].lower()})"
        if not match["to"]:
            return match[0]
        target = normpath(join(dirname(place), match["to"]))
        readme = normpath(join(target, "README.md"))
        there = pages.get(target) or pages.get(readme) or (raw(target) if (root / target).is_file() else None)
        if there is None:  # a folder has no page; what is not there stays, and the strict build says so
            return match["text"] if (root / target).is_dir() else match[0]
        return f"[{match['text']}]({relpath(there, dirname(uri))}{match['anchor'] or ''})"

    return _SEEN.sub(changed, "\n".join(_lines(markdown.splitlines())))


def _lines(lines: list[str]) -> Iterator[str]:
    """What Python-Markdown wants otherwise: a blank line before a list, one word after a fence, ids at headings."""
    fenced, before = False, ""
    for line in lines:
        if line.lstrip().startswith("```"):
            fenced = not fenced
            yield re.sub(r"^(\s*```\w+) (?!title=).*$", r"\1", line)
        elif fenced:
            yield line
        elif match := _HEADING.match(line):
            yield f"### {match[1]} {match[2]} {{ #{match[1].lower()} }}"
            yield f'\n<p class="rule">{match[3]}</p>\n'
        elif line.startswith(("Example: ", "Source: ")):
            word, _, rest = line.partition(": ")
            yield f"\n*{word}:* {rest}"
        elif re.match(r"(- |\d+\. )", line) and before and not re.match(r"(- |\d+\. | )", before):
            yield from ("", line)
        else:
            yield line
        before = line


@cache
def _chapters(root: Path) -> dict[str, str]:
    rules = json.loads((root / "spec/reroute_spec/rules.json").read_text("utf-8"))
    return {rule["id"]: rule["chapter"] for rule in rules}
