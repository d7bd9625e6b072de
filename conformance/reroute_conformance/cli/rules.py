"""Defines ``vlm-reroute rules``, which lists or checks the rules of the text, and ``vlm-reroute explain``, which shows one."""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..coverage.traceability import Audit, Trace

_Json = Annotated[bool, typer.Option("--json", help="Print data for machines instead of text.")]


def rules(
    check: Annotated[
        bool,
        typer.Option("--check", help="Fail where a MUST rule is kept by nothing and that is not planned."),
    ] = False,
    as_json: _Json = False,
) -> None:
    """List the rules, or check that text, reference, checks and mutants keep every one of them."""
    from ..coverage.traceability import audit

    result = audit()
    if as_json:
        entries = [_data(trace, result) for trace in result.traces.values()]
        typer.echo(
            json.dumps(
                {"counts": result.counts, "faults": list(result.faults), "rules": entries}, ensure_ascii=False
            )
        )
    elif check:
        _print_audit(result)
    else:
        _print_list(result)
    raise typer.Exit(1 if check and result.faults else 0)


def explain(
    rule: Annotated[str, typer.Argument(help="A rule's id, such as RR-SEL-003.", show_default=False)],
    as_json: _Json = False,
) -> None:
    """Show one rule: its text and check, where the reference does it, which checks and mutants cover it."""
    from reroute_spec.rules import rule as find

    found = find(rule.strip().upper())  # refuses an unknown one before anything heavy is imported
    from ..coverage.traceability import audit

    result = audit()
    trace = result.traces[found.id]
    if as_json:
        typer.echo(json.dumps(_data(trace, result), ensure_ascii=False))
    else:
        _print_rule(trace, result)


def _status(trace: Trace, result: Audit) -> str:
    if trace.rule.strength == "MAY":
        return "free"
    if trace.rule.id in result.planned:
        return f"planned: {', '.join(sorted(result.planned[trace.rule.id][0]))}"
    return "traced" if not trace.lacks else f"lacks: {', '.join(sorted(trace.lacks))}"


def _data(trace: Trace, result: Audit) -> dict[str, Any]:
    planned = result.planned.get(trace.rule.id)
    return {
        **vars(trace.rule),
        "reference": [vars(mark) for mark in trace.reference],
        "checks": trace.check,
        "mutants": trace.mutant,
        "planned": None if planned is None else {"parts": sorted(planned[0]), "until": planned[1]},
    }


def _print_list(result: Audit) -> None:
    for chapter, traces in groupby(result.traces.values(), key=lambda trace: trace.rule.chapter):
        typer.secho(f"spec/{chapter}", bold=True)
        for trace in traces:
            rule = trace.rule
            status = _status(trace, result)
            typer.echo(f"{rule.id:<12}  {rule.strength:<4}  {rule.kind:<9}  {status:<34}  {rule.title}")
        typer.echo()
    typer.echo(_counted(result))


def _print_audit(result: Audit) -> None:
    from ..reporting.console import new_console

    console = new_console()
    waiting: dict[str, list[str]] = {}
    for rule_id, (parts, until) in result.planned.items():
        waiting.setdefault(until, []).append(f"{rule_id} ({', '.join(sorted(parts))})")
    for until, entries in waiting.items():
        console.print(f"planned, until {until}:", style="yellow")
        for entry in entries:
            console.print(f"  {entry}", markup=False)
    for fault in result.faults:
        console.print(f"fault: {fault}", markup=False, style="red")
    if not result.text:
        console.print("The chapters are not part of an installation: rules.json was not compared with them.")
    console.print(_counted(result), markup=False, style="bold")


def _counted(result: Audit) -> str:
    counts = result.counts
    return (
        f"{counts['rules']} rules: {counts['must']} MUST, of which {counts['traced']} traced, {counts['planned']} planned, "
        f"{counts['must'] - counts['traced'] - counts['planned']} neither; {counts['may']} MAY. Faults: {len(result.faults)}"
    )


def _print_rule(trace: Trace, result: Audit) -> None:
    rule = trace.rule
    typer.secho(f"{rule.id}  {rule.title}", bold=True)
    typer.echo(
        f"{rule.strength} · {rule.kind} · since {rule.since} · spec/{rule.chapter} · {_status(trace, result)}\n"
    )
    for name, text in (("", rule.statement), ("Example: ", rule.example), ("Source: ", rule.source)):
        if text:
            typer.echo(_wrapped(name + text) + "\n")
    if rule.check:
        typer.echo(f"Check (names are defined in spec/README.md):\n{_wrapped(rule.check, '    ')}\n")
    for title, entries in (
        ("Reference", [f"{mark.package}/{mark.path}:{mark.line}  {mark.code}" for mark in trace.reference]),
        ("Checks that exercise it", trace.check),
        (
            "Mutants that break it",
            [f"{name}  (vlm-reroute conform --target mutant:{name})" for name in trace.mutant],
        ),
    ):
        typer.echo(f"{title}:")
        typer.echo("\n".join(f"    {entry}" for entry in entries) or "    none")
    if rule.id in result.planned:
        parts, until = result.planned[rule.id]
        typer.echo(f"Planned: {', '.join(sorted(parts))}, until {until}")


def _wrapped(text: str, indent: str = "") -> str:
    """Paragraphs at 100 columns; lines of tables and lists as they are."""
    from textwrap import fill

    return "\n".join(
        line
        if line.startswith(("|", "- "))
        else fill(line, 100, initial_indent=indent, subsequent_indent=indent)
        for line in text.splitlines()
    )
