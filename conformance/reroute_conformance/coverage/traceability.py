"""Finds for every rule the line of the reference that does it, the checks that judge it and the mutants that break it.

The line is found by a comment that names the rule, in the reference or in the executable specification. A MUST rule
without one of the three is a fault, unless ``planned.json`` plans it. A plan that has been fulfilled is a fault too, so
that the list never promises what is there already.
"""

from __future__ import annotations

import io
import json
import re
import tokenize
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from reroute_spec.predicates import free_names
from reroute_spec.rules import Rule, parse, rules, to_index, to_json

from ..checks import checks
from ..mutants import MUTANTS

PARTS = ("reference", "check", "mutant")
_MARKED = ("reroute_spec", "reroute_reference")
_ID = re.compile(r"RR-[A-Z]+-\d{3}")


@dataclass(frozen=True)
class Mark:
    """A comment in the reference or in the executable specification that names a rule, with the code that it marks.

    Attributes:
        package, path, line: where the code stands, as package, path within the package, and line counted from 1.
        code: the line of code that does what the rule says.
    """

    package: str
    path: str
    line: int
    code: str


@dataclass
class Trace:
    """One rule with everything that keeps it.

    Attributes:
        rule: the rule.
        reference: the comments that mark it.
        check: the names of the checks that exercise it.
        mutant: the names of the mutants that break it.
    """

    rule: Rule
    reference: list[Mark] = field(default_factory=list)
    check: list[str] = field(default_factory=list)
    mutant: list[str] = field(default_factory=list)

    @property
    def lacks(self) -> set[str]:
        """What a MUST rule should have and does not."""
        if self.rule.strength != "MUST" or self.rule.kind == "undefined":
            return set()
        return {part for part in PARTS if not getattr(self, part)}


@dataclass(frozen=True)
class Audit:
    """The result of tracing all rules.

    Attributes:
        traces: the trace of every rule, by the rule's id.
        planned: for every planned rule, the parts that it lacks and, in words, until when.
        faults: everything that has to be mended, one line each.
        text: whether the chapters were at hand to compare ``rules.json`` with. An installed wheel has none.
    """

    traces: dict[str, Trace]
    planned: dict[str, tuple[frozenset[str], str]]
    faults: tuple[str, ...]
    text: bool

    @property
    def counts(self) -> dict[str, int]:
        """How many rules there are of which kind; the planned ones are among the MUST, and never among the traced."""
        must = [trace for trace in self.traces.values() if trace.rule.strength == "MUST"]
        return {
            "rules": len(self.traces),
            "must": len(must),
            "traced": sum(not trace.lacks for trace in must),
            "planned": sum(bool(trace.lacks) and trace.rule.id in self.planned for trace in must),
            "may": len(self.traces) - len(must),
        }


def audit() -> Audit:
    """Trace every rule and compare with the chapters and the plans."""
    traces, planned, faults = trace_rules(), plans(), []
    chapters = Path(str(resources.files("reroute_spec"))).parent
    text = (chapters / "10-config.md").exists()
    if text:
        faults += stale(chapters)
    for rule_id, trace in traces.items():
        lacks = trace.lacks - planned.get(rule_id, (frozenset(), ""))[0]
        faults += [f"{rule_id} has no {part}, and none is planned" for part in PARTS if part in lacks]
    for rule_id, (parts, _) in planned.items():
        if rule_id not in traces:
            faults.append(f"{rule_id} is planned, and no such rule exists")
            continue
        there = parts - traces[rule_id].lacks
        faults += [f"{rule_id} has its {part}, yet planned.json still plans it" for part in sorted(there)]
    unknown = [(f"check {check.name} exercises", rule_id) for check in checks() for rule_id in check.rules]
    unknown += [(f"mutant {entry.name} breaks", entry.rule) for entry in MUTANTS]
    faults += [
        f"{who} {rule_id}, and no such rule exists" for who, rule_id in unknown if rule_id not in traces
    ]
    for name, cited in _cited().items():
        faults += [
            f"{name} names {rule_id}, and no such rule exists" for rule_id in sorted(cited - traces.keys())
        ]
    return Audit(traces, planned, tuple(faults), text)


def stale(chapters: Path) -> list[str]:
    """Faults in the form of the chapters, and files that were generated from other chapters than these, one line each."""
    try:
        parsed = parse(chapters)
    except ValueError as error:
        return [str(error)]
    faults = [
        f"{rule.id}: its check uses {name}, which README.md does not define"
        for rule in parsed
        for name in _undefined(rule, chapters)
    ]
    for path in sorted(chapters.glob("[0-9]*.md")):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            if "MUST" in line and not line.startswith("### RR-"):
                faults.append(f"{path.name}:{number} has a MUST that no rule numbers")
    data = resources.files("reroute_spec").joinpath("rules.json")
    generated = {"rules.json": (to_json(parsed), data), "INDEX.md": (to_index(parsed), chapters / "INDEX.md")}
    return faults + [
        f"{name} is not what the chapters say: run `make rules`"
        for name, (right, path) in generated.items()
        if not path.is_file() or path.read_text("utf-8") != right
    ]


def _undefined(rule: Rule, chapters: Path) -> list[str]:
    """Names in a check that the README's table does not define."""
    defined = set(re.findall(r"^\| .*?`.*?(?=\|)", (chapters / "README.md").read_text("utf-8"), re.MULTILINE))
    words = set(re.findall(r"`(\w+)", " ".join(defined)))
    return sorted(free_names(rule.check) - words)


def trace_rules() -> dict[str, Trace]:
    """Every rule with what keeps it."""
    traces = {rule_id: Trace(rule) for rule_id, rule in rules().items()}
    for rule_id, marks in reference_marks().items():
        if rule_id in traces:
            traces[rule_id].reference += marks
    for check in checks():
        for rule_id in set(check.rules) & traces.keys():
            traces[rule_id].check.append(check.name)
    for entry in MUTANTS:
        if entry.rule in traces:
            traces[entry.rule].mutant.append(entry.name)
    return traces


def plans() -> dict[str, tuple[frozenset[str], str]]:
    """What is planned: per rule the parts that it lacks, and what they wait for."""
    groups = json.loads(resources.files(__package__).joinpath("planned.json").read_text("utf-8"))
    return {
        rule_id: (frozenset(parts), group["until"])
        for group in groups
        for rule_id, parts in group["rules"].items()
    }


@cache
def reference_marks() -> dict[str, list[Mark]]:
    """Comments of the executable specification and the reference that name a rule, and the code that they stand at."""
    marks: dict[str, list[Mark]] = defaultdict(list)
    for package in _MARKED:
        root = _root(package)
        for path in sorted(root.rglob("*.py")):
            source = path.read_text("utf-8")
            lines = source.splitlines()
            for token in tokenize.generate_tokens(io.StringIO(source).readline):
                if token.type == tokenize.COMMENT:
                    for rule_id in _ID.findall(token.string):
                        line, code = _code_at(lines, token.start[0])
                        marks[rule_id].append(Mark(package, path.relative_to(root).as_posix(), line, code))
    return dict(marks)


def _code_at(lines: list[str], line: int) -> tuple[int, str]:
    """The code of a comment's own line, of the next line that has any, or where a statement's end is marked, its start."""
    while line < len(lines) and not _code(lines[line - 1]):
        line += 1
    if not _code(lines[line - 1]).strip(")]}:, "):
        indent = len(lines[line - 1]) - len(lines[line - 1].lstrip())
        while line > 1 and (len(lines[line - 2]) - len(lines[line - 2].lstrip()) > indent):
            line -= 1
        line -= 1
    return line, _code(lines[line - 1])


def _code(line: str) -> str:
    """A line without its comment and indentation."""
    return ("" if line.lstrip().startswith("#") else line.split("  #")[0]).strip()


def _cited() -> dict[str, set[str]]:
    """Rules that the reference's and the suite's own sources name, by file."""
    found = {}
    for package in (*_MARKED, "reroute_conformance"):
        for path in sorted(_root(package).rglob("*.py")):
            found[f"{package}/{path.relative_to(_root(package)).as_posix()}"] = set(
                _ID.findall(path.read_text("utf-8"))
            )
    return found


def _root(package: str) -> Path:
    """A package's folder, without importing it: the reference imports torch."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{package} is not installed")
    return Path(spec.origin).parent
