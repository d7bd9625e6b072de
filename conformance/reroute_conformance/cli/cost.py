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
    from .entry import _console, _table

    text = request.num_rows - request.num_visual
    stages = [(stage, costs.blocks[stage.first : stage.last + 1]) for stage in request.stages]
    flops, flops_name = _unit(max(sum(block.flops for block in blocks) for _, blocks in stages), _FLOPS)
    kv, kv_name = _unit(
        max(sum(block.kv_rows for block in blocks) for _, blocks in stages) * costs.kv_row_bytes, _KV
    )
    title = f"{title}: {request.num_visual} visual + {text} text rows"
    columns = (
        "blocks",
        "stage",
        "visual rows",
        "rows run",
        "KV rows",
        flops_name,
        "scoring",
        f"KV {kv_name}",
    )
    table = _table(title, 2, *columns)
    for stage, blocks in stages:
        kv_rows, scoring = sum(block.kv_rows for block in blocks), blocks[0].scoring
        table.add_row(
            f"{stage.first}" if len(blocks) == 1 else f"{stage.first} to {stage.last}",
            f"decision {stage.index}" if stage.index else "dense",
            str(stage.kept),
            str(blocks[0].rows),
            str(kv_rows),
            f"{sum(block.flops - block.scoring for block in blocks) / flops:.1f}",
            f"+{scoring / flops:.2f}" if scoring else "",
            f"{kv_rows * costs.kv_row_bytes / kv:.1f}",
        )
    console = _console()
    console.print(table)
    lines = [
        f"Visual rows and rows run are per block; KV rows, {flops_name} and KV {kv_name} are of all the stage's blocks.",
        f"Average visual rows: {float(request.average_visual):.2f} of {request.num_visual} per block",
        f"Prefill:  {_of(costs.flops, costs.unrouted_flops, _FLOPS)}",
        f"KV cache: {_of(costs.kv_bytes, costs.unrouted_kv_bytes, _KV)}",
    ]
    if costs.state_bytes:
        unit, name = _unit(costs.state_bytes, _KV)
        lines.append(
            f"          and {costs.state_bytes / unit:.1f} {name} of linear-attention states, routed or not"
        )
    weights, weights_name = _unit(step.weight_bytes / step.batch, _BYTES)
    lines += [
        f"Decode:   {_of(step.bytes_per_token, step.unrouted_bytes_per_token, _BYTES)} read per token "
        f"(batch {step.batch}, {step.decoded} tokens before)",
        f"          weights {step.weight_bytes / step.batch / weights:.2f} {weights_name}; "
        f"KV {_of(step.kv_bytes, step.unrouted_kv_bytes, _BYTES)}",
        f"          {_of(step.flops, step.unrouted_flops, _FLOPS)}",
        "Counted: the decoder's blocks, in 16 bit. Not: vision tower, embedding, head, which cost the same routed or not.",
    ]
    for line in lines:
        console.print(line, markup=False)


_FLOPS = (1000, ("FLOPs", "kFLOPs", "MFLOPs", "GFLOPs", "TFLOPs", "PFLOPs"))
_KV = (1024, ("B", "KiB", "MiB", "GiB", "TiB"))
_BYTES = (1000, ("B", "kB", "MB", "GB", "TB"))


def _unit(largest: Fraction | float, scale: tuple[int, tuple[str, ...]]) -> tuple[int, str]:
    """The largest unit of a scale in which a quantity is at least 1."""
    base, names = scale
    power = 0
    while power + 1 < len(names) and largest >= base ** (power + 1):
        power += 1
    return base**power, names[power]


def _of(part: Fraction | int, whole: Fraction | int, scale: tuple[int, tuple[str, ...]]) -> str:
    unit, name = _unit(whole, scale)
    ratio = f" ({float(part / whole):.1%})" if whole else ""
    return f"{float(part / unit):.2f} of {float(whole / unit):.2f} {name} unrouted{ratio}"


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

    from .entry import _console, _table

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
    averages = (f"{float(plan.average_visual):.2f}" for plan in (fit.before, fit.after))
    console.print(
        f"Average visual rows per block, of {fit.after.num_visual}: {' before, '.join(averages)} after; asked {float(fit.asked):g}",
        markup=False,
    )
    if output is not None:
        console.print(f"Schedule: {output}", markup=False)
    else:
        console.print(json.dumps(fit.schedule.to_dict()), markup=False)
