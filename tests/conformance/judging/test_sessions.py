"""Sessions: what a target shows after every operation is looked at, whatever it is."""

import json
from collections import Counter

import pytest
import torch
from reroute_conformance.cases.case import Row, load_case
from reroute_conformance.cases.decoder import DecoderCase, decoder_config
from reroute_conformance.cases.sessions import SessionCase
from reroute_conformance.checks import checks
from reroute_conformance.judging.sessions import judge_session
from reroute_conformance.mutants import mutant
from reroute_conformance.running.results import Report
from reroute_conformance.running.runner import replay_case, run_check, save_failures
from reroute_conformance.targets import ReferenceTarget
from reroute_conformance.targets.answers import MalformedError
from reroute_spec import RerouteError

BASE = DecoderCase(
    {"action": "reroute", "decisions": [{"layer": 1, "keep": 1}]},
    [],
    config=decoder_config(2, heads=2, kv_heads=2),
).to_dict()
PREFILL = {"op": "prefill", "rows": [vars(Row("tvvt", 1)), vars(Row("tvt", 2, 1))]}
TEXT = {"op": "turn", "rows": [vars(Row("tt", 3)), vars(Row("tt", 4))]}
IMAGES = {"op": "turn", "rows": [vars(Row("vvt", 5)), vars(Row("ttt", 6))]}
DECODE = {"op": "decode", "seed": 1, "requests": 2}


def session(*operations):
    return SessionCase(BASE, list(operations))


class Showing(ReferenceTarget):
    """The reference, whose steps ``change`` alters."""

    def __init__(self, change):
        self.change = change

    def session(self, *given):
        shown = super().session(*given)
        return self.change(shown) or shown


def rules_broken(case, change=lambda shown: None):
    return [violation.rule for violation in judge_session(case, Showing(change)).violations]


@pytest.mark.parametrize(
    "operations",
    [
        [PREFILL],
        [PREFILL, TEXT, DECODE],
        [PREFILL, IMAGES, {"op": "crop", "rows": 0}, DECODE],
        [PREFILL, DECODE, {"op": "crop", "rows": 1}, DECODE],
        [PREFILL, DECODE, {"op": "crop", "rows": 2}, DECODE],
        [PREFILL, DECODE, {"op": "crop", "rows": -1}, DECODE],
        [PREFILL, {"op": "reorder", "order": [1, 0]}, TEXT],
        [PREFILL, {"op": "select", "order": [1]}, PREFILL, IMAGES, TEXT],
        [PREFILL, {"op": "repeat", "times": 2}, {"op": "decode", "seed": 1, "requests": 4}],
    ],
    ids=lambda operations: "-".join(operation["op"] for operation in operations),
)
def test_the_reference_passes(operations):
    assert rules_broken(session(*operations)) == []


def test_a_session_survives_json():
    case = session(PREFILL, IMAGES, DECODE)
    again = load_case(json.loads(json.dumps(case.to_dict())))
    assert again == case
    assert again.digest() == case.digest()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda shown: shown[:-1], "expected one entry for each of 2"),
        (lambda shown: [shown[0], None], "expected 2 requests"),
        (lambda shown: [shown[0], shown[1][:1]], "expected 2 requests"),
        (lambda shown: [shown[0], [7, 7]], "request 0 is a int"),
        (lambda shown: shown[1][0].update(length="four"), "length is 'four'"),
        (lambda shown: shown[1][0].update(keys=shown[1][0]["keys"][:1]), "keys is not a list of 2"),
        (lambda shown: shown[1][1].update(logits=torch.zeros(3)), "logits is torch.float32 [3]"),
        (lambda shown: shown[0][0].update(residuals=None), "residuals is a NoneType"),
    ],
)
def test_another_form_is_malformed(change, words):
    def altered(shown):
        result = change(shown)
        return result if isinstance(result, list) and len(result) != 0 else None

    with pytest.raises(MalformedError, match=words.replace("[", r"\[").replace("]", r"\]")):
        judge_session(session(PREFILL, DECODE), Showing(altered))


@pytest.mark.parametrize(
    ("operations", "change", "rule"),
    [
        ([PREFILL, TEXT], lambda shown: [shown[0], RuntimeError("no")], "RR-ERR-003"),
        ([PREFILL, DECODE, {"op": "crop", "rows": 1}], lambda shown: [*shown[:2], RuntimeError("no")], "RR-KV-009"),
        ([PREFILL, {"op": "crop", "rows": 1}], lambda shown: [shown[0], RuntimeError("no field")], "RR-ERR-001"),
        ([PREFILL, {"op": "crop", "rows": 1}], lambda shown: [shown[0], shown[0]], "RR-KV-009"),
        ([PREFILL, DECODE], lambda shown: shown[1][1].update(length=9), "RR-KV-003"),
        ([PREFILL, DECODE], lambda shown: shown[1][1].update(logits=shown[1][1]["logits"] * 1.01), "RR-KV-002"),
        ([PREFILL, TEXT], lambda shown: shown[1][0].update(logits=shown[1][0]["logits"] * 1.01), "RR-KV-005"),
        ([PREFILL, IMAGES], lambda shown: shown[1][0].update(logits=shown[1][0]["logits"] * 1.01), "RR-BLOCK-004"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(operations, change, rule):
    def altered(shown):
        result = change(shown)
        return result if isinstance(result, list) else None

    assert rules_broken(session(*operations), altered)[:1] == [rule]


def test_a_negative_crop_is_refused():
    operations = [PREFILL, DECODE, {"op": "crop", "rows": -1}]

    def accepted(shown):
        shown[2] = shown[1]

    assert rules_broken(session(*operations)) == []
    assert rules_broken(session(*operations), accepted) == ["RR-KV-009"]


def test_a_refused_operation_changes_nothing():
    class Forgetful(ReferenceTarget):
        def opened(self, model, schedule):
            opened = super().opened(model, schedule)
            step = opened.step

            def stepping(operation, decisions=None):
                try:
                    return step(operation, decisions)
                except RerouteError:
                    opened.caches = [cache.copy() for cache in opened.caches]
                    for cache in opened.caches:
                        cache.next_position += 1
                    raise

            opened.step = stepping
            return opened

    case = session(PREFILL, {"op": "crop", "rows": 1}, DECODE)
    assert [violation.rule for violation in judge_session(case, Forgetful()).violations][:1] == ["RR-KV-004"]


def test_the_machine_draws_every_operation_and_long_sessions():
    check = next(check for check in checks() if check.name == "session")
    drawn, lengths = Counter(), []

    class Noting(ReferenceTarget):
        def session(self, model, schedule, operations):
            drawn.update(operation["op"] for operation in operations)
            lengths.append(len(operations))
            return super().session(model, schedule, operations)

    assert run_check(check, Noting()).failure is None
    assert drawn.keys() == {"prefill", "turn", "decode", "crop", "reorder", "select", "repeat"}
    assert min(drawn.values()) >= 10
    assert sum(length >= 5 for length in lengths) >= 20


def test_a_session_that_fails_is_saved_with_its_operations_and_replays(tmp_path):
    name, check = "crop-past-the-routed-turn", next(check for check in checks() if check.name == "session")
    report = Report(name, ("session",), [run_check(check, mutant(name))])
    save_failures(report, f"mutant:{name}", tmp_path)
    folder = report.failures[0].path
    data = json.loads((folder / "case.json").read_text())
    assert data["kind"] == "session"
    assert "crop" in [operation["op"] for operation in data["inputs"]["operations"]]
    assert (folder / "tensors.safetensors").is_file()
    assert {violation.rule for violation in replay_case(folder, mutant(name)).violations} == {"RR-KV-009"}
    assert replay_case(folder, ReferenceTarget()).violations == []
