"""Defines ``vlm-reroute smoke``, which runs a few cases of every fast check on the reference and then on a target.

So a suite that does not run here can be told from a target that is wrong.
"""

from __future__ import annotations

from typing import Annotated

import typer

from .options import HARNESS_ERROR


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
    from ..reporting.console import new_console
    from ..reporting.records import check_record, with_reasons
    from ..reporting.terminal import print_failures
    from ..running.finding import TargetName
    from ..running.results import EXIT_CODES, INCOMPLETE
    from ..running.smoke import smoked
    from ..targets.one_thread import use_one_thread

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
            print_failures(new_console(), [check_record(result) for result in report.results])
            typer.echo(f"{report.target}: {len(report.failures)} of {len(report.results)} checks fail")
            broken = named == TargetName("reference")
            typer.echo(
                "The suite does not work here." if broken else "Run vlm-reroute conform for the whole of it."
            )
            raise typer.Exit(HARNESS_ERROR if broken else 1)
        typer.echo(f"{report.target}: {cases} cases of {len(report.results)} checks, nothing broken")
        if report.reasons:
            typer.echo(f"{report.target}: not asked: {with_reasons(report.reasons, report.reasons)}")
    if report.reasons and not report.results:
        raise typer.Exit(EXIT_CODES[INCOMPLETE])
    typer.echo("This is no verdict: vlm-reroute conform gives one.")
