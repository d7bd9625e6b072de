"""Model families, refusals and the list of faults: cases are data, blame is precise, and whoever errs is told."""

import json
from dataclasses import replace

import pytest
import torch
from reroute_conformance.cases.case import Row, load_case
from reroute_conformance.cases.families import DECIDING, GRIDS, QwenCase
from reroute_conformance.cases.refusals import FAULTS, RefusalCase
from reroute_conformance.checks import checks
from reroute_conformance.judging.refusals import judge_refused
from reroute_conformance.judging.routed_batch import judge
from reroute_conformance.mutants import MUTANTS
from reroute_conformance.protocol import FAMILIES, families_of
from reroute_conformance.targets import ReferenceTarget, reference
from reroute_spec import RerouteError
from reroute_spec.rules import rules

QWEN = FAMILIES[1:]
LISTED = """
    keep-all, identity, remove-instead-of-defer, stale-scores-from-an-earlier-decision, row-0s-decision-for-the-whole-batch,
    unsorted-gather, deferred-rows-run-through-the-mlp, deferred-rows-norm-applied, kv-rows-for-the-full-length,
    kv-missing-a-row, higher-ordinal-wins-ties, k-rounded-instead-of-floored, ratio-of-survivors-instead-of-the-original-n,
    rope-renumbered-after-compaction, score-from-the-wrong-block, score-without-rope, sum-over-the-wrong-heads-under-gqa,
    softmax-over-visual-rows-only, non-causal-compact-attention, pad-as-a-candidate, decode-position-from-the-cache-length,
    decision-in-decode, state-leak-to-the-next-request, deferred-state-refreshed-from-embeddings,
    last-row-of-the-padded-sequence, epsilon-off-at-the-stage-boundary, nan-accepted
"""


def case(family, **changed):
    layers = [layer for layer in (1, 3, 7) if layer in DECIDING[family]]
    schedule = {"action": "reroute", "decisions": [{"layer": layer, "keep": "0.5"} for layer in layers]}
    rows = [Row("tIVtt", 3, 1, 0), Row("ttt", 5), Row("tJtLt", 8, 0, 2)]
    return replace(QwenCase(schedule=schedule, rows=rows, new_tokens=1, family=family), **changed)


def broken(family, change, **changed):
    """The first rule that a target breaks whose answers are changed after the fact."""

    class Changed(ReferenceTarget):
        def run(self, *given, **rest):
            observed = super().run(*given, **rest)
            for row in observed:
                change(row)
            return observed

    return judge(case(family, rows=[Row("tIVtt", 3)], **changed), Changed()).violations[0].rule


def test_every_fault_of_the_list_is_a_mutant_by_name():
    names = [entry.name for entry in MUTANTS]
    assert len(set(names)) == len(names)
    assert {name.strip() for name in LISTED.split(",")} <= set(names)


@pytest.mark.parametrize("given", [case("qwen3_vl"), RefusalCase("qwen3_5", "training-mode")])
def test_cases_survive_json(given):
    data = json.loads(json.dumps(given.to_dict()))
    assert load_case(data) == given
    assert load_case(data).digest() == given.digest()


@pytest.mark.parametrize("family", QWEN)
def test_a_request_is_the_same_alone_and_in_its_batch(family):
    batch, alone = case(family).inputs(), case(family).only(2, padded=False).inputs()
    rows, patches = alone["input_ids"].shape[1], len(alone["pixel_values"])
    assert batch["attention_mask"].sum(dim=1).tolist()[2] == rows
    assert torch.equal(batch["input_ids"][2, :rows], alone["input_ids"][0])
    assert torch.equal(batch["pixel_values"][-patches:], alone["pixel_values"])
    assert batch["image_grid_thw"].tolist() == [list(GRIDS[letter]) for letter in "IJL"]
    assert batch["video_grid_thw"].tolist() == [list(GRIDS["V"])]


@pytest.mark.parametrize("family", QWEN)
def test_the_reference_is_right(family):
    for action in ("reroute", "delete"):
        right = case(family, schedule={**case(family).schedule, "action": action, "scope": "image"})
        assert judge(right, reference()).violations == []


def test_rows_that_a_linear_block_caches_break_its_rule():
    def cached(row):
        row["keys"][4], row["values"][4] = row["keys"][3], row["values"][3]

    assert broken("qwen3_5", cached) == "RR-BLOCK-011"


def test_what_only_a_linear_block_can_have_got_wrong_is_blamed_on_it():
    def off(row):
        row["residuals"][3] = row["residuals"][3] * 1.01

    assert broken("qwen3_5", off) == "RR-BLOCK-011"


def test_what_only_a_gated_block_can_have_got_wrong_is_blamed_on_it():
    def off(row):
        row["residuals"][8] = row["residuals"][8] * 1.01

    assert (
        broken("qwen3_5", off, schedule={"action": "delete", "decisions": [{"layer": 7, "keep": 3}]})
        == "RR-BLOCK-013"
    )


def test_a_deferred_row_that_was_altered_is_no_matter_of_features():
    def off(row):
        deferred = [row["trace"].visual_rows[ordinal] for ordinal in row["trace"].decisions[0].deferred]
        row["residuals"][3] = row["residuals"][3].index_fill(0, torch.tensor(deferred), 0.5)

    assert broken("qwen3_vl", off) == "RR-BLOCK-001"


def test_families_are_run_of_whoever_claims_them():
    named = {check.family for check in checks() if check.profile == "hf"}
    assert named == set(FAMILIES) == set(families_of(reference()))
    assert {fault.rule for fault in FAULTS.values()} <= rules().keys()


class Refusing(ReferenceTarget):
    """Refuses as a given error says."""

    def __init__(self, error):
        self.error = error

    def run(self, model, inputs, schedule, **rest):
        try:
            return super().run(model, inputs, schedule, **rest)
        except RerouteError:
            raise self.error from None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no"), "names field ''"),
        (RerouteError("scope", "is wrong", "mend it"), "names field 'scope', expected"),
        (RerouteError("attention_mask", "is wrong", ""), "and remedy ''"),
    ],
)
def test_a_refusal_names_its_field_and_what_would_be_right(error, words):
    found = judge_refused(RefusalCase("llava", "no-real-row"), Refusing(error)).violations
    assert [violation.rule for violation in found] == ["RR-ERR-001"]
    assert words in found[0].detail


def test_a_request_after_a_refusal_is_served_as_any_other():
    class Sulking(ReferenceTarget):
        refused = None

        def run(self, model, inputs, schedule, **rest):
            try:
                observed = super().run(model, inputs, schedule, **rest)
            except RerouteError:
                self.refused = model
                raise
            for row in observed if model is self.refused else ():
                row["logits"] = row["logits"] * 1.01
            return observed

    found = judge_refused(RefusalCase("llava", "no-real-row"), Sulking()).violations
    assert found[0].rule == "RR-ERR-001"
    assert "on a fresh model the same request is right" in found[0].detail


def test_labels_that_are_refused_where_they_may_stand():
    class NoLabels(ReferenceTarget):
        def run(self, model, inputs, schedule, **rest):
            if "labels" in inputs:
                raise RerouteError("labels", "are given", "leave them out")
            return super().run(model, inputs, schedule, **rest)

    from reroute_conformance.running.runner import run_check

    check = next(check for check in checks() if check.name == "llava-refusals")
    labelled = replace(check, cases=(RefusalCase("llava", "labels-under-reroute"),))
    assert run_check(labelled, NoLabels()).failure.violation.rule == "RR-ERR-003"
