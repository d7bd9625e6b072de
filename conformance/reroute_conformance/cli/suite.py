"""The commands about the suite itself: ``mutants``, whether it finds what is wrong, and ``smoke``, whether it runs here at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ..mutants import Mutant
    from ..running.runner import CheckResult

app = typer.Typer()
_HARNESS_ERROR = 3
_Json = Annotated[bool, typer.Option("--json", help="Print data for machines instead of tables.")]


@app.command()
def mutants(
    names: Annotated[list[str] | None, typer.Argument(help="Some mutants by name; all unless given.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    as_json: _Json = False,
) -> None:
    """Run every wrong implementation through the check of the rule that it breaks: each has to be killed by it."""
    from rich.progress import track

    from ..mutants import MUTANTS, mutant
    from .entry import _console, _table

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
            _tried(chosen, jobs), "mutants", total=len(chosen), console=_stderr(), transient=True
        )
    ]
    killed = sum(bool(record["killed"]) for record in records)
    if as_json:
        typer.echo(json.dumps({"killed": killed, "mutants": records}))
    else:
        table = _table("Mutants of the reference", 4, "mutant", "rule", "check", "outcome", "examples")
        for record in records:
            lived = "[red]survived[/]" if record["by"] is None else f"[red]{record['by']} instead[/]"
            outcome = "[green]killed[/]" if record["killed"] else lived
            table.add_row(
                *(str(record[key]) for key in ("mutant", "rule", "check")), outcome, str(record["examples"])
            )
        console = _console()
        console.width = max(console.width, 120)  # names are not to be cut where there is no terminal
        console.print(table)
        typer.secho(f"killed {killed} of {len(records)}", bold=True)
    raise typer.Exit(0 if killed == len(records) else 1)


@app.command()
def smoke(
    target: Annotated[
        str, typer.Option(help="As for conform. The reference alone tells whether the suite runs here.")
    ] = "reference",
    cmd: Annotated[str | None, typer.Option("--cmd", help="In place of --target: a command.")] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds that a command of --cmd may take for a case.")
    ] = 60.0,
) -> None:
    """A case or two of a check of every kind, in seconds: first of the reference, then of the target. No verdict."""
    from ..reporting.records import check_record, with_reasons
    from ..reporting.terminal import print_failures
    from ..running.finding import TargetName
    from ..running.runner import EXIT_CODES, INCOMPLETE
    from ..running.smoke import smoked
    from ..targets.one_thread import use_one_thread
    from .entry import _console

    use_one_thread()
    asked = TargetName(None if cmd else target, cmd, timeout)
    with asked.made():
        pass  # what is no target is refused before anything runs
    for named in dict.fromkeys([TargetName("reference"), asked]):
        with named.made() as implementation:
            # of the reference what tells whether the suite works
            report = smoked(implementation, core=named != asked)
        cases = sum(result.examples for result in report.results)
        if report.failures:
            print_failures(_console(), [check_record(result) for result in report.results])
            typer.echo(f"{report.target}: {len(report.failures)} of {len(report.results)} checks fail")
            broken = named == TargetName("reference")
            typer.echo(
                "The suite does not work here." if broken else "Run vlm-reroute conform for the whole of it."
            )
            raise typer.Exit(_HARNESS_ERROR if broken else 1)
        typer.echo(f"{report.target}: {cases} cases of {len(report.results)} checks, nothing broken")
        if report.reasons:
            typer.echo(f"{report.target}: not asked: {with_reasons(report.reasons, report.reasons)}")
    if report.reasons and not report.results:
        raise typer.Exit(EXIT_CODES[INCOMPLETE])
    typer.echo("This is no verdict: vlm-reroute conform gives one.")


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _tried(chosen: list[Mutant], jobs: int) -> Iterator[tuple[Mutant, CheckResult]]:
    """Every mutant through its check."""
    from ..running.parallel import pool

    if jobs == 1:
        yield from ((entry, try_mutant(entry.name)) for entry in chosen)
        return
    with pool(jobs) as processes:
        yield from zip(chosen, processes.map(try_mutant, [entry.name for entry in chosen]), strict=True)


def try_mutant(name: str) -> CheckResult:
    """One mutant through the check that has to kill it; the result comes without the check, which no pipe takes."""
    from dataclasses import replace

    from ..checks import checks
    from ..mutants import MUTANTS, mutant
    from ..running.runner import run_check
    from ..targets.one_thread import use_one_thread

    use_one_thread()
    entry = next(entry for entry in MUTANTS if entry.name == name)
    check = next(check for check in checks() if check.name == entry.check)
    return replace(run_check(check, mutant(name), shrink=False), check=None)  # type: ignore[arg-type]
