"""Names the rule that wrong values broke, by comparing them with the values that known misreadings of the rules give.

Many rules bear on one score. Where the target's values are just those of a known misreading of the text, the rule that
was misread is named. Only wrong values are diagnosed, so that what is right is never blamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from reroute_reference import CanonicalDecoder, forced_logits, run
from reroute_reference.inputs import Prompt, read_prompts
from reroute_reference.model import RoutedOutput, as_decoder
from reroute_reference.routing import renumbered, score
from reroute_spec import Stage
from torch import Tensor

from .compared import Compared
from .tolerance import LOW_PRECISION, Measured, close

_ARGUMENTS = ("decoder", "request", "schedule", "layer", "hidden", "cos", "sin", "alive", "pool")
_Given = Mapping[str, Any]
_Misreading = tuple[str, str, Callable[[_Given], dict[str, Any]]]


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


SCORE_MISREADINGS: tuple[_Misreading, ...] = (
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
"""Every misreading with its rule, what the scores then are, and the arguments of the reference's score that it changes."""


def score_rule(compared: Compared, stage: Stage, scores: Measured) -> tuple[str, str]:
    """The rule that wrong scores broke, and how that can be told, in words."""
    if scores.actual.shape == scores.oracle.shape:
        if compared.case.precision in LOW_PRECISION and _narrow(compared, stage, scores):
            return "RR-SCORE-003", "these are the scores of a softmax in the model's dtype; "
        for rule, reading, values in _readings(compared, stage):
            noise = scores.plain - scores.oracle  # as large an error as the plain run's is no other reading
            if values.isfinite().all() and close(
                Measured(scores.actual, values + noise, values, precision=compared.case.precision)
            ):
                return rule, f"these are the scores {reading}; "
        # what float16 rounding could do is a matter of precision; more is another formula
        if bool((scores.actual - scores.oracle).abs().max() <= 1e-2 * scores.oracle.max()):
            return "RR-SCORE-003", ""
    return "RR-SCORE-001" if compared.case.routing().score.source == "own" else "RR-SCORE-007", ""


def _narrow(compared: Compared, stage: Stage, scores: Measured) -> bool:
    """Whether scores are those of logits and a softmax in the model's dtype, which no tolerance could tell from others."""
    given = _given(compared, stage, 0)
    rule, decoder, alive = given["schedule"].score, given["decoder"], given["alive"]
    query, keys = decoder.query_key(
        given["layer"], given["hidden"][alive], given["cos"][alive], given["sin"][alive]
    )
    keys = keys.repeat_interleave(len(query) // len(keys), dim=0)
    logits = query[:, -1:] @ keys.mT * decoder.scaling(given["layer"])
    heads = logits.softmax(dim=-1)[:, 0]
    reduced = heads.amax(0) if rule.heads == "max" else heads.mean(0)
    places = [alive.index(compared.request.visual_rows[ordinal]) for ordinal in given["pool"]]
    return torch.allclose(scores.actual, reduced[places].double(), rtol=4 * scores.epsilon, atol=0)


def _given(compared: Compared, stage: Stage, which: int) -> dict[str, Any]:
    """The arguments of a decision's score in the block's own terms, in the dtype (0) or in float64 (1)."""
    decoder, output = as_decoder(compared.models[which], None), compared.outputs[which]
    prompt = read_prompts(decoder, compared.case.inputs())[compared.b]
    records = output.traces[compared.b].decisions
    before: Sequence[int] = (
        records[stage.index - 2].selected if stage.index > 1 else range(compared.request.num_visual)
    )
    kept = {compared.request.visual_rows[ordinal] for ordinal in before}
    alive = [
        row
        for row in range(compared.request.num_rows)
        if row in kept or row not in compared.request.visual_rows or not compared.deleting
    ]
    hidden = prompt.embeddings.clone()
    hidden[alive] = output.residuals[compared.b][stage.first]
    refreshed = hidden.clone()
    deferred = [row for row in alive if row in compared.request.visual_rows and row not in kept]
    refreshed[deferred] = prompt.embeddings[deferred]
    positions = renumbered(prompt.positions, alive, 0) if compared.renumbering else prompt.positions
    cos, sin = decoder.rotary(positions)
    pool, schedule = records[stage.index - 1].pool, compared.case.routing()
    values = (decoder, compared.request, schedule, stage.first, hidden, cos, sin, alive, pool)
    rest = {"refreshed": refreshed, "deferred": set(deferred), "prompt": prompt}
    return {**dict(zip(_ARGUMENTS, values, strict=True)), **rest}


def _readings(compared: Compared, stage: Stage) -> Iterator[tuple[str, str, Tensor]]:
    """Scores of the decision under every misreading, in float64."""
    given = _given(compared, stage, 1)
    decoder, prompt = given["decoder"], given["prompt"]
    records = compared.outputs[1].traces[compared.b].decisions
    misreadings = SCORE_MISREADINGS
    if compared.renumbering:
        at_prompt = dict(zip(("cos", "sin"), decoder.rotary(prompt.positions), strict=True))
        misreadings = (("RR-BLOCK-009", "at the unrouted positions", lambda _: at_prompt), *misreadings)
    if decoder.mrope and isinstance(decoder, CanonicalDecoder):
        misreadings = (*_other_coordinates(decoder, prompt.positions), *misreadings)
    if compared.case.routing().score.source == "previous":
        own, before = given, _of_block_before(compared, stage, prompt, given)
        given = {**given, **before}
        misreadings = (*_previous_misread(own, before), *misreadings)
    for rule, reading, change in misreadings:
        changed = {**given, **change(given)}
        if len(changed["alive"]) and all(
            compared.request.visual_rows[v] in changed["alive"] for v in changed["pool"]
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


def _other_coordinates(decoder: CanonicalDecoder, positions: Tensor) -> Iterator[_Misreading]:
    """Rotary angles of other coordinates than the configuration says, in the form of :data:`SCORE_MISREADINGS`."""
    config = decoder.config
    turned = {"mrope_interleaved": not config.mrope_interleaved}
    alone = {"mrope_section": (config.shape.head_dim // 2, 0, 0), "mrope_interleaved": False}
    for reading, change in (
        ("with sections taken the other way", turned),
        ("at positions of time alone", alone),
    ):
        other: Any = replace(config, **change)
        cos, sin = CanonicalDecoder(other, decoder.weights).rotary(positions)
        yield "RR-BLOCK-012", reading, partial(dict, cos=cos, sin=sin)  # of what is given, with other tables


def _of_block_before(compared: Compared, stage: Stage, prompt: Prompt, own: _Given) -> dict[str, Any]:
    """Block, input and rows of a score of source `previous`: what a decoder that ends before that block leaves."""
    block, whole = stage.first - 1, compared.models[1]
    ran = [row for row in own["alive"] if row not in own["deferred"]]
    if block == 0 or not isinstance(whole, CanonicalDecoder):
        return {"layer": block, "hidden": prompt.embeddings, "alive": ran}
    config = replace(whole.config, shape=replace(whole.config.shape, num_layers=block))
    shorter = CanonicalDecoder(config, {name: whole.weights[name] for name in config.weight_shapes()})
    schedule = compared.case.routing()
    schedule = replace(schedule, decisions=tuple(d for d in schedule.decisions if d.layer < block))
    made = compared.outputs[1].traces
    replay = [[r.selected for r in trace.decisions[: len(schedule.decisions)]] for trace in made]
    output = run(shorter, compared.case.inputs(), schedule, decisions=replay)
    hidden, rows = prompt.embeddings.clone(), list(range(compared.request.num_rows))
    if compared.deleting and output.traces[compared.b].decisions:
        removed = output.traces[compared.b].decisions[-1].deferred
        rows = sorted(set(rows) - {compared.request.visual_rows[ordinal] for ordinal in removed})
    hidden[rows] = output.residuals[compared.b][block]
    return {"layer": block, "hidden": hidden, "alive": ran}


def _previous_misread(own: _Given, before: _Given) -> tuple[_Misreading, ...]:
    """What a score of source `previous` may be taken for, in the form of :data:`SCORE_MISREADINGS`."""
    rule, everyone = "RR-SCORE-007", list(range(len(own["hidden"])))
    return (
        (rule, "of the deciding block's own input", lambda _: dict(own)),
        (rule, "of the block before on what it gave", lambda _: {"hidden": own["hidden"]}),
        (rule, "of the deciding block on the input of the one before", lambda _: {"layer": own["layer"]}),
        (rule, "over rows that the block before did not run", lambda _: {"alive": everyone}),
    )


def family_rule(
    compared: Compared, x: Measured, of: Callable[[RoutedOutput], Tensor]
) -> tuple[str, str] | None:
    """The rule about a model family that was misread, where a wrong quantity is just that; ``of`` takes it from a run."""
    for reading, output in compared.misread:
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


def decode_rule(compared: Compared, tokens: Tensor, logits: Measured) -> tuple[str, str]:
    """The rule that wrong logits of decoded tokens broke, and how that can be told."""
    if logits.actual.shape != logits.oracle.shape:
        return "RR-KV-002", ""
    model = compared.models[1]
    replay = [[record.selected for record in trace.decisions] for trace in compared.outputs[1].traces]
    cache = run(model, compared.case.inputs(), compared.case.routing(), decisions=replay).cache[compared.b]
    rule = "RR-BLOCK-009" if compared.renumbering else "RR-KV-004"
    for position, reading in (
        (cache.rows(compared.request.num_layers - 1), "the last block's cached rows"),
        (cache.length, "the number of rows so far"),
        (cache.next_position, "the largest position so far"),
    ):
        values = forced_logits(model, replace(cache.copy(), renumbered=False, next_position=position), tokens)
        noise = logits.plain - logits.oracle
        if close(Measured(logits.actual, values + noise, values, precision=compared.case.precision)):
            return rule, f"these are the logits of positions that continue from {reading}; "
    return "RR-KV-002", ""
