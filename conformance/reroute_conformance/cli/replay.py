"""Defines ``vlm-reroute replay``, which judges a saved case or a vector again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import DEFAULT_TIMEOUT, Command, Processes, Target, Timeout


def replay(
    case: Annotated[
        Path, typer.Argument(help="A case that conform saved, or a vector: its folder or case.json.")
    ],
    target: Target = None,
    cmd: Command = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    nproc: Processes = 1,
) -> None:
    """Judge a saved case, or a vector, again."""
    from reroute_spec.rules import rules

    from ..running.finding import TargetName
    from ..running.results import EXIT_CODES, INCOMPLETE
    from ..running.runner import replay_case
    from ..targets.one_thread import use_one_thread

    use_one_thread()
    with TargetName(target, cmd, timeout, nproc).made() as implementation:
        verdict = replay_case(case, implementation)
    if verdict.skipped:
        typer.echo(f"{case}: skipped by the target: {verdict.skipped}")
        raise typer.Exit(EXIT_CODES[INCOMPLETE])
    for violation in verdict.violations:
        broken = rules()[violation.rule]
        typer.echo(f"{broken.id}  {broken.title}\n  {violation.where}: {violation.detail}")
        typer.echo(f"  check: {broken.check}")
    typer.echo(f"{case}: {'FAILS' if verdict.violations else 'passes'}")
    raise typer.Exit(1 if verdict.violations else 0)
