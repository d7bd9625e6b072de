"""The page of errors, read from the code: an error names its field, its cause and its remedy where it is raised."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from generate.api import FOLDERS
from generate.messages import Module, shown

REFUSAL = "RerouteError"
UNKNOWN = "unknown"
"""``unknown(field, value, known)`` of ``reroute_spec.errors`` makes a refusal, too."""
JUDGED = {
    "MalformedError": "Answer in the form that [Target][reroute_conformance.protocol.Target] documents.",
    "UnansweredError": "Answer every case with one message of the [protocol](../../spec/FORMATS.md#protocol), and in time.",
    "SkippedError": "Nothing to mend: a skipped case is no pass, and the verdict is INCOMPLETE.",
    "UnmeasuredError": "Nothing to mend: no speed is told of what is not the work. A member `prepare` offers it"
    " ([Timed][reroute_conformance.protocol.Timed]).",
}
"""What the suite says of a target, by the class that says it, and what the target's author does then."""
_INSIDE = ("mutants/faulty_targets.py",)
"""Implementations that are wrong on purpose."""

_INTRO = """# Errors

Every refusal is a `RerouteError`, which is a `ValueError` with three parts:

| part | says | example |
|---|---|---|
| `field` | what is refused: an argument, a path in a schedule, an option | `decisions[1].keep` |
| `problem` | the cause: what was found there | `'0.5' after 64 mixes ratios and row counts` |
| `remedy` | what would be right | `give every keep as a ratio (string) or every keep as a row count (integer)` |

Printed it is `field: problem; remedy`. It is raised before anything is changed: model, inputs and caches are as they were (RR-ERR-001).
The command line prints it as one line, `error: …`, and ends with exit code 3.

| exit code | of `conform` and `replay` | of other commands |
|---|---|---|
| 0 | CONFORMS | done |
| 1 | FAILS: a rule is broken, and the report says which | what was checked is not as it should be |
| 2 | INCOMPLETE: something was skipped or not exercised | `smoke`, `bench`: what was asked of a target cannot be run or timed here |
| 3 | wrong usage, or the suite itself broke | wrong usage |

The tables are made from the code, module by module. Words in *italics* stand for what was given or found. To find a message, search this
page for the words that do not depend on your input.
"""


@dataclass(frozen=True)
class Raised:
    """One place that makes an error.

    Attributes:
        place: file in the repository and line.
        kind: the class.
        parts: field, cause and remedy of a refusal, or the one message of another class; each with all that it can be.
    """

    place: str
    kind: str
    parts: tuple[tuple[str, ...], ...]


def raised(root: Path, package: str) -> dict[Path, list[Raised]]:
    """Every place in a package that makes an error of the project, by module."""
    folder = root / FOLDERS[package] / package
    found = {}
    for path in sorted(folder.rglob("*.py")):
        if path.relative_to(folder).as_posix() not in _INSIDE:
            places = sorted(_in_module(root, path), key=lambda one: int(one.place.rpartition(":")[2]))
            if places:
                found[path] = places
    return found


def _in_module(root: Path, path: Path) -> Iterator[Raised]:
    module = Module.read(path)
    for call in module.calls(REFUSAL, UNKNOWN, *JUDGED):
        name = module.called(call)
        arguments = call.args
        if name == UNKNOWN and len(arguments) == 3:
            arguments = [arguments[0], *_unknown(arguments[1], arguments[2])]
        elif name == UNKNOWN or module.inside(call) == UNKNOWN:
            continue
        if name == REFUSAL and any(_handed_on(argument) for argument in arguments):
            continue  # what another place has said already, under the name of an option
        kind = name if name in JUDGED else REFUSAL
        parts = tuple(
            tuple(module.texts(argument, call)) for argument in arguments[: 3 if kind == REFUSAL else 1]
        )
        if kind == REFUSAL and len(parts) != 3:
            continue
        yield Raised(f"{path.relative_to(root).as_posix()}:{call.lineno}", kind, parts)


def _unknown(value: ast.expr, known: ast.expr) -> tuple[ast.expr, ast.expr]:
    """The problem and the remedy that ``unknown`` makes."""
    problem = ast.JoinedStr([ast.FormattedValue(value, -1), ast.Constant(" is not known")])
    quoted = ast.Call(ast.Name("map"), [ast.Name("repr"), known], [])
    parts = [ast.Name("did you mean …? "), ast.Constant("known: "), quoted]
    return problem, ast.JoinedStr(
        [part if isinstance(part, ast.Constant) else ast.FormattedValue(part, -1) for part in parts]
    )


def _handed_on(argument: ast.expr) -> bool:
    return isinstance(argument, ast.Attribute) and argument.attr in ("problem", "remedy")


def page(root: Path) -> str:
    """The page."""
    lines, judged = [_INTRO], []
    for package in FOLDERS:
        lines += [f"## {package}", ""]
        for path, places in raised(root, package).items():
            judged += [place for place in places if place.kind in JUDGED]
            refusals = [place for place in places if place.kind == REFUSAL]
            if refusals:
                module = Module.read(path)
                lines += [f"### {module.name}", "", module.summary, "", _table(refusals), ""]
    lines += ["## What the suite says of a target", "", _JUDGED, ""]
    for kind, remedy in JUDGED.items():
        messages = {text: None for place in judged if place.kind == kind for text in place.parts[0]}
        if messages:
            rows = "".join(f"<tr><td>{shown(text)}</td></tr>\n" for text in messages)
            lines += [f"### {kind}", "", remedy, "", f'<div class="errors"><table>\n{rows}</table></div>', ""]
    return "\n".join(lines)


_JUDGED = """No errors of yours to catch: what `conform` and `bench` print of an implementation. A wrong answer breaks a rule, and the report says
where and by how much ([the rules](../../spec/INDEX.md)); an answer that cannot be read breaks RR-ERR-003 with one of these messages."""


def _table(places: list[Raised]) -> str:
    rows = []
    for place in places:
        cells = ["<br>".join(dict.fromkeys(shown(text) for text in part)) for part in place.parts]
        field = f"<code>{cells[0].replace('<br>', '</code><br><code>')}</code>"
        rows.append(
            f'<tr title="{escape(place.place)}"><td>{field}</td><td>{cells[1]}</td><td>{cells[2]}</td></tr>'
        )
    head = "<thead><tr><th>field</th><th>cause</th><th>remedy</th></tr></thead>"
    return f'<div class="errors"><table>{head}<tbody>\n' + "\n".join(rows) + "\n</tbody></table></div>"
