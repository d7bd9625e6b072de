"""Prints a run of the benchmark, and its comparison with an earlier run, in the terminal."""

from __future__ import annotations

from typing import Any

import typer
from rich.markup import escape

from ...reporting.console import new_console, new_table
from ..measuring.timing import MOST_SPREAD
from .compare import Comparison
from .tables import QUARTILES, TITLES, columns, counted, machine_line, moved, rows, suites, untold


def show(record: dict[str, Any]) -> None:
    """Tables, who was not measured and why, the machine."""
    console = new_console()
    console.width = max(console.width, 160)  # names are not to be cut where there is no terminal
    for name, cases in suites(record).items():
        table = new_table(TITLES[name], 2, "case", "who", *columns(cases))
        for case in cases:
            for row in rows(case, cases):
                table.add_row(escape(row.case), escape(row.name), *row.cells)
        console.print(table)
        for case in cases:
            _remarks(case)
    for entry in record["fits"]:
        typer.echo(
            f"{entry['model']}, {entry['memory_gib']} GiB, by the cost model: {counted(entry['unrouted'], 'request')} unrouted, "
            f"{entry['routed']} under {entry['schedule']}"
        )
    for entry in record["targets"]:
        if not entry["timed"]:
            typer.echo(f"{entry['name']}: not timed: {entry['reason']}")
    if any(case["suite"] != "memory" for case in record["cases"]):
        typer.echo(f"Ratios are {QUARTILES}.")
    typer.echo(machine_line(record))


def _remarks(case: dict[str, Any]) -> None:
    for who, reason in case["unmeasured"].items():
        typer.echo(f"{case['case']}: {who} is not measured: {reason}")
    if case.get("spread", 0.0) > MOST_SPREAD:
        tries = counted(case["tries"], "try", "tries")
        typer.echo(
            f"{case['case']}: times spread by up to {case['spread']:.0%} after {tries}: the machine was not idle"
        )


def show_comparison(found: Comparison) -> None:
    """What changed since an earlier run."""
    typer.echo(f"Since {found.since}: {counted(len(found.changes), 'change')} beyond noise")
    if not found.same_machine:
        typer.echo("Another machine: ratios are compared, seconds are not.")
    for change in found.changes:
        typer.echo(f"  {moved(change)}")
    for entry in found.unpaired:
        typer.echo(f"  {untold(entry)}")
    for suite, case in found.disturbed:
        typer.echo(f"  {suite}, {case}: not compared, a machine was not idle")
