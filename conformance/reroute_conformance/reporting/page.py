"""Turns a report into one page of HTML, which needs no network and no scripts.

Everything that the page says of a run comes from the records.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from reroute_spec.rules import Rule, rules

from ..checks import checks as all_checks
from ..protocol import PROFILES
from ..verdicts.tolerance import AMBIGUOUS_SHARE, TAU_CLAMP
from .junit import judged_rules
from .records import Record, profiles_in_words, verdict_line

PASS, BROKEN, UNEXERCISED, UNCHECKED = "pass", "broken", "not exercised", "no check"
_AREAS = {
    "CFG": "Schedules",
    "BUD": "Budgets",
    "POOL": "Candidates",
    "SCORE": "Scores",
    "SEL": "Selection",
    "BLOCK": "Blocks",
    "KV": "Cache",
    "EQV": "Equivalences",
    "NUM": "Numerics",
    "ERR": "Errors",
}


@dataclass(frozen=True)
class Cell:
    """The outcome of the checks of one profile for one rule.

    Attributes:
        state: ``pass``, ``broken``, ``not exercised`` or ``no check``.
        count: how often the rule was judged.
    """

    state: str
    count: int


@dataclass(frozen=True)
class Row:
    """One MUST rule in the matrix of rules and profiles.

    Attributes:
        rule: the rule.
        cells: one cell per profile that was run.
        state: the state over all these profiles.
        elsewhere: profiles that were not run and have a check for the rule.
    """

    rule: Rule
    cells: list[Cell]
    state: str
    elsewhere: list[str]


@dataclass(frozen=True)
class Bar:
    """One bar of the histogram of margins: the decisions whose margin lies in one range.

    Attributes:
        label: the range in words.
        count: how many decisions there are.
        near: whether a decision in the range can be ambiguous.
        share: length of the bar, relative to the longest one.
    """

    label: str
    count: int
    near: bool
    share: float


def page(records: Sequence[Record]) -> str:
    """The page of a report, as HTML. Every text in it is escaped, whoever it is from."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["grouped"] = lambda number: f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    environment.filters["prose"] = _prose
    template = files(__package__).joinpath("report.html.jinja").read_text("utf-8")
    return environment.from_string(template).render(_content(records))


def _content(records: Sequence[Record]) -> dict[str, Any]:
    header, checks, footer = records[0], records[1:-1], records[-1]
    rows = matrix(records)
    judged = [check for check in checks if check["decisions"] and "differing" not in check]
    low = [check for check in checks if "differing" in check]  # what is decided there is reported, not judged
    margins = [check["margins"] for check in judged]
    return {
        "header": header,
        "checks": checks,
        "footer": footer,
        "line": verdict_line(records),
        "profiles": profiles_in_words(header),
        "not_run": [name for name in PROFILES if name not in header["profiles"]],
        "digests": {key: value for key, value in header.items() if key.endswith("_digest")},
        "failures": [check for check in checks if "failure" in check],
        "broken": list(dict.fromkeys(check["failure"]["rule"] for check in checks if "failure" in check)),
        "unexercised": unexercised(checks, footer),
        "rules": rules(),
        "areas": [
            (_AREAS.get(area, area), list(group))
            for area, group in groupby(rows, key=lambda row: row.rule.id.split("-")[1])
        ],
        "must": len(rows),
        "counts": {
            state: sum(row.state == state for row in rows) for state in (PASS, BROKEN, UNEXERCISED, UNCHECKED)
        },
        "bars": histogram(header["margin_edges"], margins),
        "no_margin": sum(entry["none"] for entry in margins),
        "tau": [_power(clamp) for clamp in TAU_CLAMP[torch.float32]],
        "limit": AMBIGUOUS_SHARE,
        "examples": sum(check["examples"] for check in checks),
        "seconds": sum(check["seconds"] for check in checks),
        "decisions": sum(check["decisions"] for check in judged),
        "ambiguous": sum(check["ambiguous"] for check in judged),
        "low": (sum(check["differing"] for check in low), sum(check["decisions"] for check in low)),
        "nearest": max(judged, key=lambda check: check["ambiguous"] / check["decisions"], default=None),
    }


def matrix(records: Sequence[Record]) -> list[Row]:
    """Every MUST rule, with what each profile that was run showed of it."""
    header, checks = records[0], records[1:-1]
    by_profile: dict[str, list[Record]] = defaultdict(list)
    for check in checks:
        by_profile[check["profile"]].append(check)
    rows = []
    for rule in rules().values():
        if rule.strength != "MUST":
            continue
        cells = [_cell(rule.id, by_profile[profile]) for profile in header["profiles"]]
        rows.append(Row(rule, cells, _cell(rule.id, checks).state, _elsewhere(rule.id, header["profiles"])))
    return rows


def _cell(rule: str, checks: Sequence[Record]) -> Cell:
    judging = [check for check in checks if rule in judged_rules(check)]
    count = sum(check["exercised"].get(rule, 0) for check in judging)
    if any("failure" in check and check["failure"]["rule"] == rule for check in judging):
        return Cell(BROKEN, count)
    missed = [check for check in judging if rule in check["missing"]]
    if missed and not (count and all("failure" in check for check in missed)):  # those stopped early
        return Cell(UNEXERCISED, count)
    return Cell(PASS if judging else UNCHECKED, count)


def _elsewhere(rule: str, run: Sequence[str]) -> list[str]:
    having = {check.profile for check in all_checks() if rule in check.rules}
    return [name for name in PROFILES if name in having and name not in run]


def unexercised(checks: Sequence[Record], footer: Record) -> list[dict[str, Any]]:
    """What kept a run from being complete: a profile, family or precision without a check, or a rule and the checks that missed it."""
    found = []
    for name in footer["missing"]:
        entry: dict[str, Any] = {
            "name": name,
            "title": rules()[name].title if name in rules() else "",
            "reasons": [],
            "told": footer.get("reasons", {}).get(name, ""),
        }
        for check in checks:
            if name in check["missing"] and "failure" not in check:
                skipped = check.get("skipped")
                reason = (
                    f"the target skipped {skipped['cases']} cases: {skipped['reason']}" if skipped else ""
                )
                entry["reasons"].append(
                    (check["name"], reason or f"none of its {check['examples']} cases did")
                )
        found.append(entry)
    return found


def histogram(edges: Sequence[float], margins: Sequence[Record]) -> list[Bar]:
    """Bars from the widest margin to ties, of all checks together."""
    counts = [sum(entry["bins"][i] for entry in margins) for i in range(len(edges))]
    ties = sum(entry["tie"] for entry in margins)
    longest, widest_near = max(1, ties, *counts), TAU_CLAMP[torch.float32][1]
    bars = [Bar("exact tie", ties, False, ties / longest)]
    for i, (high, count) in enumerate(zip(edges, counts, strict=True)):
        label = f"{_power(edges[i - 1])} to {_power(high)}" if i else f"below {_power(high)}"
        bars.append(Bar(label, count, high <= widest_near, count / longest))
    return bars[::-1]


def _prose(text: str) -> Markup:
    """A rule's words, escaped; what stands between backticks becomes code."""
    parts = (
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part)
        for i, part in enumerate(text.split("`"))
    )
    return Markup("").join(parts)


def _power(value: float) -> str:
    """A power of ten, or about half a decade above one, as people write it."""
    digits, exponent = f"{value:.1e}".split("e")
    if value >= 0.01:
        return f"{value:.2g}"
    power = f"10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    return power if digits == "1.0" else f"{digits}·{power}"
