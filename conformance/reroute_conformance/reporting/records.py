"""Turns the result of a run into records, the plain data that every form of the report is made of.

The records are a header, one line per check and a footer, in the form of ``schemas/report.json``. They say everything
that a report says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from reroute_spec import SPEC_VERSION
from reroute_spec.rules import rules

from ..running.results import CONFORMS, FAILS, CheckResult, Failure, Report
from ..targets.process import plain
from ..vectors.manifest import vector_digest
from ..verdicts.margins import EDGES

Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Circumstances:
    """The circumstances of a run, which the run itself does not know.

    Attributes:
        versions: the versions of what it ran with, by name.
        command: the command that started it, as it can be typed again.
        date: when it ended, in ISO 8601.
        seed: ``derandomized``, where the same versions draw the same cases, or ``random`` for a search.
    """

    versions: Mapping[str, str]
    command: str = ""
    date: str = ""
    seed: str = "derandomized"


def to_records(report: Report, run: Circumstances) -> Sequence[Record]:
    """The report as JSON lines in the form of ``schemas/report.json``: a header, one line per check, a footer."""
    low = (result.check.dtype for result in report.results if result.check.dtype)
    header = {
        "record": "header",
        "format": "urn:vlm-reroute:report:1",
        "date": run.date,
        "command": run.command,
        "spec_version": SPEC_VERSION,
        "suite_version": run.versions.get("vlm-reroute", ""),
        "rules_digest": sha256(files("reroute_spec").joinpath("rules.json").read_bytes()).hexdigest(),
        "suite_digest": suite_digest(),
        "vectors_digest": vector_digest(),
        "target": plain(str(report.target)),
        "profiles": list(report.profiles),
        "families": list(report.families),
        "device": plain(report.device),
        "dtypes": list(dict.fromkeys(["float32", *low])),
        "seed": run.seed,
        "versions": dict(run.versions),
        "margin_edges": list(EDGES),
    }
    footer: Record = {"verdict": report.verdict, "missing": report.missing, "uncovered": report.uncovered}
    if report.reasons:
        footer["reasons"] = {name: plain(reason) for name, reason in report.reasons.items()}
    return [header, *map(check_record, report.results), {"record": "footer", **footer}]


def check_record(result: CheckResult) -> Record:
    """The record of one check."""
    line: Record = {
        "record": "check",
        "name": result.check.name,
        "kind": result.check.kind,
        "profile": result.check.profile,
        "examples": result.examples,
        "seconds": round(result.seconds, 3),
        "exercised": {rule: count for rule, count in sorted(result.exercised.items()) if count},
        "decisions": result.decisions,
        "ambiguous": result.ambiguous,
        "margins": result.margins.to_dict(),
        "missing": result.missing(),
    }
    if result.check.dtype:
        line["differing"] = result.differing
    if result.skipped:
        line["skipped"] = {"cases": result.skipped, "reason": plain(result.skip_reason)}
    if result.failure is not None:
        line["failure"] = describe(result.failure)
    return line


def describe(failure: Failure) -> Record:
    """A failure as plain data; what the target said is made printable."""
    violation = failure.violation
    return {
        "rule": violation.rule,
        "title": rules()[violation.rule].title,
        "check": rules()[violation.rule].check,
        "where": plain(violation.where),
        "detail": plain(violation.detail),
        "case": None if failure.path is None else str(failure.path),
        "replay": failure.replay,
    }


@cache
def suite_digest() -> str:
    """SHA-256 over the suite's own files: two runs with the same one, rules and versions draw and judge alike."""
    root, digest = Path(__file__).parents[1], sha256()
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".json")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def verdict_line(records: Sequence[Record]) -> str:
    """The verdict in one line: of which profiles, or because of which rules or what was not exercised."""
    header, footer = records[0], records[-1]
    if footer["verdict"] == FAILS:
        broken = dict.fromkeys(record["failure"]["rule"] for record in records if "failure" in record)
        return f"FAILS: {', '.join(broken)}"
    if footer["verdict"] == CONFORMS:
        return f"CONFORMS ({', '.join(profiles_in_words(header))})"
    return f"INCOMPLETE: not exercised: {with_reasons(footer['missing'], footer.get('reasons', {}))}"


def with_reasons(names: Iterable[str], reasons: Mapping[str, str]) -> str:
    """Names in a list, a reason after the last of those that it is of."""
    groups = groupby(names, key=lambda name: reasons.get(name, ""))
    return ", ".join(f"{', '.join(own)} ({reason})" if reason else ", ".join(own) for reason, own in groups)


def profiles_in_words(header: Record) -> list[str]:
    """The profiles of a run; ``hf`` with its model families."""
    families = " + ".join(header["families"])
    return [f"hf: {families}" if name == "hf" and families else name for name in header["profiles"]]
