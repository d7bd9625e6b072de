"""The command line. Heavy imports wait until a command needs them, so that --help answers at once."""

from __future__ import annotations

import json
import platform
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from . import cli_cost, cli_rules, cli_vectors

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from .protocol import Target

_HARNESS_ERROR = 3

app = typer.Typer(
    name="vlm-reroute",
    help="Recoverable visual token routing: check an implementation, see what a schedule costs.",
    epilog="Exit codes of conform and replay: 0 conforms, 1 fails, 2 incomplete, 3 wrong usage or a broken harness.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(cli_cost.app)
app.add_typer(cli_rules.app)
app.add_typer(cli_vectors.app, name="vectors")

_Target = Annotated[
    str | None,
    typer.Option(help="reference, optimized-torch, mutant:NAME, an entry point, or package.module:factory."),
]
_Command = Annotated[
    str | None,
    typer.Option("--cmd", help="In place of --target: a command that speaks the protocol, in any language."),
]
_Timeout = Annotated[float, typer.Option(help="Seconds that a command of --cmd may take for a case.")]
_DEFAULT_TIMEOUT = 60.0
_Json = Annotated[bool, typer.Option("--json", help="Print data for machines instead of tables.")]


@app.command()
def conform(
    target: _Target = None,
    cmd: _Command = None,
    timeout: _Timeout = _DEFAULT_TIMEOUT,
    profiles: Annotated[str, typer.Option(help="Comma-separated, or all that the target claims.")] = "all",
    report: Annotated[Path, typer.Option(help="Folder for the report and failing cases.")] = Path(
        "reroute-report"
    ),
    as_json: _Json = False,
) -> None:
    """Run the suite against a target and say whether it is Reroute."""
    from .report import Circumstances, to_records, write_report
    from .report_text import print_report
    from .runner import EXIT_CODES, chosen_profiles, run_suite, save_failures

    chosen = None if profiles == "all" else [name.strip() for name in profiles.split(",") if name.strip()]
    implementation = _implementation(target, cmd, timeout)
    _prepare()
    chosen_profiles(implementation, chosen)  # refuse before the report of an earlier run goes
    _clear_report(report)
    with _closing(implementation), _progress() as on_check:
        outcome = run_suite(implementation, chosen, on_check=on_check)
    patience = "" if timeout == _DEFAULT_TIMEOUT else f"--timeout {timeout:g} "
    option, name = ("--target", target) if cmd is None else (f"{patience}--cmd", cmd)
    save_failures(outcome, str(name), report / "cases", option)
    command = shlex.join(["vlm-reroute", *sys.argv[1:]])
    run = Circumstances(_versions(), command, datetime.now(UTC).isoformat(timespec="seconds"))
    records = to_records(outcome, run)
    write_report(records, report)
    if as_json:
        sys.stdout.writelines(json.dumps(record) + "\n" for record in records)
    else:
        print_report(records, report)
    raise typer.Exit(EXIT_CODES[outcome.verdict])


@app.command()
def replay(
    case: Annotated[
        Path, typer.Argument(help="A case that conform saved, or a vector: its folder or case.json.")
    ],
    target: _Target = None,
    cmd: _Command = None,
    timeout: _Timeout = _DEFAULT_TIMEOUT,
) -> None:
    """Judge a saved case, or a vector, again."""
    from reroute_spec.rules import rules

    from .runner import EXIT_CODES, INCOMPLETE, replay_case

    _prepare()
    implementation = _implementation(target, cmd, timeout)
    with _closing(implementation):
        verdict = replay_case(case, implementation)
    if verdict.skipped:
        typer.echo(f"{case}: skipped by the target: {verdict.skipped}")
        raise typer.Exit(EXIT_CODES[INCOMPLETE])
    for violation in verdict.violations:
        typer.echo(f"{_title(violation.rule)}\n  {violation.where}: {violation.detail}")
        typer.echo(f"  check: {rules()[violation.rule].check}")
    typer.echo(f"{case}: {'FAILS' if verdict.violations else 'passes'}")
    raise typer.Exit(1 if verdict.violations else 0)


def main() -> None:
    """Entry point: every refusal is one line on stderr and exit code 3, never a traceback."""
    try:
        code = app(standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        code = _HARNESS_ERROR
        if hasattr(
            error, "show"
        ):  # a usage error of the command line library, which typer vendors or imports
            error.show()
            code = 0 if type(error).__name__ == "NoArgsIsHelpError" else code
        elif hasattr(error, "remedy"):  # RerouteError
            typer.echo(f"error: {error}", err=True)
        else:
            traceback.print_exc()
    sys.exit(code)


def _implementation(target: str | None, cmd: str | None, timeout: float) -> Target:
    """What --target names or --cmd starts."""
    from reroute_spec import RerouteError

    if (target is None) == (cmd is None):
        problem = "are both missing" if cmd is None else "are both given"
        raise RerouteError("--target, --cmd", problem, "Missing option: give exactly one of the two")
    if cmd is None:
        from .targets import load_target

        return load_target(str(target))
    from .stdio import CommandTarget

    return cast("Target", CommandTarget(cmd, timeout))


@contextmanager
def _closing(target: Target) -> Iterator[None]:
    """End the process of a target that is one."""
    try:
        yield
    finally:
        if callable(close := getattr(target, "close", None)):
            close()


def _clear_report(folder: Path) -> None:
    """A folder that can be written and holds nothing of an earlier run: that would outlive a crash of this one."""
    from reroute_spec import RerouteError

    from .report import FILES
    from .saved import is_saved

    saved = [path for path in (folder / "cases").glob("*") if is_saved(path)]
    inside = [file for path in saved for file in path.iterdir()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in [*(folder / name for name in FILES), *inside]:
            path.unlink(missing_ok=True)
        for path in saved:
            path.rmdir()
        (folder / FILES[0]).touch()
    except OSError as error:
        raise RerouteError(
            "--report", f"{folder} cannot be written ({error})", "give a writable folder"
        ) from None


def _prepare() -> None:
    """One thread: the suite's tensors are tiny, and their bits must not depend on how many cores are free."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("vlm-reroute", "torch", "transformers", "hypothesis")
    return {**{name: version(name) for name in names}, "python": platform.python_version()}


def _progress() -> Any:
    """A progress bar per check, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from .checks import Check

    @contextmanager
    def bars() -> Iterator[Callable[[Check, int], Callable[[], None]]]:
        columns = (
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:

            def on_check(check: Check, total: int) -> Callable[[], None]:
                task = progress.add_task(check.name, total=total)
                return lambda: progress.advance(task)

            yield on_check

    return bars()


def _title(rule: str) -> str:
    from reroute_spec.rules import rules

    return f"{rule}  {rules()[rule].title}"


def _table(title: str | None, left: int, *columns: str) -> Table:
    """A plain table; the first ``left`` columns are text, the others numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < left else "right", no_wrap=True)
    return table


def _console() -> Console:
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False)
