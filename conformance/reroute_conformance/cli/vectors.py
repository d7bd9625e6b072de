"""Defines ``vlm-reroute vectors``, which lists the vectors, makes them again, and says whether they are what their sources make."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

app = typer.Typer(
    name="vectors", help="Cases with their expected results, as JSON and safetensors.", no_args_is_help=True
)


@app.command("list")
def list_vectors(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print data for machines instead of a table.")
    ] = False,
) -> None:
    """Every vector: kind, id, where it comes from, the rules that it is about, what a target has to claim."""
    from ..vectors.manifest import entries, vector_digest

    listed = entries()
    if as_json:
        data = [
            {"id": e.id, "kind": e.kind, "oracle": e.oracle, "rules": e.rules, "profiles": e.profiles}
            for e in listed
        ]
        typer.echo(json.dumps({"digest": vector_digest(), "vectors": data}))
        return
    for entry in listed:
        claims = f"  [{', '.join(entry.profiles)}]" if entry.profiles else ""
        typer.echo(f"{entry.place:<42} {entry.oracle:<10} {' '.join(entry.rules)}{claims}")
    typer.echo(f"{len(listed)} vectors, digest {vector_digest()}")


@app.command()
def regenerate(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 and print what differs.")
    ] = False,
) -> None:
    """Make every vector again from its source: by hand, by the reference, or measured and completed."""
    import torch

    from ..vectors.making.regenerate import differences, rewrite
    from ..vectors.manifest import entries, vector_digest

    torch.set_num_threads(1)
    with _bar(len(entries())) as tick:
        found = differences(tick=tick) if check else []
        count = len(entries()) if check else rewrite(tick=tick)
    for line in found:
        typer.echo(line)
    outcome = f"{len(found)} differences" if found else "all as made again" if check else "written"
    typer.echo(f"{count} vectors, digest {vector_digest()}: {outcome}")
    raise typer.Exit(1 if found else 0)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("vectors", total=total)
        yield lambda: progress.advance(task)
