"""The commands that need no implementation: ``plan``, what a schedule costs, and ``schedule``, one that costs what is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from fractions import Fraction

    from reroute_spec import Cost, DecodeCost, DecoderShape, Fit, Plan, Schedule

app = typer.Typer()
_T = TypeVar("_T")
_MODEL_HELP = (
    "A decoder by name (llava-1.5-7b, qwen3.5-9b, ...), a config.json, or the folder that holds one."
)
_Model = Annotated[str, typer.Option(help=_MODEL_HELP)]
_Visual = Annotated[int, typer.Option(help="Routable visual rows.")]
_Json = Annotated[bool, typer.Option("--json", help="Print data for machines instead of tables.")]


@app.command()
def plan(
    preset: Annotated[
        str, typer.Option(help="A preset, or a path to a schedule in JSON or YAML.")
    ] = "reroute-fastv-192",
    model: _Model = "llava-1.5-7b",
    visual: _Visual = 576,
    text: Annotated[int, typer.Option(help="Text rows.")] = 65,
    batch: Annotated[int, typer.Option(help="Requests that decode together.")] = 1,
    decode: Annotated[int, typer.Option(help="Tokens that each request has decoded before.")] = 0,
    as_json: _Json = False,
) -> None:
    """Show what a schedule runs, caches and costs, stage by stage and per decoded token."""
    from reroute_spec import cost, decode_cost
    from reroute_spec import plan as make_plan
    from reroute_spec.plan import visual_flags

    for name, value, least in (
        ("--visual", visual, 0),
        ("--text", text, 1),
        ("--batch", batch, 1),
        ("--decode", decode, 0),
    ):
        _check_count(name, value, least)
    shape = _shape(model)
    schedule = _schedule("--preset", preset, shape)
    request = make_plan(schedule, shape.num_layers, visual_flags(visual, text))
    costs, step = cost(request, shape), decode_cost(request, shape, batch=batch, decoded=decode)
    if as_json:
        typer.echo(json.dumps(_plan_data(schedule, request, costs, step)))
    else:
        _print_plan(f"{schedule.label or preset} on {model}", request, costs, step)


@app.command()
def schedule(
    average: Annotated[str, typer.Option(help="Visual rows per block, over all blocks.")],
    like: Annotated[str, typer.Option(help="The preset, or the schedule file, whose ratios are scaled.")],
    model: _Model = "llava-1.5-7b",
    visual: _Visual = 576,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the schedule here, as JSON.")
    ] = None,
    as_json: _Json = False,
) -> None:
    """Scale a schedule's ratios by one factor until it runs the average that is asked for."""
    from reroute_spec import RerouteError, fit_average

    _check_count("--visual", visual, 1)
    if output is not None and output.suffix.lower() != ".json":
        raise RerouteError(
            "--output", f"{output} does not end in .json", "schedules are read by their suffix"
        )
    shape = _shape(model)
    given = _schedule("--like", like, shape)
    names = {"average": "--average", "num_visual": "--visual"}
    fit = _named(names, "--like", lambda: fit_average(given, shape.num_layers, visual, average))
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


def _check_count(option: str, value: int, least: int) -> None:
    from reroute_spec import RerouteError

    if value < least:
        raise RerouteError(option, f"{value} is no count", f"give an integer >= {least}")


def _named(options: dict[str, str], option: str, call: Callable[[], _T]) -> _T:
    """Run a call; its refusal names the option that a person typed, and keeps the field within it."""
    from reroute_spec import RerouteError

    try:
        return call()
    except RerouteError as error:
        if error.field in options:
            raise RerouteError(options[error.field], error.problem, error.remedy) from None
        raise RerouteError(f"{option}: {error.field}", error.problem, error.remedy) from None


def _shape(model: str) -> DecoderShape:
    from reroute_spec import decoder_shape

    return _named({"model": "--model"}, "--model", lambda: decoder_shape(model))


def _schedule(option: str, preset_or_path: str, shape: DecoderShape) -> Schedule:
    from reroute_spec import Schedule

    fields = {"preset": option, "schedule": option}
    return _named(
        fields, option, lambda: Schedule.load(preset_or_path, shape.num_layers, shape.attention_layers)
    )


def _plan_data(schedule: Schedule, request: Plan, costs: Cost, step: DecodeCost) -> dict[str, Any]:
    return {
        "schedule": schedule.to_dict(),
        "rows": request.num_rows,
        "visual_rows": request.num_visual,
        "average_visual": float(request.average_visual),
        "blocks": [{**vars(block), "flops": block.flops} for block in costs.blocks],
        "flops": costs.flops,
        "unrouted_flops": costs.unrouted_flops,
        "flops_ratio": float(costs.flops_ratio),
        "kv_bytes": costs.kv_bytes,
        "unrouted_kv_bytes": costs.unrouted_kv_bytes,
        "kv_ratio": float(costs.kv_ratio),
        "state_bytes": costs.state_bytes,
        "decode": {
            **vars(step),
            "bytes_per_token": float(step.bytes_per_token),
            "unrouted_bytes_per_token": float(step.unrouted_bytes_per_token),
            "bytes_ratio": float(step.bytes_ratio),
            "flops_ratio": float(step.flops_ratio),
        },
    }


def _print_plan(title: str, request: Plan, costs: Cost, step: DecodeCost) -> None:
    from .cli import _console, _table

    text = request.num_rows - request.num_visual
    title = f"{title}: {request.num_visual} visual + {text} text rows"
    columns = ("blocks", "stage", "visual rows", "rows run", "KV rows", "GFLOPs", "scoring", "KV MiB")
    table = _table(title, 2, *columns)
    for stage in request.stages:
        blocks = costs.blocks[stage.first : stage.last + 1]
        decided, kv_rows = blocks[0], sum(block.kv_rows for block in blocks)
        table.add_row(
            f"{stage.first}" if len(blocks) == 1 else f"{stage.first} to {stage.last}",
            f"decision {stage.index}" if stage.index else "dense",
            str(stage.kept),
            str(decided.rows),
            str(kv_rows),
            f"{sum(block.flops - block.scoring for block in blocks) / 1e9:.1f}",
            f"+{decided.scoring / 1e9:.2f}" if decided.scoring else "",
            f"{kv_rows * costs.kv_row_bytes / 2**20:.1f}",
        )
    console = _console()
    console.print(table)
    lines = [
        "Visual rows and rows run are per block; KV rows, GFLOPs and KV MiB are of all the stage's blocks. Scoring is paid once.",
        f"Average visual rows: {_two_places(request.average_visual)} of {request.num_visual} per block",
        f"Prefill:  {_of(costs.flops, costs.unrouted_flops, 1e12, 'TFLOPs', 2)}",
        f"KV cache: {_of(costs.kv_bytes, costs.unrouted_kv_bytes, 2**20, 'MiB', 1)}",
    ]
    if costs.state_bytes:
        linear = sum(block.state_bytes > 0 for block in costs.blocks)
        lines.append(
            f"          and {costs.state_bytes / 2**20:.1f} MiB of states in {linear} linear-attention blocks, routed or not"
        )
    routed, dense = step.bytes_per_token, step.unrouted_bytes_per_token
    lines += [
        f"Decode:   {_of(routed, dense, 1e9, 'GB', 3)} read per token (batch {step.batch}, {step.decoded} tokens before)",
        f"          weights {float(step.weight_bytes) / step.batch / 1e9:.3f} GB, "
        f"KV {_of(step.kv_bytes, step.unrouted_kv_bytes, 1e9, 'GB', 3)}; "
        f"{_of(step.flops, step.unrouted_flops, 1e9, 'GFLOPs', 2)}",
        "Counted are the decoder's blocks, in 16 bit; not the vision tower, the embedding and the head, which cost the same routed or not.",
    ]
    for line in lines:
        console.print(line, markup=False)


def _two_places(value: Fraction) -> str:
    return f"{float(value):.2f}"


def _of(part: Fraction | int, whole: Fraction | int, unit: float, name: str, places: int) -> str:
    ratio = f" ({float(part / whole):.1%})" if whole else ""
    return f"{float(part) / unit:.{places}f} of {float(whole) / unit:.{places}f} {name} unrouted{ratio}"


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

    from .cli import _console, _table

    title = f"{given.label or like} on {model}, every ratio times {float(fit.factor):g}"
    table = _table(title, 0, "block", "ratio before", "rows", "ratio after", "rows")
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
    console = _console()
    console.print(table)
    averages = (_two_places(plan.average_visual) for plan in (fit.before, fit.after))
    console.print(
        f"Average visual rows per block, of {fit.after.num_visual}: {' before, '.join(averages)} after; asked {float(fit.asked):g}",
        markup=False,
    )
    if output is not None:
        console.print(f"Schedule: {output}", markup=False)
    else:
        console.print(json.dumps(fit.schedule.to_dict()), markup=False)
