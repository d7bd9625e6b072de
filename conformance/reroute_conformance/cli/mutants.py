"""Defines ``vlm-reroute mutants``, which shows whether the suite finds every implementation that is wrong on purpose."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from .options import Json

if TYPE_CHECKING:
    from rich.console import Console


def mutants(
    names: Annotated[list[str] | None, typer.Argument(help="Some mutants by name; all unless given.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    as_json: Json = False,
) -> None:
    """Run every wrong implementation through the check of the rule that it breaks: each has to be killed by it."""
    from rich.progress import track

    from ..mutants import MUTANTS, mutant
    from ..reporting.console import new_console, new_table
    from ..running.mutant_runs import run_mutants

    chosen = [entry for entry in MUTANTS if not names or entry.name in names]
    for name in names or ():
        mutant(name)  # refuses an unknown one
    records = [
        {
            "mutant": entry.name,
            "rule": entry.rule,
            "check": entry.check,
            "killed": result.failure is not None and result.failure.violation.rule == entry.rule,
            "by": None if result.failure is None else result.failure.violation.rule,
            "examples": result.examples,
        }
        for entry, result in track(
            run_mutants(chosen, jobs), "mutants", total=len(chosen), console=_stderr(), transient=True
        )
    ]
    killed = sum(bool(record["killed"]) for record in records)
    if as_json:
        typer.echo(json.dumps({"killed": killed, "mutants": records}))
    else:
        table = new_table("Mutants of the reference", 4, "mutant", "rule", "check", "outcome", "examples")
        for record in records:
            lived = "[red]survived[/]" if record["by"] is None else f"[red]{record['by']} instead[/]"
            outcome = "[green]killed[/]" if record["killed"] else lived
            table.add_row(
                *(str(record[key]) for key in ("mutant", "rule", "check")), outcome, str(record["examples"])
            )
        console = new_console()
        console.width = max(console.width, 120)  # names are not to be cut where there is no terminal
        console.print(table)
        typer.secho(f"killed {killed} of {len(records)}", bold=True)
    raise typer.Exit(0 if killed == len(records) else 1)


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)
