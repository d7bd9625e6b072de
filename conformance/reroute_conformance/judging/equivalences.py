"""Judges runs that must have something in common: the same run twice, ``reroute`` beside ``delete``, all rows kept.

It judges that the same inputs give the same bits (RR-NUM-004), that decisions which keep all rows give the unrouted
model (RR-EQV-002), that an unrouted run is as precise as a plain one (RR-NUM-001), that one decision is the same under
both actions (RR-EQV-003), the counterexample in which the actions decide differently (RR-EQV-006), and that rows before
the first visual row are those of the unrouted model (RR-EQV-007).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from reroute_reference import run as run_reference
from reroute_spec import RerouteError, Schedule

from ..cases.decoder import DecoderCase, GivenCase
from ..protocol import Target
from ..targets.answers import Answer, read_answers
from ..verdicts.tolerance import Measured, close, describe, first_bits, given, same
from ..verdicts.verdict import Verdict, Violation
from .routed_batch import judge, read_case


def judge_repeat(case: DecoderCase, target: Target) -> Verdict:
    """Run the same inputs twice and require the same bits (RR-NUM-004)."""
    verdict, (first, second) = Verdict(), (_answers(case, target) for _ in range(2))
    for b, (one, two) in enumerate(zip(first, second, strict=True)):
        after = _outputs(two)
        for name, before in _outputs(one).items():
            verdict.require(
                "RR-NUM-004",
                f"request {b}, {name}, run twice",
                partial(first_bits, after[name], before),
                request=b,
                same=same,
                first=before,
                second=after[name],
            )
    return verdict


def _outputs(answer: Answer) -> dict[str, torch.Tensor]:
    """Everything that a run returned, by name."""
    return {
        **{
            f"scores of decision {r.stage}": torch.tensor(r.scores, dtype=torch.float64)
            for r in answer.trace.decisions
        },
        **{f"residuals at {layer}": x for layer, x in answer.residuals.items()},
        **{f"keys of block {layer}": x for layer, x in enumerate(answer.keys)},
        **{f"values of block {layer}": x for layer, x in enumerate(answer.values)},
        "logits": answer.logits,
    }


def judge_kept(case: DecoderCase, target: Target) -> Verdict:
    """Require the logits and cached rows of the unrouted model where decisions keep everything (RR-EQV-002)."""
    verdict, unrouted = Verdict(), replace(case, schedule={"action": "reroute", "decisions": []})
    answer, rows = _answers(case, target)[0], read_case(case)[1][0].num_rows
    computed = (
        run_reference(case.reference_model(dtype), case.inputs(), unrouted.routing()).logits[0]
        for dtype in (torch.float32, torch.float64)
    )
    logits = Measured(answer.logits, *computed)
    verdict.require(
        "RR-EQV-002",
        "request 0, logits [row, vocabulary]",
        lambda: f"every decision keeps all candidates; {describe(logits)}",
        close=close,
        logits=logits,
        kv_rows=[keys.shape[1] for keys in answer.keys],
        unrouted_rows=[rows] * len(answer.keys),
    )
    return verdict


def judge_precision(case: DecoderCase, target: Target) -> Verdict:
    """Require that every value of an unrouted run is as near the oracle's as a plain run's (RR-NUM-001).

    Nothing but the arithmetic of the target is judged here.
    """
    verdict, answer = Verdict(), _answers(case, target)[0]
    plain, oracle = (
        run_reference(case.reference_model(dtype), case.inputs(), case.routing())
        for dtype in (torch.float32, torch.float64)
    )
    last = len(answer.keys)
    for name, x in (
        (
            "residual stream",
            Measured(answer.residuals[last], plain.residuals[0][last], oracle.residuals[0][last]),
        ),
        ("logits", Measured(answer.logits, plain.logits[0], oracle.logits[0])),
    ):
        if x.actual.shape == x.oracle.shape:  # another shape is another rule's
            verdict.require("RR-NUM-001", f"request 0, {name}", partial(describe, x), **given(x))
    return verdict


def judge_one_decision(case: DecoderCase, target: Target) -> Verdict:
    """Run one decision as `reroute` and as `delete`, and require the same rows and logits (RR-EQV-003).

    The logits that have to agree are those of the rows that run.
    """
    verdict = Verdict()
    deleting = replace(case, schedule={**case.schedule, "action": "delete"})
    rerouted, deleted = _answers(case, target)[0], _answers(deleting, target)[0]
    request = read_case(case)[1][0]
    choices = [[list(record.selected) for record in answer.trace.decisions] for answer in (rerouted, deleted)]
    kept = {request.visual_rows[ordinal] for selected in choices[0] for ordinal in selected}
    active = [row for row in range(request.num_rows) if row in kept or row not in request.visual_rows]
    try:
        computed = [
            run_reference(
                case.reference_model(dtype), case.inputs(), case.routing(), decisions=[choices[0]]
            ).logits[0][active]
            for dtype in (torch.float32, torch.float64)
        ]
    except RerouteError as refusal:  # nothing can run what is no choice
        what = f"`reroute` selects what is no selection: {refusal}"
        verdict.violations.append(Violation("RR-EQV-003", "one decision", what))
        return verdict
    logits = Measured(deleted.logits, *computed)
    verdict.require(
        "RR-EQV-003",
        "one decision, logits of the active rows [row, vocabulary]",
        lambda: f"`reroute` selects {choices[0]}, `delete` {choices[1]}; {describe(logits)}",
        counts=bool(choices[0]),
        close=close,
        selected_reroute=choices[0],
        selected_delete=choices[1],
        logits=logits,
    )
    return verdict


def judge_counterexample(case: GivenCase, target: Target) -> Verdict:
    """Judge the counterexample, where the actions decide differently though no row re-enters (RR-EQV-006)."""
    verdict, action = judge(case, target), case.routing().action
    selected = tuple(list(record.selected) for record in _answers(case, target)[0].trace.decisions)
    detail = f"`{action}` selects {selected} in the counterexample"
    if not verdict.require("RR-EQV-006", "the counterexample", detail, action=action, selected=selected):
        verdict.violations.insert(0, verdict.violations.pop())  # this is the one to act on
    return verdict


def judge_before_images(case: DecoderCase, target: Target) -> Verdict:
    """Require that rows before the first visual row are those of the unrouted model, at every block (RR-EQV-007)."""
    verdict, answer = Verdict(), _answers(case, target)[0]
    request = read_case(case)[1][0]
    if not request.num_visual:
        return verdict
    first = request.visual_rows[0]
    kept = [{"layer": decision.layer, "keep": "1"} for decision in case.routing().decisions]
    unrouted = Schedule.from_dict({"action": "reroute", "decisions": kept})
    outputs = [
        run_reference(case.reference_model(dtype), case.inputs(), unrouted)
        for dtype in (torch.float32, torch.float64)
    ]
    shown = {"keys": answer.keys, "values": answer.values}
    for layer in range(request.num_layers):
        held = [output.cache[0].keys_values(layer) for output in outputs]
        after = min(stage.last + 1 for stage in request.stages if stage.last >= layer)
        residual = Measured(
            answer.residuals[after][:first], *(output.residuals[0][after][:first] for output in outputs)
        )
        for part, name in enumerate(shown):
            x = Measured(shown[name][layer][:, :first], *(entry[part][:, :first] for entry in held))
            verdict.require(
                "RR-EQV-007",
                f"the first {first} rows, {name} of block {layer} and the residual stream after its stage",
                partial(describe, residual if close(x) else x),
                close=close,
                keys_before_images=x,
                residual_before_images=residual,
            )
    return verdict


def _answers(case: DecoderCase, target: Target) -> list[Answer]:
    """A run of the target, its form checked."""
    return read_answers(
        target.run(case.model(), case.inputs(), case.routing()), read_case(case)[1], decoded=False
    )
