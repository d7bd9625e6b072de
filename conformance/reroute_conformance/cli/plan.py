"""Defines ``vlm-reroute plan``, which shows what a schedule runs, caches and costs. It needs no implementation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import Json, Model, Visual, check_count, schedule_of, shape_of

if TYPE_CHECKING:
    from fractions import Fraction

    from reroute_spec import Cost, DecodeCost, Plan, Schedule


def plan(
    preset: Annotated[
        str, typer.Option(help="A preset, or a path to a schedule in JSON or YAML.")
    ] = "reroute-fastv-192",
    model: Model = "llava-1.5-7b",
    visual: Visual = 576,
    text: Annotated[int, typer.Option(help="Text rows.")] = 65,
    batch: Annotated[int, typer.Option(help="Requests that decode together.")] = 1,
    decode: Annotated[int, typer.Option(help="Tokens that each request has decoded before.")] = 0,
    as_json: Json = False,
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
        check_count(name, value, least)
    shape = shape_of(model)
    schedule = schedule_of("--preset", preset, shape)
    request = make_plan(schedule, shape.num_layers, visual_flags(visual, text))
    costs, step = cost(request, shape), decode_cost(request, shape, batch=batch, decoded=decode)
    if as_json:
        typer.echo(json.dumps(_plan_data(schedule, request, costs, step)))
    else:
        _print_plan(f"{schedule.label or preset} on {model}", request, costs, step)


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
    from ..reporting.console import new_console, new_table

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
    table = new_table(title, 2, *columns)
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
    console = new_console()
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
