"""The suite is tested too: mutants die of their own rule, verdicts repeat, failures replay."""

import importlib.util
import json
import sys
from dataclasses import replace

import pytest
import torch
from reroute_conformance.cases.case import ConfigCase, Row, SelectCase, load_case
from reroute_conformance.cases.decoder import DecoderCase, decoder_config
from reroute_conformance.cases.models import LlavaCase
from reroute_conformance.cases.mrope import MropeCase
from reroute_conformance.cases.presets import PresetCase
from reroute_conformance.checks import checks
from reroute_conformance.judging.one_request import judge_ambiguity
from reroute_conformance.judging.selection import judge_select
from reroute_conformance.mutants import MUTANTS, mutant
from reroute_conformance.protocol import PROFILES
from reroute_conformance.reporting.records import Circumstances, to_records
from reroute_conformance.running.finding import load_target
from reroute_conformance.running.results import FAILS, INCOMPLETE, Report
from reroute_conformance.running.runner import replay_case, run_check, run_suite, save_failures
from reroute_conformance.targets import reference
from reroute_conformance.verdicts.tolerance import Measured, close, describe, same
from reroute_conformance.verdicts.verdict import Verdict
from reroute_spec import Schedule, plan
from reroute_spec.rules import rules
from reroute_spec.trace import record

CHECKS = {check.name: check for check in checks()}
WRONG = "tests.conformance.wrong:"


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(".")


# `make mutants` runs all of them
@pytest.mark.parametrize("entry", MUTANTS[::6], ids=lambda entry: entry.name)
def test_a_mutant_is_killed_by_its_own_rule(entry):
    result = run_check(CHECKS[entry.check], mutant(entry.name), shrink=False)
    assert result.failure is not None, f"survived; run: vlm-reroute conform --target mutant:{entry.name}"
    assert result.failure.violation.rule == entry.rule


def test_the_mutants_do_not_leak_into_the_judge():
    for entry in MUTANTS:
        mutant(entry.name).select(torch.tensor([1.0, 2.0]), 1)
    assert run_check(CHECKS["select"], reference(), examples=50).failure is None


@pytest.mark.slow
def test_the_fast_path_breaks_nothing():
    """On a case of every check; `make demo` runs all of them, which is what CONFORMS takes, and `make mutants` the reference's."""
    implementation = load_target("optimized-torch")
    report = run_suite(implementation, examples=1)
    assert [failure.violation for failure in report.failures] == []
    assert report.profiles == tuple(name for name in PROFILES if name in implementation.profiles)
    assert {result.check.profile for result in report.results} == set(report.profiles)


def test_the_cases_do_not_depend_on_what_is_loaded(tmp_path):
    """Hypothesis draws constants of loaded modules unless it is kept from it: another target would get other cases."""

    def drawn():
        seen = []
        check = replace(CHECKS["trace"], judge=lambda case, target: seen.append(case.digest()) or Verdict())
        run_check(check, reference())
        return seen

    before = drawn()
    module = tmp_path / "somebodys_kernel.py"
    module.write_text("LIMITS = [12345, 4711, 0.123, 'tvvt']\n")
    spec = importlib.util.spec_from_file_location("somebodys_kernel", module)
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
    try:
        assert drawn() == before
    finally:
        del sys.modules[spec.name]


def test_two_runs_draw_the_same_cases():
    def drawn(name):
        seen = []
        check = CHECKS[name]
        noting = replace(
            check, judge=lambda case, target: seen.append(case.digest()) or check.judge(case, target)
        )
        run_check(noting, reference(), examples=20)
        return seen

    assert drawn("trace-batch") == drawn("trace-batch")


def test_every_check_names_rules_that_exist():
    for check in CHECKS.values():
        assert check.rules
        assert set(check.rules) <= rules().keys()
        assert check.profile in PROFILES
    assert {entry.rule for entry in MUTANTS} <= rules().keys()


@pytest.mark.parametrize(
    ("factory", "check", "rule", "words"),
    [
        ("raises", "trace", "RR-ERR-003", "the target raised ZeroDivisionError: kernel launch"),
        ("exits", "trace", "RR-ERR-003", "the target raised SystemExit"),
        ("raises_what_cannot_be_said", "trace", "RR-ERR-003", "the target raised _UnsayableError"),
        ("leaves_by_the_back_door", "trace", "RR-ERR-003", "the target raised GeneratorExit"),
        ("logits_are_a_trap", "trace", "RR-ERR-003", "logits is a _Trap that cannot be read (a trap)"),
        ("returns_none", "trace", "RR-ERR-003", "run returned NoneType"),
        ("one_request_missing", "trace-batch", "RR-ERR-003", "expected a list of"),
        ("no_keys", "trace", "RR-ERR-003", "keys is not a list of"),
        ("scalar_keys", "trace", "RR-ERR-003", "keys[0] is"),
        ("no_logits", "trace", "RR-ERR-003", "logits is a NoneType"),
        ("complex_logits", "trace", "RR-ERR-003", "complex64"),
        ("no_decode_logits", "trace-cache", "RR-ERR-003", "decode_logits is a NoneType"),
        ("no_residuals", "trace", "RR-ERR-003", "residuals["),
        ("trace_without_decisions", "trace", "RR-ERR-003", "trace cannot be read"),
        ("selected_is_none", "trace", "RR-ERR-003", "selected"),
        ("selected_is_a_tensor", "trace", "RR-ERR-003", "selected"),
        ("stage_off_by_one", "trace", "RR-POOL-006", "the plan has"),
        ("layer_off_by_one", "trace", "RR-POOL-006", "the plan has"),
        ("trace_of_one_row", "trace", "RR-POOL-006", "1 rows, expected"),
        ("trace_of_fewer_cached_rows", "trace", "RR-", "rows cached per block"),
        ("scores_are_zero", "trace", "RR-SCORE-001", "scores [candidate]"),
        ("scores_are_nan", "trace", "RR-SCORE-001", "scores [candidate]"),
        ("nothing_deferred", "trace", "RR-POOL-005", "deferred"),
        ("everything_reenters", "trace", "RR-POOL-005", "reentered"),
        ("another_margin", "trace", "RR-POOL-006", "margin 7.0"),
        ("logits_of_another_shape", "trace", "RR-BLOCK", "shape"),
        ("nan_logits", "trace", "RR-BLOCK", "nan"),
        ("selects_out_of_range", "select", "RR-ERR-003", "expected integers from 0 to"),
        ("selects_none", "select", "RR-ERR-003", "select returned None"),
        ("generates_a_list", "llava-picture", "RR-ERR-003", "generate returned list"),
        ("alters_the_weights", "llava-picture", "RR-", "error"),
        ("one_decoded_row_too_many", "llava-picture", "RR-KV-002", "shape"),
        ("ignores_replay", "route", "RR-NUM-003", "would_select is None"),
        ("slightly_off", "trace", "RR-BLOCK", "ulp"),
    ],
)
def test_a_wrong_answer_is_the_targets_failure_and_never_a_crash(factory, check, rule, words):
    result = run_check(CHECKS[check], load_target(WRONG + factory))
    assert result.failure is not None
    assert result.failure.violation.rule.startswith(rule)
    assert words in f"{result.failure.violation.where}: {result.failure.violation.detail}"


@pytest.mark.parametrize(
    ("factory", "check"),
    [("selects_numpy_integers", "select"), ("lists_in_the_trace", "trace"), ("float64_inside", "trace-gqa")],
)
def test_an_honest_target_passes_however_it_computes(factory, check):
    assert run_check(CHECKS[check], load_target(WRONG + factory)).failure is None


def test_a_target_without_core_is_incomplete():
    report = run_suite(load_target(WRONG + "only_batch"), examples=5)
    assert report.verdict == INCOMPLETE
    assert "profile core" in report.missing


def test_a_rule_that_was_not_exercised_makes_the_run_incomplete():
    report = run_suite(reference(), ["core"], examples=1)
    assert report.verdict == INCOMPLETE
    assert "RR-SEL-003" in report.missing


def test_a_report_lists_what_its_verdict_says_nothing_about():
    report = run_suite(reference(), ["core"], examples=5)
    assert {"RR-KV-002", "RR-EQV-004", "RR-CFG-013"} <= set(report.uncovered)
    assert not {"RR-SEL-003", "RR-BUD-001", "RR-EQV-002"} & set(report.uncovered)


@pytest.mark.parametrize(
    "name",
    ["higher-ordinal-wins-ties", "deferred-rows-run-through-the-mlp", "row-0s-decision-for-the-whole-batch"],
)
def test_a_failure_is_small_saved_and_replayable(name, tmp_path):
    entry = next(entry for entry in MUTANTS if entry.name == name)
    result = run_check(CHECKS[entry.check], mutant(name))
    report = Report(f"mutant:{name}", ("core",), [result])
    save_failures(report, f"mutant:{name}", tmp_path)
    failure = report.failures[0]
    assert report.verdict == FAILS
    assert "first differing ordinal" in failure.violation.detail
    assert failure.replay == f"vlm-reroute replay {failure.path} --target mutant:{name}"
    again = replay_case(failure.path, mutant(name))
    assert [v.rule for v in again.violations][:1] == [entry.rule]
    assert replay_case(failure.path, reference()).violations == []
    case = failure.case
    assert (
        len(case.bits) <= 3
        if isinstance(case, SelectCase)
        else sum(len(row.layout) for row in case.rows) <= 30
    )


def test_the_report_is_json_lines_with_header_checks_and_footer():
    report = run_suite(reference(), ["core"], examples=3)
    records = [json.loads(json.dumps(record)) for record in to_records(report, Circumstances({"torch": "x"}))]
    assert [records[0]["record"], records[-1]["record"]] == ["header", "footer"]
    assert {record["name"] for record in records[1:-1]} == {
        check.name for check in CHECKS.values() if check.profile == "core"
    }


CASES = [
    ConfigCase({"action": "reroute", "decisions": [{"layer": 1, "keep": 0.5}]}, 4, "tvvt", [1, 1]),
    SelectCase(bits=[0, -2147483648, 2139095040], k=2),
    DecoderCase({"action": "reroute", "decisions": [{"layer": 1, "keep": "0.5"}]}, [Row("tvvt", 3, 1, 0), Row("t")], 1, [[[0]], []], None, decoder_config(2, 2, 1), 4),
    LlavaCase({"action": "delete", "decisions": [{"layer": 1, "keep": 3}]}, [Row("tIt")], 0, None, None, 1, "eager", ""),
    *(check.cases[-1] for check in (CHECKS["nuwa"], CHECKS["wide-float16"], CHECKS["example"])),
    CHECKS["wide-bfloat16"].cases[0],
    PresetCase("nuwa-64", {}, 28, [3, 7]),
    MropeCase(rows=[Row("tvt")], config=decoder_config(2, 2, 2, 16, mrope_section=(2, 3, 3)), grid=(1, 2)),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kind)
def test_cases_survive_json(case):
    data = json.loads(json.dumps(case.to_dict()))
    assert load_case(data) == case
    assert load_case(data).digest() == case.digest()


def test_one_ulp_decides():
    one = (
        torch.tensor([1.0, torch.nextafter(torch.tensor(1.0), torch.tensor(2.0)).item()])
        .view(torch.int32)
        .tolist()
    )
    assert judge_select(SelectCase(bits=one, k=1), reference()).violations == []
    found = judge_select(SelectCase(bits=one, k=1), mutant("lowest-scores")).violations
    assert [violation.rule for violation in found] == ["RR-SEL-001"]


NEAR = plan(
    Schedule.from_dict({"action": "reroute", "decisions": [{"layer": 0, "keep": 2}]}), 1, [True] * 4 + [False]
)


@pytest.mark.parametrize(
    ("selected", "broken"),
    [([0, 1], []), ([0, 2], []), ([0, 3], ["RR-NUM-002"]), ([1, 2], ["RR-NUM-002"])],
)
def test_only_ambiguous_rows_may_differ_from_the_oracle(selected, broken):
    """Rows 1 and 2 are within τ of the threshold; rows 0 and 3 are not."""
    scores = [0.5, 0.2, 0.2 * (1 - 5e-6), 0.1]
    exact = record(NEAR, 1, range(4), scores, selected, range(4), would_select=[0, 1])
    verdict = Verdict()
    judge_ambiguity(0, exact, exact, NEAR, 1e-5, verdict)
    assert [violation.rule for violation in verdict.violations] == broken
    assert verdict.ambiguous == 1


def test_more_than_5_percent_ambiguous_decisions_fail():
    check = CHECKS["trace"]

    def blurred(case, target):
        verdict = Verdict()
        verdict.decisions, verdict.ambiguous = 10, 1
        return verdict

    result = run_check(replace(check, judge=blurred, examples=5), reference())
    assert result.failure is not None
    assert result.failure.violation.rule == "RR-NUM-002"


def test_tolerance_scales_with_a_plain_runs_error_and_nan_never_passes():
    oracle = torch.linspace(1, 2, 50, dtype=torch.float64)
    plain = oracle.float() + 1e-4

    def measured(values):
        return Measured(values, plain, oracle)

    assert close(measured(oracle.float() + 1.9e-4))
    assert not close(measured(oracle.float() + 4e-4))
    spike = oracle.float()
    spike[7] += 1
    for value in (spike[7].item(), torch.nan, torch.inf):
        spike[7] = value
        assert not close(measured(spike))
        assert "element [7]: expected 1.14285714, got" in describe(measured(spike))
    assert not close(measured(oracle[:-1].float()))
    assert close(Measured(*[torch.empty(0, 3)] * 3))


def test_the_last_bit_of_a_move_counts():
    zero = torch.zeros(2, 3)
    assert same(zero, zero.clone())
    assert not same(zero, -zero)
    assert not same(zero, zero.double())
    assert same(zero.t(), zero.t().clone())
