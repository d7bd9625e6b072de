"""Defines ``vlm-reroute schedule``, which scales a schedule until it runs the average number of visual rows that is asked for.

It needs no implementation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json, Model, Visual, check_count, refusing_option, schedule_of, shape_of

if TYPE_CHECKING:
    from reroute_spec import Fit, Schedule


def schedule(
    average: Annotated[str, typer.Option(help="Visual rows per block, over all blocks.")],
    like: Annotated[str, typer.Option(help="The preset, or the schedule file, whose ratios are scaled.")],
    model: Model = "llava-1.5-7b",
    visual: Visual = 576,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the schedule here, as JSON.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Scale a schedule's ratios by one factor until it runs the average that is asked for."""
    from reroute_spec import RerouteError, fit_average

    check_count("--visual", visual, 1)
    if output is not None and output.suffix.lower() != ".json":
        raise RerouteError(
            "--output", f"{output} does not end in .json", "schedules are read by their suffix"
        )
    shape = shape_of(model)
    given = schedule_of("--like", like, shape)
    names = {"average": "--average", "num_visual": "--visual"}
    fit = refusing_option(names, "--like", lambda: fit_average(given, shape.num_layers, visual, average))
    data = fit.schedule.to_dict()
    if output is not None:
        try:
            output.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise RerouteError(
                "--output", f"{output} cannot be written ({error})", "give a writable path"
            ) from None
    if as_json:
        typer.echo(json.dumps(_fit_data(fit, given)))
    else:
        _print_fit(fit, given, like, model, output)


def _fit_data(fit: Fit, given: Schedule) -> dict[str, Any]:
    return {
        "schedule": fit.schedule.to_dict(),
        "like": given.to_dict(),
        "factor": float(fit.factor),
        "asked": float(fit.asked),
        "average_before": float(fit.before.average_visual),
        "average_after": float(fit.after.average_visual),
        "rows_before": [stage.kept for stage in fit.before.stages if stage.index],
        "rows_after": [stage.kept for stage in fit.after.stages if stage.index],
    }


def _print_fit(fit: Fit, given: Schedule, like: str, model: str, output: Path | None) -> None:
    from reroute_spec.budget import format_keep

    from ..reporting.console import new_console, new_table

    title = f"{given.label or like} on {model}, every ratio times {float(fit.factor):g}"
    table = new_table(title, 0, "block", "ratio before", "rows", "ratio after", "rows")
    stages = [[stage for stage in plan.stages if stage.index] for plan in (fit.before, fit.after)]
    decisions = zip(given.decisions, fit.schedule.decisions, *stages, strict=True)
    for before, after, ran, runs in decisions:
        table.add_row(
            str(before.layer),
            str(format_keep(before.keep)),
            str(ran.kept),
            str(format_keep(after.keep)),
            str(runs.kept),
        )
    console = new_console()
    console.print(table)
    averages = (f"{float(plan.average_visual):.2f}" for plan in (fit.before, fit.after))
    console.print(
        f"Average visual rows per block, of {fit.after.num_visual}: {' before, '.join(averages)} after; asked {float(fit.asked):g}",
        markup=False,
    )
    if output is not None:
        console.print(f"Schedule: {output}", markup=False)
    else:
        console.print(json.dumps(fit.schedule.to_dict()), markup=False)
