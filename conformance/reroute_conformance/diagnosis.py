"""Which rule wrong values broke. Many rules bear on one score; where the target's values are just those of a known
misreading of the text, the rule that was misread is named. Only wrong values get here: what is right is never blamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from reroute_reference import forced_logits, run
from reroute_reference.inputs import read_prompts
from reroute_reference.model import RoutedOutput, as_decoder
from reroute_reference.routing import score
from reroute_spec import RerouteError, Stage
from torch import Tensor

from .misreadings import Misreading, misreadings_of
from .tolerance import Measured, close

if TYPE_CHECKING:
    from .requests import RequestJudge

_ARGUMENTS = ("decoder", "request", "schedule", "layer", "hidden", "cos", "sin", "alive", "pool")
_Given = Mapping[str, Any]


def _candidates_only(given: _Given) -> dict[str, Any]:
    rows = {given["request"].visual_rows[ordinal] for ordinal in given["pool"]}
    return {"alive": [row for row in given["alive"] if row in rows or row == given["alive"][-1]]}


def _text_and_candidates(given: _Given) -> dict[str, Any]:
    others = {row for v, row in enumerate(given["request"].visual_rows) if v not in set(given["pool"])}
    return {"alive": [row for row in given["alive"] if row not in others]}


def _without_deferred(given: _Given) -> dict[str, Any]:
    return {"alive": [row for row in given["alive"] if row not in given["deferred"]]}


def _other_heads(given: _Given) -> dict[str, Any]:
    rule = given["schedule"].score
    return {
        "schedule": replace(
            given["schedule"], score=replace(rule, heads="max" if rule.heads == "mean" else "mean")
        )
    }


def _last_alone(given: _Given) -> dict[str, Any]:
    return {"schedule": replace(given["schedule"], score=replace(given["schedule"].score, query="last", n=1))}


MISREADINGS: tuple[tuple[str, str, Callable[[_Given], dict[str, Any]]], ...] = (
    ("RR-SCORE-002", "of a softmax over the candidates and the asking row alone", _candidates_only),
    ("RR-SCORE-002", "of a softmax over text and candidates", _text_and_candidates),
    ("RR-SCORE-002", "of a softmax without the deferred rows", _without_deferred),
    (
        "RR-SCORE-008",
        "of rows that were deferred taken back to their embeddings",
        lambda given: {"hidden": given["refreshed"]},
    ),
    (
        "RR-SCORE-009",
        "that the row before the last one asks for",
        lambda given: {"alive": given["alive"][:-1]},
    ),
    ("RR-SCORE-004", "of another reduction over heads", _other_heads),
    ("RR-SCORE-004", "of the last row alone", _last_alone),
)
"""Rule, what it is taken for, and the arguments of the reference's score that it changes."""


def score_rule(judge: RequestJudge, stage: Stage, scores: Measured) -> tuple[str, str]:
    """The rule that wrong scores broke, and how that can be told, in words."""
    if scores.actual.shape == scores.oracle.shape:
        for rule, reading, values in _readings(judge, stage):
            noise = scores.plain - scores.oracle  # as large an error as the plain run's is no other reading
            if values.isfinite().all() and close(Measured(scores.actual, values + noise, values)):
                return rule, f"these are the scores {reading}; "
        # what float16 rounding could do is a matter of precision; more is another formula
        if bool((scores.actual - scores.oracle).abs().max() <= 1e-2 * scores.oracle.max()):
            return "RR-SCORE-003", ""
    return "RR-SCORE-001", ""


def _readings(judge: RequestJudge, stage: Stage) -> Iterator[tuple[str, str, Tensor]]:
    """Scores of the decision under every misreading, in float64."""
    decoder = as_decoder(judge.models[1], None)
    prompt = read_prompts(decoder, judge.case.inputs())[judge.b]
    records = judge.outputs[1].traces[judge.b].decisions
    before: Sequence[int] = (
        records[stage.index - 2].selected if stage.index > 1 else range(judge.request.num_visual)
    )
    kept = {judge.request.visual_rows[ordinal] for ordinal in before}
    alive = [
        row
        for row in range(judge.request.num_rows)
        if row in kept or row not in judge.request.visual_rows or not judge.deleting
    ]
    hidden = prompt.embeddings.clone()
    hidden[alive] = judge.outputs[1].residuals[judge.b][stage.first]
    refreshed = hidden.clone()
    deferred = [row for row in alive if row in judge.request.visual_rows and row not in kept]
    refreshed[deferred] = prompt.embeddings[deferred]
    cos, sin = decoder.rotary(prompt.positions)
    values = (
        decoder,
        judge.request,
        judge.case.routing(),
        stage.first,
        hidden,
        cos,
        sin,
        alive,
        records[stage.index - 1].pool,
    )
    given = {**dict(zip(_ARGUMENTS, values, strict=True)), "refreshed": refreshed, "deferred": set(deferred)}
    for rule, reading, change in MISREADINGS:
        changed = {**given, **change(given)}
        if len(changed["alive"]) and all(
            judge.request.visual_rows[v] in changed["alive"] for v in changed["pool"]
        ):
            yield (
                rule,
                reading,
                torch.tensor(score(**{name: changed[name] for name in _ARGUMENTS}), dtype=torch.float64),
            )
    if stage.index > 1 and set(records[stage.index - 1].pool) <= set(records[stage.index - 2].pool):
        earlier = dict(zip(records[stage.index - 2].pool, records[stage.index - 2].scores, strict=True))
        stale = [earlier[ordinal] for ordinal in records[stage.index - 1].pool]
        yield "RR-SCORE-008", "of the decision before", torch.tensor(stale, dtype=torch.float64)


def misread_runs(judge: RequestJudge) -> list[tuple[Misreading, RoutedOutput]]:
    """The oracle's run of a case under every misreading that its model allows; none of a later turn."""
    model, runs = judge.models[1], []
    replay = [[record.selected for record in trace.decisions] for trace in judge.outputs[1].traces]
    for reading in [] if any(judge.earlier) else misreadings_of(as_decoder(model, None)):
        with ExitStack() as stack, suppress(RerouteError):  # of values that are no numbers any more
            reading.put(stack)
            output = run(model, judge.case.inputs(), judge.case.routing(), decisions=replay)
            runs.append((reading, output))
    return runs


def family_rule(
    judge: RequestJudge, x: Measured, of: Callable[[RoutedOutput], Tensor]
) -> tuple[str, str] | None:
    """The rule about a model family that was misread, where a wrong quantity is just that; ``of`` takes it from a run."""
    for reading, output in judge.misread:
        values = of(output).double()
        if values.shape == x.actual.shape == x.oracle.shape and bool(values.isfinite().all()):
            noise = x.plain.double() - x.oracle
            if close(Measured(x.actual, values + noise, values)):
                return reading.rule, f"these are the values {reading.words}; "
    return None


def key_rule(keys: Measured) -> tuple[str, str] | None:
    """The rule that wrong keys of a block broke, where they are the right ones in another order."""
    if keys.actual.shape != keys.oracle.shape:
        return None
    actual, oracle = (x.double().transpose(0, 1).flatten(1) for x in (keys.actual, keys.oracle))
    order = torch.cdist(oracle, actual).argmin(dim=1)
    if len(set(order.tolist())) == len(order) and close(replace(keys, actual=keys.actual[:, order])):
        return "RR-BLOCK-003", "these are the keys of the active rows in another order; "
    return None


def decode_rule(judge: RequestJudge, tokens: Tensor, logits: Measured) -> tuple[str, str]:
    """The rule that wrong logits of decoded tokens broke, and how that can be told."""
    if logits.actual.shape != logits.oracle.shape:
        return "RR-KV-002", ""
    model = judge.models[1]
    replay = [[record.selected for record in trace.decisions] for trace in judge.outputs[1].traces]
    cache = run(model, judge.case.inputs(), judge.case.routing(), decisions=replay).cache[judge.b]
    cache.next_position = cache.rows(judge.request.num_layers - 1)
    values = forced_logits(model, cache, tokens)
    if close(Measured(logits.actual, values + (logits.plain - logits.oracle), values)):
        return (
            "RR-KV-004",
            "these are the logits of positions that continue from the last block's cached rows; ",
        )
    return "RR-KV-002", ""
