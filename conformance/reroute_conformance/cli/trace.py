"""Defines ``vlm-reroute trace``, which shows which patches of a picture ran, were deferred and re-entered."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import refusing_option

if TYPE_CHECKING:
    from reroute_spec.view import View
    from reroute_view import Shown

_NONE = "none"
_WRITTEN = dict.fromkeys(("path", "html", "figure"), "--output")
"""What a refusal to write names, as the option that a person typed."""


def trace(
    model: Annotated[
        str | None,
        typer.Option(
            help="A checkpoint by folder or name, or tiny, tiny-qwen2.5-vl, tiny-qwen3-vl, tiny-qwen3.5: random weights, "
            "nothing to download. Left out: tiny."
        ),
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option(help="A picture. May be repeated; left out, the prompt has none.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The question.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="A preset, or a path to a schedule in JSON or YAML. Left out: reroute-pdrop-64.",
            show_default=False,
        ),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            help="What to show beside it, as for --preset, or none. Left out: the pruning method that it augments."
        ),
    ] = None,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            help="A page (.html), a figure (.png) or the data of both (.json). May be repeated; a file that is there is "
            "replaced. Left out: trace.html.",
        ),
    ] = None,
    saved: Annotated[
        Path | None, typer.Option("--from", help="Run nothing: draw what -o FILE.json wrote, on any machine.")
    ] = None,
) -> None:
    """Show which patches of a picture ran, were deferred and re-entered, decision by decision.

    Exit codes: 0 drawn, 3 wrong usage.
    """
    from reroute_spec import RerouteError
    from reroute_view import Shown

    given_files = [*(image or []), *(Path(name) for name in (preset, beside) if name)]
    paths = _outputs(output or [Path("trace.html")], given_files)
    if saved is not None:
        given = {
            "--model": model,
            "--image": image,
            "--prompt": prompt,
            "--preset": preset,
            "--beside": beside,
        }
        for option, value in given.items():
            if value:
                raise RerouteError(option, "is given with --from", "leave one of them out")
        shown = _read(saved)
    else:
        shown = Shown(
            _traced(model or "tiny", image or [], prompt or "", preset or "reroute-pdrop-64", beside)
        )
    for path in paths:
        refusing_option(_WRITTEN, "--output", partial(shown.save, path))
    _print(shown.view, paths)


def _outputs(paths: list[Path], given: list[Path]) -> list[Path]:
    """The files to write, each once; refused before minutes are spent, and before a picture is replaced by its trace."""
    from reroute_spec import RerouteError
    from reroute_view.shown import check_path

    for path in paths:
        refusing_option(_WRITTEN, "--output", partial(check_path, path))
        if os.path.exists(path) and any(os.path.exists(own) and path.samefile(own) for own in given):
            raise RerouteError("--output", f"{path} is one of the files given", "give another name")
    return list(dict.fromkeys(paths))


def _read(path: Path) -> Shown:
    from reroute_view import Shown

    return refusing_option({"path": "--from"}, "--from", lambda: Shown.read(path))


def _traced(name: str, image: list[Path], prompt: str, preset: str, beside: str | None) -> View:
    from reroute_spec import Schedule
    from rich.console import Console

    from ..showing.trace import ask, augmented, load, load_schedule, open_pictures
    from ..showing.trace import trace as trace_request

    pictures = refusing_option({"image": "--image"}, "--image", lambda: open_pictures(image))
    with Console(stderr=True).status(f"loading {name}"):
        model, processor = refusing_option({"model": "--model"}, "--model", lambda: load(name))

    def schedule(option: str, given: str) -> Schedule:
        return refusing_option(
            {"preset": option, "schedule": option}, option, lambda: load_schedule(given, model)
        )

    schedules = [(preset, schedule("--preset", preset))]
    if beside is not None:
        if beside != _NONE:
            schedules.append((beside, schedule("--beside", beside)))
    elif (pruning := augmented(preset, schedules[0][1])) is not None:
        other, own = pruning
        schedules.append((other, schedule("--preset", other) if own is schedules[0][1] else own))
    inputs = refusing_option(
        {"prompt": "--prompt", "image": "--image"},
        "--prompt",
        lambda: ask(model, processor, prompt, pictures),
    )
    with Console(stderr=True).status("running"):
        return refusing_option(
            {},
            "--model",
            lambda: trace_request(model, processor, inputs, schedules, prompt=prompt, name=name),
        )


def _print(view: View, paths: list[Path]) -> None:
    """What was decided in a few lines, and where the picture is."""
    from reroute_view.stages import stage_line, stage_title, stages

    for run in view.runs:
        typer.echo(f"{run.name}: {run.trace.num_rows} rows, {len(run.trace.visual_rows)} of them visual")
        for stage in stages(run):
            if stage.decision is not None:
                typer.echo(f"  {stage_title(stage)}: {stage_line(stage)}")
        if not run.trace.decisions:
            typer.echo("  nothing is decided: every row runs in every block")
    for path in paths:
        typer.echo(f"Written: {path}")
