"""Vectors: their form, that they are made again bit for bit, that they kill, and that failures become some that replay."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reroute_conformance.checks import checks
from reroute_conformance.mutants import MUTANTS, mutant
from reroute_conformance.running.results import Report
from reroute_conformance.running.runner import replay_case, run_check, save_failures
from reroute_conformance.targets import ReferenceTarget, reference
from reroute_conformance.vectors import read_vector, vector_digest
from reroute_conformance.vectors.case import VectorCase
from reroute_conformance.vectors.files import V1, write_tensors, write_vector
from reroute_conformance.vectors.judge import judge_vector
from reroute_conformance.vectors.making import regenerate
from reroute_conformance.vectors.making.fixed_order import FixedOrder
from reroute_conformance.vectors.making.trained import TRAINED, trained_vectors
from reroute_conformance.vectors.manifest import damages, entries, profiles_of, write_manifest
from reroute_spec import SPEC_VERSION, RerouteError
from reroute_spec.rules import rules

ENTRIES = entries()
PLACES = [entry.place for entry in ENTRIES]
CHECKS = {check.name: check for check in checks()}
VECTOR_CHECKS = [check for name, check in CHECKS.items() if name.startswith("vectors-")]
NO_HAND = {
    "RR-CFG-010": "presets are asked for by name: profile presets",
    "RR-CFG-012": "presets are asked for by name: profile presets",
    "RR-CFG-013": "presets are asked for by name: profile presets",
    "RR-CFG-014": "schedules are written and read again: profile presets",
    "RR-POOL-008": "of the vision tower: profile nuwa",
    "RR-KV-003": "of later turns: profile session",
    "RR-KV-008": "of later turns: profile session",
    "RR-KV-010": "of requests that move: profile session",
    "RR-NUM-004": "of two runs, whatever their values",
    "RR-ERR-003": "of every vector",
}


@pytest.fixture(scope="module")
def made():
    return list(regenerate.made())


@pytest.fixture
def made_before(made, monkeypatch):
    """What was made once is not made again."""
    monkeypatch.setattr(regenerate, "made", lambda root: iter(made))


@pytest.fixture
def copied(tmp_path):
    return Path(shutil.copytree(V1, tmp_path / "v1"))


@pytest.mark.parametrize("entry", ENTRIES, ids=PLACES)
def test_a_vector_is_of_its_form_and_where_its_name_says(entry):
    vector = read_vector(V1 / entry.place)  # refuses what is not of the schema
    assert vector.place == entry.place
    assert vector.data["spec_version"] == SPEC_VERSION
    assert set(vector.data["rules"]) <= rules().keys()
    assert entry.profiles == profiles_of(vector)
    assert entry.oracle != "hand" or vector.data["note"]


def test_every_exact_rule_has_a_vector_by_hand():
    hand = {rule for entry in ENTRIES if entry.oracle == "hand" for rule in entry.rules}
    exact = {rule.id for rule in rules().values() if rule.kind == "exact" and rule.strength == "MUST"}
    assert exact - hand == NO_HAND.keys()


def test_every_rule_that_refuses_schedules_has_a_vector_by_hand():
    refused = {rule for e in ENTRIES if (e.kind, e.oracle) == ("config", "hand") for rule in e.rules}
    assert {f"RR-CFG-00{number}" for number in range(1, 9)} <= refused


@pytest.mark.slow
def test_all_is_made_again_bit_for_bit(made_before):
    assert regenerate.differences() == []
    assert vector_digest() == json.loads((V1 / "MANIFEST.json").read_text())["digest"]


@pytest.mark.slow
def test_a_machine_with_other_kernels_makes_the_same_bits():
    code = """
from reroute_conformance.verdicts.tolerance import same
from reroute_conformance.vectors import read_vector
from reroute_conformance.vectors.files import V1
from reroute_conformance.vectors.making.recipes import reference_vectors
from reroute_conformance.vectors.making.release import completed
from reroute_conformance.vectors.making.trained import trained_vectors
made = [*reference_vectors(), *trained_vectors(), completed(read_vector(V1 / "trace/qwen25vl-105-reroute-flat"))]
for vector in made:
    there = read_vector(V1 / vector.place).tensors
    assert there.keys() == vector.tensors.keys() and all(same(there[name], x) for name, x in vector.tensors.items())
print(len(made))
"""
    kernels = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **kernels},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 1 + sum(entry.oracle == "reference" for entry in ENTRIES)


def test_what_differs_is_found_and_named(copied, made_before):
    path = copied / "trace/one-decision/tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    text = (copied / "select/highest/case.json").read_text()
    (copied / "select/highest/case.json").write_text(text.replace('"k": 2', '"k": 1'))
    shutil.rmtree(copied / "config/a-third")
    (copied / "select/mine").mkdir()
    (copied / "select/mine/case.json").write_text(text)
    found = "\n".join(damages(copied))
    assert "trace/one-decision/tensors.safetensors was changed: its digest is not the manifest's" in found
    assert "select/highest/case.json was changed" in found
    assert "config/a-third/case.json is missing" in found
    assert "select/mine/case.json is not in the manifest" in found
    found = "\n".join(regenerate.differences(copied))
    assert "(1 elements differ)" in found
    assert "select/highest: inputs.k is 1, made again it is 2" in found
    assert "config/a-third: CASE: " in found


def test_a_manifest_written_over_a_changed_vector_does_not_hide_it(copied, made_before, made):
    vector = read_vector(copied / "route/given-decisions")
    tensors = {name: tensor.clone() for name, tensor in vector.tensors.items()}
    tensors["oracle.requests.0.logits"][2, 3] += 1e-12
    write_tensors(tensors, copied / "route/given-decisions/tensors.safetensors")
    write_manifest(made, copied)
    assert damages(copied) == []
    (line,) = regenerate.differences(copied)
    assert line.startswith("route/given-decisions: tensor oracle.requests.0.logits[2, 3] is ")


def test_what_a_damaged_given_file_makes_is_said(copied, monkeypatch):
    monkeypatch.setattr(regenerate, "made", trained_vectors)
    path = copied / TRAINED
    path.write_bytes(path.read_bytes()[:-1])
    found = "\n".join(regenerate.differences(copied))
    assert f"what rests on given files cannot be made: {TRAINED}: cannot be read" in found


def test_rewriting_changes_nothing(copied, made_before):
    assert regenerate.rewrite(copied) == len(ENTRIES)
    for path in V1.rglob("*"):
        if path.is_file():
            assert (copied / path.relative_to(V1)).read_bytes() == path.read_bytes(), path


def test_an_operation_whose_bits_are_the_machines_is_refused():
    with FixedOrder(), pytest.raises(NotImplementedError, match="tanh"):
        torch.ones(3).tanh()


def test_the_fixed_order_computes_what_the_kernels_compute():
    x = torch.linspace(-30, 30, 997, dtype=torch.float64)
    a, b = x[:900].view(30, 30), x[97:].view(30, 30)

    def values():
        return [x.exp(), x.cos(), x.sin(), a.softmax(-1), torch.nn.functional.silu(x), a.mean(-1), a.sum(0), a @ b]  # fmt: skip

    plain = values()
    with FixedOrder():
        fixed = values()
    for mine, due in zip(fixed, plain, strict=True):
        assert torch.allclose(mine, due, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("check", VECTOR_CHECKS, ids=lambda check: check.name)
def test_the_reference_agrees_with_every_vector_and_exercises_its_rules(check):
    for case in check.cases:
        verdict = judge_vector(case, reference())
        assert verdict.violations == [], case.where
        assert [rule for rule in case.vector.data["rules"] if not verdict.exercised[rule]] == [], case.where


def test_a_verdict_rests_on_what_the_vector_holds(monkeypatch):
    monkeypatch.setattr(
        "reroute_conformance.vectors.judge.run", lambda *a, **k: 1 // 0
    )  # the reference of the judge
    for check in VECTOR_CHECKS:
        assert run_check(check, reference()).failure is None


def test_the_worked_example_is_the_page(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "spec"))
    example = importlib.import_module("example")
    sys.modules.pop("example")
    _, states, decisions = example.route()
    vector = read_vector(V1 / "trace/example")

    def held(quantity):
        return vector.tensors[f"oracle.requests.0.{quantity}"].tolist()

    for layer in (1, 3, 4):
        for row, due in zip(held(f"residuals.{layer}"), states[layer], strict=True):
            assert row == pytest.approx(due, rel=1e-14)
    for layer, (scores, selected), decision in zip(
        (1, 3), decisions, vector.data["expected"]["exact"]["traces"][0]["decisions"], strict=True
    ):
        assert held(f"scores.{layer}") == pytest.approx(scores, rel=1e-14)
        assert decision["selected"] == selected


class TakesTheOther(ReferenceTarget):
    """Scores two near rows the other way round, and goes on with the one that it then selects."""

    def run(self, model, inputs, schedule, **_):
        (own,) = super().run(model, inputs, schedule)
        first, second = own["trace"].decisions
        other = {1: 2, 2: 1}
        swapped = sorted(other.get(row, row) for row in first.selected)
        (answer,) = super().run(model, inputs, schedule, decisions=[[swapped, list(second.selected)]])
        scores = [first.scores[other.get(row, row)] for row in first.pool]
        records = [replace(record, would_select=None) for record in answer["trace"].decisions]
        records[0] = replace(records[0], scores=tuple(scores), margin=first.margin)
        answer["trace"] = replace(answer["trace"], decisions=tuple(records))
        return [answer]


@pytest.mark.parametrize("target", [ReferenceTarget(), TakesTheOther()], ids=["one", "the other"])
def test_a_near_tie_may_go_either_way(target):
    verdict = judge_vector(VectorCase.of("trace/near-tie"), target)
    assert verdict.violations == []
    assert verdict.ambiguous == 1


def test_the_two_ways_of_a_near_tie_are_two():
    case = VectorCase.of("trace/near-tie")
    chosen = [
        target.run(case.model(), case.inputs(), case.routing())[0]["trace"].decisions[0].selected
        for target in (ReferenceTarget(), TakesTheOther())
    ]
    assert chosen[0] != chosen[1]


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("higher-ordinal-wins-ties", "vectors-select"),
        ("negative-zero-below-zero", "vectors-select"),
        ("float-read-as-decimal", "vectors-config"),
        ("ratio-capped", "vectors-config"),
        ("budget-in-binary-floats", "vectors-trace"),
        ("ratio-of-survivors-instead-of-the-original-n", "vectors-trace"),
        ("softmax-over-visual-rows-only", "vectors-trace"),
        ("deferred-rows-run-through-the-mlp", "vectors-route"),
        ("given-decisions-ignored", "vectors-route"),
        ("sum-over-the-wrong-heads-under-gqa", "vectors-trace-gqa"),
        ("row-0s-decision-for-the-whole-batch", "vectors-trace-batch"),
        ("pad-as-a-candidate", "vectors-trace-batch"),
        ("decode-position-from-the-cache-length", "vectors-trace-batch-cache"),
        ("mrope-of-time-alone", "vectors-trace-mrope"),
    ],
)
def test_a_mutant_dies_of_its_own_rule_on_vectors(name, check):
    entry = next(entry for entry in MUTANTS if entry.name == name)
    target, found = mutant(name), set()
    for case in CHECKS[check].cases:
        found |= {violation.rule for violation in judge_vector(case, target).violations[:1]}
    assert entry.rule in found


class SaysFieldX(ReferenceTarget):
    """Refuses what has to be refused, by another field."""

    def plan(self, schedule, num_layers, visual, images):
        try:
            return super().plan(schedule, num_layers, visual, images)
        except RerouteError as error:
            raise RerouteError("min_keep", error.problem, error.remedy) from None


def test_the_field_of_a_refusal_is_held():
    verdict = judge_vector(VectorCase.of("config/delete-from-all"), SaysFieldX())
    assert verdict.violations[0].rule == "RR-ERR-001"


SLOW_TO_SHRINK = {"llava"}


def failing(name, check, tmp_path):
    """What a mutant broke, saved."""
    found = run_check(CHECKS[check], mutant(name), shrink=check not in SLOW_TO_SHRINK)
    report = Report(f"mutant:{name}", ("core",), [found])
    save_failures(report, f"mutant:{name}", tmp_path)
    return report.failures[0]


@pytest.mark.parametrize(
    ("name", "check"),
    [("deferred-rows-run-through-the-mlp", "route"), ("spans-ignored", "llava")],
)
@pytest.mark.slow
def test_a_failure_replays_in_a_new_process(name, check, tmp_path):
    failure = failing(name, check, tmp_path)
    assert failure.replay == f"vlm-reroute replay {failure.path} --target mutant:{name}"
    program = "from reroute_conformance.cli.entry import main; main()"
    for target, code in ((f"mutant:{name}", 1), ("reference", 0)):
        command = [sys.executable, "-c", program, "replay", str(failure.path), "--target", target]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        if code:
            first = done.stdout.splitlines()[0]
            assert first.startswith(failure.violation.rule)
            assert f"{failure.violation.where}: {failure.violation.detail}" in done.stdout
            assert f"check: {rules()[failure.violation.rule].check}" in done.stdout
    # transformers models are no canonical decoders: the suite builds them again
    said = {"inputs", "expected"} & read_vector(failure.path).data.keys()
    assert said == (set() if check == "llava" else {"inputs", "expected"})


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("lowest-scores", "select"),
        ("nan-accepted", "select-nan"),
        ("float-read-as-decimal", "config"),
        ("higher-ordinal-wins-ties", "vectors-select"),
        ("mrope-of-time-alone", "vectors-trace-mrope"),
    ],
)
def test_a_failure_of_any_kind_is_a_vector(vlm_reroute, name, check, tmp_path):
    failure = failing(name, check, tmp_path)
    vector = read_vector(failure.path)
    assert vector.data["suite"]["rule"] == failure.violation.rule
    assert vector.data["expected"]
    code, out, _ = vlm_reroute("replay", str(failure.path / "case.json"), "--target", f"mutant:{name}")
    assert code == 1
    assert out.startswith(failure.violation.rule)
    assert vlm_reroute("replay", str(failure.path), "--target", "reference")[0] == 0


def test_a_saved_vector_is_right_for_whoever_reads_it_alone(tmp_path):
    failure = failing("deferred-rows-run-through-the-mlp", "route", tmp_path)
    vector = read_vector(failure.path)
    alone = tmp_path / "route" / "alone"
    data = {name: value for name, value in vector.data.items() if name != "suite"}
    write_vector(type(vector)(data, vector.tensors), alone)
    assert replay_case(alone, reference()).violations == []
    assert [v.rule for v in replay_case(alone, mutant("deferred-rows-run-through-the-mlp")).violations][
        :1
    ] == ["RR-BLOCK-001"]


@pytest.mark.parametrize(
    "place", ["select/ties-go-low", "route/given-bypass", "trace/llava-104-delete-pyramid"]
)
def test_any_vector_replays_by_its_path(vlm_reroute, place):
    code, out, _ = vlm_reroute("replay", str(V1 / place), "--target", "reference")
    assert code == 0
    assert out.strip().endswith("passes")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "case.json").unlink(),
        lambda path: (path / "case.json").write_text("{"),
        lambda path: (path / "tensors.safetensors").unlink(),
        lambda path: (path / "tensors.safetensors").write_bytes(b"none"),
        lambda path: _flip(path / "tensors.safetensors"),
        lambda path: _replace(path, '"seed": ', '"seed": 1'),
        lambda path: _replace(path, '"check": "route"', '"check": "trace"'),
        lambda path: _replace(path, '"check": "route"', '"check": "rout"'),
        lambda path: _replace(path, '"kind": "decoder"', '"kind": "decoders"'),
        lambda path: _replace(path, '"kind": "decoder"', '"kind": "select"'),
        lambda path: _replace(path, '"id"', '"identity"'),
        lambda path: _replace(path, '"requests.0.embeddings"', '"requests.7.embeddings"'),
        lambda path: _replace(path, '"weights."', '"weight."'),
        lambda path: _replace(path, '"weights."', '"../../../weights.safetensors:"'),
    ],
)
def test_a_damaged_case_is_refused(vlm_reroute, tmp_path, damage):
    failure = failing("deferred-rows-run-through-the-mlp", "route", tmp_path)
    damage(failure.path)
    code, _, err = vlm_reroute("replay", str(failure.path), "--target", "reference")
    assert code == 3
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _replace(folder, old, new):
    text = (folder / "case.json").read_text("utf-8")
    assert old in text
    (folder / "case.json").write_text(text.replace(old, new), "utf-8")


def test_list_and_regenerate_are_commands(vlm_reroute, made_before):
    code, out, _ = vlm_reroute("vectors", "list")
    assert code == 0
    assert out.splitlines()[-1] == f"{len(ENTRIES)} vectors, digest {vector_digest()}"
    code, out, _ = vlm_reroute("vectors", "list", "--json")
    assert len(json.loads(out)["vectors"]) == len(ENTRIES)
    code, out, _ = vlm_reroute("vectors", "regenerate", "--check")
    assert code == 0
    assert out.strip().endswith("all as made again")


def test_differences_are_printed_with_exit_code_1(vlm_reroute, monkeypatch):
    monkeypatch.setattr(regenerate, "differences", lambda tick: ["trace/x: differs"])
    code, out, _ = vlm_reroute("vectors", "regenerate", "--check")
    assert code == 1
    assert out.splitlines()[0] == "trace/x: differs"


def test_a_changed_vector_stops_every_verdict(copied, monkeypatch):
    (copied / "select/highest/case.json").write_text("{}")
    from reroute_conformance.checks import vectors as vector_checks

    monkeypatch.setattr(vector_checks, "damages", lambda: damages(copied))
    with pytest.raises(RerouteError, match=r"select/highest/case.json was changed"):
        vector_checks.vector_checks()
