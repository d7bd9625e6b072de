"""Defines ``vlm-reroute conform``, which runs the suite against a target and says whether the target is Reroute."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import DEFAULT_TIMEOUT, Command, Json, Processes, Target, Timeout

if TYPE_CHECKING:
    from ..running.finding import TargetName
    from ..running.results import CheckResult, Report


class Drawing(StrEnum):
    """The two ways to draw cases: the same ones every time, or others in a search for failures."""

    default = "default"
    fuzz = "fuzz"


def conform(
    target: Target = None,
    cmd: Command = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    nproc: Processes = 1,
    profiles: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, or all that the target claims. Left out: all; with --nproc core."
        ),
    ] = None,
    report: Annotated[Path, typer.Option(help="Folder for the report and failing cases.")] = Path(
        "reroute-report"
    ),
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes, each with the target to itself. The verdict is the same.")
    ] = 1,
    profile: Annotated[
        Drawing, typer.Option(help="default: the same cases every time. fuzz: others, for --minutes.")
    ] = Drawing.default,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long to search with --profile fuzz.")] = 5.0,
    database: Annotated[
        Path | None,
        typer.Option(help="Folder of what was found before, with --profile fuzz; machines can share it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the suite against a target and say whether it is Reroute.

    With --profile fuzz, search for cases that break it instead: what is found is saved, and finding nothing is no verdict.
    """
    from reroute_spec import RerouteError

    from ..reporting.files import write_report
    from ..reporting.records import Circumstances, to_records, with_reasons
    from ..reporting.terminal import print_report
    from ..running.finding import TargetName
    from ..running.results import CONFORMS, EXIT_CODES, INCOMPLETE
    from ..running.runner import chosen_profiles, save_failures
    from ..targets.one_thread import use_one_thread

    profiles = profiles or ("all" if nproc == 1 else "core")
    chosen = None if profiles == "all" else [name.strip() for name in profiles.split(",") if name.strip()]
    named = TargetName(target, cmd, timeout, nproc)
    if not timeout > 0:
        raise RerouteError("--timeout", f"{timeout:g}", "give a number above 0")
    if nproc > 1:
        from ..targets.ranks import ALONE

        for asked in chosen or ():
            if asked in ALONE:
                problem = f"{asked!r} is not asked of several processes: {ALONE[asked]}"
                raise RerouteError("--profiles", problem, "leave --nproc out")
    if nproc > 1 and jobs > 1:
        raise RerouteError("--jobs", f"{jobs} with --nproc {nproc}", "give one of the two")
    use_one_thread()
    with named.made() as implementation:
        ran = chosen_profiles(implementation, chosen)  # refuse before the report of an earlier run goes
        clear_report(report)
        if profile == Drawing.fuzz:
            outcome = _searched(named, implementation, ran, minutes, jobs, database)
        else:
            outcome = _run(named, implementation, ran, jobs)
    patience = "" if timeout == DEFAULT_TIMEOUT else f"--timeout {timeout:g} "
    together = "" if nproc == 1 else f"{patience}--nproc {nproc} "
    option, name = (f"{together}--target", target) if cmd is None else (f"{patience}--cmd", cmd)
    save_failures(outcome, str(name), report / "cases", option)
    if profile == Drawing.fuzz and not outcome.failures:
        cases = sum(result.examples for result in outcome.results)
        typer.echo(
            f"searched {minutes:g} minutes: {cases} cases, checks looked at: {len(outcome.results)}, nothing broken"
        )
        if outcome.reasons:
            typer.echo(f"not asked: {with_reasons(outcome.reasons, outcome.reasons)}")
        typer.echo("This is no verdict: vlm-reroute conform without --profile fuzz gives one.")
        raise typer.Exit(EXIT_CODES[CONFORMS if outcome.results or not outcome.reasons else INCOMPLETE])
    command = shlex.join(["vlm-reroute", *sys.argv[1:]])
    seed = "random" if profile == Drawing.fuzz else "derandomized"
    run = Circumstances(_versions(), command, datetime.now(UTC).isoformat(timespec="seconds"), seed)
    records = to_records(outcome, run)
    write_report(records, report)
    if as_json:
        sys.stdout.writelines(json.dumps(record) + "\n" for record in records)
    else:
        print_report(records, report)
    raise typer.Exit(EXIT_CODES[outcome.verdict])


def _run(named: TargetName, implementation: Any, profiles: tuple[str, ...], jobs: int) -> Report:
    """Every check once, in this process or in several."""
    from ..running.parallel import run_checks
    from ..running.runner import claimed_checks, report_of, run_suite

    with _progress() as on_check:
        if jobs == 1:
            return run_suite(
                implementation, profiles, on_check=lambda check, total: on_check(check.name, total)
            )
        chosen = claimed_checks(implementation, profiles)
        done = on_check("checks", len(chosen))
        results = run_checks(named, chosen, jobs, lambda result: done())
    return report_of(implementation, profiles, results)


def _searched(
    named: TargetName,
    implementation: Any,
    profiles: tuple[str, ...],
    minutes: float,
    jobs: int,
    database: Path | None,
) -> Report:
    """What a search of some minutes found."""
    from rich.console import Console

    from ..running.parallel import fuzz
    from ..running.runner import report_of

    words, cases = f"searching for {minutes:g} minutes, {jobs} at a time", 0
    with Console(stderr=True).status(words) as status:

        def found(result: CheckResult) -> None:
            nonlocal cases
            cases += result.examples
            status.update(f"{words}: {cases} cases")
            if result.failure is not None:
                status.console.print(f"{result.check.name}: {result.failure.violation.rule} is broken")

        results = fuzz(named, profiles, 60 * minutes, database=database, jobs=jobs, on_check=found)
    return report_of(implementation, profiles, results)


def clear_report(folder: Path) -> None:
    """A folder that can be written and holds nothing of an earlier run: that would outlive a crash of this one."""
    from reroute_spec import RerouteError

    from ..reporting.files import FILES
    from ..running.saved_failures import is_saved

    saved = [path for path in (folder / "cases").glob("*") if is_saved(path)]
    old = [*(folder / name for name in FILES), *(file for path in saved for file in path.iterdir())]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in old:
            path.unlink(missing_ok=True)
        for path in saved:
            path.rmdir()
        (folder / FILES[0]).touch()
    except OSError as error:
        raise RerouteError(
            "--report", f"{folder} cannot be written ({error})", "give a writable folder"
        ) from None


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("vlm-reroute", "torch", "transformers", "hypothesis")
    return {**{name: version(name) for name in names}, "python": platform.python_version()}


@contextmanager
def _progress() -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """Progress bars on stderr, each given a name and a total when it begins."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:

        def on_check(name: str, total: int) -> Callable[[], None]:
            task = progress.add_task(name, total=total)
            return lambda: progress.advance(task)

        yield on_check
