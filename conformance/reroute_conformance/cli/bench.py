"""Defines ``vlm-reroute bench``, which measures targets. Only a target that passes the smoke gets a speed."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

_FAILED, _UNTIMED = 1, 2
_TARGETS = ("optimized-torch", "optimized-triton")
_Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="As for conform; may be repeated. The reference is always measured. Left out: all of ours.",
    ),
]


def bench(
    context: typer.Context,
    target: _Targets = None,
    external: Annotated[
        list[Path] | None,
        typer.Option(
            help="A Python file with a factory target(): an implementation that lives elsewhere. May be repeated."
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            help="select, score, block, prefill, decode, cache, memory, scaling. May be repeated. Left out: all but scaling."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Samples of everybody, in turns.")] = 9,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of torch. Left out: as many as it takes by itself.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu in float32, or cuda in bfloat16.")] = "cpu",
    json_path: Annotated[
        Path | None,
        typer.Option("--json", help="Write the run here, as JSON; until it ends, beside it as NAME.partial."),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the run here, as one page with plots.")] = None,
    saved: Annotated[
        Path | None, typer.Option("--from", help="Measure nothing: take the run that --json wrote.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="An earlier run's JSON: say what changed beyond noise.")
    ] = None,
    readme: Annotated[
        Path | None,
        typer.Option(
            help="Put the table into this file, between <!-- bench:cpu --> and <!-- /bench:cpu -->."
        ),
    ] = None,
    cmd: Annotated[str | None, typer.Option("--cmd", hidden=True)] = None,
) -> None:
    """Measure targets beside the unrouted model, the reference and the least that the machine needs.

    Every target first passes the conformance smoke: one that fails it gets no speed. Run it on a machine that does nothing
    else. Exit codes: 0 everybody asked for was measured, 1 a target failed the smoke, 2 a target of --target or --external
    cannot be timed here, 3 wrong usage.
    """
    from reroute_spec import RerouteError

    if cmd is not None:
        problem = "a command is not timed: models and caches would travel as files, and their way would be all that is seen"
        raise RerouteError("--cmd", problem, "give --target or --external, or time it in its own language")
    # torch's profiler, which counts allocations, would log into the progress bar; it reads this when it is loaded
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    from ..bench.measuring.saved_runs import read
    from ..bench.presenting.terminal import show, show_comparison

    if html is not None:
        from ..bench.presenting.plots import check_matplotlib

        check_matplotlib()
    for option, path in (("--json", json_path), ("--html", html)):  # before minutes are spent
        if path is not None and path.is_dir():
            raise RerouteError(option, f"{path} is a folder", "give a file")
    if saved is not None:
        _refuse_with_from(context)
    old = None if compare is None else read("--compare", compare)
    record = None if saved is None else read("--from", saved)
    if readme is not None:
        from ..bench.presenting.readme import check_marks

        check_marks(readme, _device(device) if record is None else record["machine"]["device"])

    # a run that is cut short leaves what it had, and the run before it whole
    partial = None if json_path is None else json_path.with_name(json_path.name + ".partial")

    def keep(record: dict[str, Any]) -> None:
        if partial is not None:
            _write("--json", partial, json.dumps(record, indent=1) + "\n")

    if record is None:
        record = _measured(target, external or [], suite, rounds, threads, device, keep)
    if json_path is not None and partial is not None:
        keep(record)
        partial.replace(json_path)
    show(record)
    comparison = None
    if old is not None:
        from ..bench.presenting.compare import compare as compared

        comparison = compared(old, record)
        show_comparison(comparison)
    if html is not None:
        from ..bench.presenting.page import page

        _write("--html", html, page(record, comparison))
    if readme is not None:
        from ..bench.presenting.readme import markdown, write_between

        write_between(readme, record["machine"]["device"], markdown(record))
    if saved is None:
        raise typer.Exit(_exit_code(record, named=bool(target or external)))


def _refuse_with_from(context: typer.Context) -> None:
    """Options of measuring say nothing of a run that is over, and would be taken for what it was made with."""
    from reroute_spec import RerouteError

    given = [
        f"--{name}"
        for name in ("target", "external", "suite", "rounds", "threads", "device")
        if getattr(context.get_parameter_source(name), "name", "DEFAULT") != "DEFAULT"
    ]
    if given:
        verb = "has" if len(given) == 1 else "have"
        problem = f"measures nothing: {', '.join(given)} {verb} no meaning with it"
        raise RerouteError(
            "--from", problem, "leave it out, or measure" if len(given) == 1 else "leave them out, or measure"
        )


def _device(name: str) -> str:
    """A device that is here.

    Raises:
        RerouteError: it is not.
    """
    from ..bench.measuring.run import check_device

    return check_device(name).device


def _measured(
    target: list[str] | None,
    external: list[Path],
    suite: list[str] | None,
    rounds: int,
    threads: int | None,
    device: str,
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """A run; what there is of it is kept after every case, so that one that is cut short has left what it had."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ..bench.measuring.admission import admit
    from ..bench.measuring.machine import Rates
    from ..bench.measuring.run import DEFAULT, check_device, chosen_suites, run_cases

    place, cases = check_device(device), chosen_suites(suite or DEFAULT)
    names = list(dict.fromkeys(["reference", *((target or []) if target or external else _TARGETS)]))
    columns = (TextColumn("{task.description:<40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("conformance smoke", total=len(cases) + 1)
        admitted = admit(names, external)
        if threads is not None:
            torch.set_num_threads(threads)

        def on_case(case: Any) -> None:
            progress.update(task, description=f"{case.suite}: {case.name}", advance=1)

        def so_far(record: dict[str, Any]) -> None:
            record["command"] = shlex.join(["vlm-reroute", *sys.argv[1:]])
            record["date"] = datetime.now(UTC).isoformat(timespec="seconds")
            keep(record)

        return run_cases(cases, admitted, place, Rates.measured(place), rounds, on_case, so_far)


def _exit_code(record: dict[str, Any], *, named: bool) -> int:
    if any(entry["smoke"] == "fails" for entry in record["targets"]):
        return _FAILED
    measured = {name for case in record["cases"] for name in case["measured"]}
    everybody = all(entry["timed"] and entry["name"] in measured for entry in record["targets"])
    return _UNTIMED if named and not everybody else 0


def _write(option: str, path: Path, text: str) -> None:
    from reroute_spec import RerouteError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise RerouteError(option, f"{path} cannot be written ({error})", "give a writable path") from None
