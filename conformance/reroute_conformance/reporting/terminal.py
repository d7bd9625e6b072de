"""Prints a report in a terminal: one line per check, every failure with the command that replays it, and the verdict last."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reroute_spec.rules import rules
from rich.console import Console

from ..verdicts.tolerance import AMBIGUOUS_SHARE
from .console import new_console, new_table
from .records import Record, verdict_line


def print_report(records: Sequence[Record], folder: Path) -> None:
    """Print the records of a report that stands in ``folder``. The last line is the verdict."""
    header, checks, footer = records[0], records[1:-1], records[-1]
    console = new_console()
    columns = ("check", "profile", "result", "cases", "decisions", "ambiguous", "seconds")
    table = new_table(None, 3, *columns)
    for check in checks:
        counts = (check["decisions"], check["ambiguous"]) if check["decisions"] else ("", "")
        numbers = (str(count) for count in (check["examples"], *counts))
        table.add_row(check["name"], check["profile"], _result(check), *numbers, f"{check['seconds']:.1f}")
    console.width = max(console.width, 120)  # where the terminal is narrower it wraps: no name is cut
    console.print(f"{header['target']} against the reference", markup=False, style="bold")
    console.print(table)
    print_failures(console, checks)
    for check in checks:
        if "skipped" in check:
            skipped = check["skipped"]
            words = f"{check['name']}: {skipped['cases']} cases skipped by the target: {skipped['reason']}"
            console.print(words, markup=False)
    for check in checks:
        if check.get("differing"):
            words = f"{check['differing']} of {check['decisions']} decisions differ from the oracle's, which is no failure"
            console.print(f"{check['name']}: {words} in low precision (RR-NUM-002)", markup=False)
    full = [check for check in checks if "differing" not in check]  # the limit is on float32
    if decisions := sum(check["decisions"] for check in full):
        ambiguous = sum(check["ambiguous"] for check in full)
        console.print(
            f"{decisions} decisions were compared with the float64 oracle's; {ambiguous} were ambiguous, so near the "
            f"threshold that they may differ. At most {AMBIGUOUS_SHARE:.0%} of a check's may be.",
            markup=False,
        )
    if footer["uncovered"]:
        must = sum(rule.strength == "MUST" for rule in rules().values())
        console.print(
            f"Says nothing about {len(footer['uncovered'])} of {must} MUST rules, which this run did not judge: "
            "the page lists them.",
            markup=False,
        )
    console.print(
        f"Report: {folder / 'report.html'} (open it in a browser; report.jsonl and junit.xml beside it are for machines)",
        markup=False,
    )
    console.print(verdict_line(records), markup=False, style="bold")


def _result(check: Record) -> str:
    if "failure" in check:
        return f"[red]fails {check['failure']['rule']}[/]"
    if check["missing"]:
        return f"[yellow]{'skipped' if 'skipped' in check else 'not exercised'}[/]"
    return "[green]pass[/]"


def print_failures(console: Console, checks: Sequence[Record]) -> None:
    """Print what is broken among the records of checks, and how to see it again."""
    for check in checks:
        if "failure" not in check:
            continue
        failure = check["failure"]
        console.print(f"{failure['rule']}  {failure['title']}", markup=False, style="red")
        console.print(f"  in check {check['name']}, {failure['where']}: {failure['detail']}", markup=False)
        if failure["check"]:
            console.print(f"  must hold: {failure['check']}", markup=False)
        if failure["replay"]:
            console.print(f"  replay: {failure['replay']}", markup=False)
        console.print()
