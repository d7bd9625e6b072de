"""Puts the commands together into ``vlm-reroute``, and prints every refusal as one line with exit code 3.

A heavy import waits until a command needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
import traceback

import typer

from . import bench, conform, mutants, plan, replay, rules, schedule, smoke, trace, vectors
from .options import HARNESS_ERROR

_EXTRA = ("hypothesis", "jinja2", "jsonschema", "junitparser", "referencing")
"""What pyproject.toml's extra ``conformance`` brings."""

app = typer.Typer(
    name="vlm-reroute",
    help="Recoverable visual token routing: check an implementation, see what a schedule costs.",
    epilog="Exit codes of conform and replay: 0 conforms, 1 fails, 2 incomplete, 3 wrong usage or a broken harness.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for command in (
    conform.conform,
    replay.replay,
    mutants.mutants,
    smoke.smoke,
    plan.plan,
    schedule.schedule,
    trace.trace,
    bench.bench,
    rules.rules,
    rules.explain,
):
    app.command()(command)
app.add_typer(vectors.app, name="vectors")


def main() -> None:
    """Entry point: every refusal is one line on stderr and exit code 3, never a traceback."""
    try:
        code = app(standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as raised:
        error, code = _explained(raised), HARNESS_ERROR
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


def _explained(error: Exception) -> Exception:
    """The error, or what to do where it is that the suite was not installed with the rest."""
    if not isinstance(error, ModuleNotFoundError) or error.name not in _EXTRA:
        return error
    from reroute_spec import RerouteError

    return RerouteError(
        "vlm-reroute", f"this command needs {error.name}", "pip install 'vlm-reroute[conformance]'"
    )
