"""Defines the options and the exit code that several commands share, and refusals that name the option that a person typed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from reroute_spec import DecoderShape, Schedule

_T = TypeVar("_T")
HARNESS_ERROR = 3
"""The exit code of wrong usage and of a broken harness."""

Target = Annotated[
    str | None,
    typer.Option(help="reference, optimized-torch, mutant:NAME, an entry point, or package.module:factory."),
]
Command = Annotated[
    str | None,
    typer.Option("--cmd", help="In place of --target: a command that speaks the protocol, in any language."),
]
Timeout = Annotated[
    float, typer.Option(help="Seconds that a command of --cmd, or a process of --nproc, may take for a case.")
]
Processes = Annotated[
    int,
    typer.Option(
        "--nproc", min=1, help="Processes of one gloo group that run the target together; each is judged."
    ),
]
DEFAULT_TIMEOUT = 60.0
Json = Annotated[bool, typer.Option("--json", help="Print data for machines instead of tables.")]
_MODEL_HELP = (
    "A decoder by name (llava-1.5-7b, qwen3.5-9b, ...), a config.json, or the folder that holds one."
)
Model = Annotated[str, typer.Option(help=_MODEL_HELP)]
Visual = Annotated[int, typer.Option(help="Routable visual rows.")]


def check_count(option: str, value: int, least: int) -> None:
    """Refuse a number below ``least``, naming the option."""
    from reroute_spec import RerouteError

    if value < least:
        raise RerouteError(option, f"{value} is no count", f"give an integer >= {least}")


def refusing_option(options: dict[str, str], option: str, call: Callable[[], _T]) -> _T:
    """Run a call; its refusal names the option that a person typed, and keeps the field within it."""
    from reroute_spec import RerouteError

    try:
        return call()
    except RerouteError as error:
        if error.field in options:
            raise RerouteError(options[error.field], error.problem, error.remedy) from None
        raise RerouteError(f"{option}: {error.field}", error.problem, error.remedy) from None


def shape_of(model: str) -> DecoderShape:
    """The shape that ``--model`` names."""
    from reroute_spec import decoder_shape

    return refusing_option({"model": "--model"}, "--model", lambda: decoder_shape(model))


def schedule_of(option: str, preset_or_path: str, shape: DecoderShape) -> Schedule:
    """The schedule that an option names, for a decoder of ``shape``."""
    from reroute_spec import Schedule

    fields = {"preset": option, "schedule": option}
    return refusing_option(
        fields, option, lambda: Schedule.load(preset_or_path, shape.num_layers, shape.attention_layers)
    )
