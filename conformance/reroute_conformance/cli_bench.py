"""The command that measures: ``bench``. Only what passes the smoke gets a speed."""

from __future__ import annotations

import json
import os
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer()
_FAILED, _UNTIMED = 1, 2
_TARGETS = ("optimized-torch", "optimized-triton")
_Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="As for conform; may be repeated. The reference is always measured. Left out: all of ours.",
    ),
]


@app.command()
def bench(
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
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the run here, as JSON.")] = None,
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
    if html is not None:
        from .bench.plots import check_matplotlib

        check_matplotlib()
    for option, path in (("--json", json_path), ("--html", html)):  # before minutes are spent
        if path is not None and path.is_dir():
            raise RerouteError(option, f"{path} is a folder", "give a file")
    old = None if compare is None else _read("--compare", compare)
    if saved is not None:
        record = _read("--from", saved)
    else:
        record = _measured(target, external or [], suite, rounds, threads, device)
    if saved is None:
        _print(record)
    if json_path is not None:
        _write("--json", json_path, json.dumps(record, indent=1) + "\n")
    changed = None if old is None else _changes(old, record)
    if html is not None:
        from .bench.page import page

        _write("--html", html, page(record, changed))
    if readme is not None:
        from .bench.tables import markdown, write_between

        write_between(readme, record["machine"]["device"], markdown(record))
    if saved is None:
        raise typer.Exit(_exit_code(record, named=bool(target or external)))


def _measured(
    target: list[str] | None,
    external: list[Path],
    suite: list[str] | None,
    rounds: int,
    threads: int | None,
    device: str,
) -> dict[str, Any]:
    # torch's profiler, which counts allocations, would log into the progress bar; it reads this when it is loaded
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from .bench.admission import admit
    from .bench.machine import Rates
    from .bench.run import DEFAULT, check_device, chosen_suites, run_cases

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

        record = run_cases(cases, admitted, place, Rates.measured(place), rounds, on_case)
    record["command"] = shlex.join(["vlm-reroute", *sys.argv[1:]])
    record["date"] = datetime.now(UTC).isoformat(timespec="seconds")
    return record


def _exit_code(record: dict[str, Any], *, named: bool) -> int:
    if any(entry["smoke"] == "fails" for entry in record["targets"]):
        return _FAILED
    measured = {name for case in record["cases"] for name in case["measured"]}
    everybody = all(entry["timed"] and entry["name"] in measured for entry in record["targets"])
    return _UNTIMED if named and not everybody else 0


def _print(record: dict[str, Any]) -> None:
    from .bench.tables import TITLES, columns, machine_line, rows, suites
    from .bench.timing import MOST_SPREAD
    from .cli import _console, _table

    console = _console()
    console.width = max(console.width, 140)  # names are not to be cut where there is no terminal
    for name, cases in suites(record).items():
        table = _table(TITLES[name], 2, "case", "who", *columns(cases[0]))
        for case in cases:
            for row in rows(case):
                table.add_row(row.case, row.name, *row.cells)
        console.print(table)
        for case in cases:
            for who, reason in case.get("unmeasured", {}).items():
                typer.echo(f"{case['case']}: {who} is not measured: {reason}")
            if case.get("spread", 0.0) > MOST_SPREAD:
                typer.echo(
                    f"{case['case']}: times spread by up to {case['spread']:.0%} after {case['tries']} tries: "
                    "the machine was not idle"
                )
    for entry in record["fits"]:
        typer.echo(
            f"{entry['model']}, {entry['memory_gib']} GiB: {entry['unrouted']} requests fit unrouted, {entry['routed']} under "
            f"{entry['schedule']}"
        )
    for entry in record["targets"]:
        if not entry["timed"]:
            typer.echo(f"{entry['name']}: not timed: {entry['reason']}")
    typer.echo(machine_line(record))


def _changes(old: dict[str, Any], new: dict[str, Any]) -> Any:
    from .bench.compare import changes, same_machine

    found = changes(old, new)
    typer.echo(f"Since {old['date']}: {len(found) or 'no'} changes beyond noise")
    if not same_machine(old, new):
        typer.echo("Another machine: ratios are compared, seconds are not.")
    for change in found:
        word = "better" if change.better else "worse"
        typer.echo(
            f"  {change.suite}, {change.case}, {change.name}: {change.what} {change.before:.4g} -> {change.after:.4g}, {word}"
        )
    return found


def _read(option: str, path: Path) -> dict[str, Any]:
    from reroute_spec import RerouteError

    from .bench.run import FORMAT

    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RerouteError(option, f"{path} cannot be read ({error})", "give what --json wrote") from None
    parts = {"cases", "machine", "rates", "targets", "date"}
    if not isinstance(record, dict) or record.get("format") != FORMAT or not parts <= record.keys():
        raise RerouteError(option, f"{path} is no run", "give what --json wrote")
    return record


def _write(option: str, path: Path, text: str) -> None:
    from reroute_spec import RerouteError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise RerouteError(option, f"{path} cannot be written ({error})", "give a writable path") from None
