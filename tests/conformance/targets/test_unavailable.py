"""What a target claims and cannot be asked for here: nothing of it runs, and whoever reads the verdict reads why."""

import html
import json

import jsonschema
import pytest
import torch
from junitparser import JUnitXml
from reroute_conformance.cases.case import SelectCase
from reroute_conformance.checks import checks
from reroute_conformance.reporting.junit import junit
from reroute_conformance.reporting.page import page
from reroute_conformance.reporting.records import Circumstances, to_records, verdict_line
from reroute_conformance.running.results import INCOMPLETE
from reroute_conformance.running.runner import replay_case, run_suite
from reroute_conformance.running.saved_failures import save_case
from reroute_conformance.targets import ReferenceTarget
from reroute_spec.schemas import schema

CHECKS = {check.name: check for check in checks()}
WHY = "needs a <device> of its own"


class Partly(ReferenceTarget):
    """Cannot compute in bfloat16, nor hold sessions and models."""

    unavailable = {"bfloat16": "needs bfloat16", "session": WHY, "hf": WHY}  # noqa: RUF012

    def session(self, *args):
        raise AssertionError("asked for what it cannot do")


@pytest.fixture(scope="module")
def report():
    return run_suite(Partly(), ["core", "session", "low-precision", "hf"], examples=1)


def test_nothing_of_it_is_run_and_the_rest_is(report):
    assert {result.check.profile for result in report.results} == {"core", "low-precision"}
    assert {result.check.dtype for result in report.results} == {"", "float16"}
    assert report.verdict == INCOMPLETE
    assert report.missing[:3] == ["profile session", "profile hf", "dtype bfloat16"]
    assert not report.failures


def test_every_form_of_the_report_says_why(report):
    records = json.loads(json.dumps(to_records(report, Circumstances({}))))
    validator = jsonschema.Draft202012Validator(schema("report"))
    assert [error.message for record in records for error in validator.iter_errors(record)] == []
    assert records[-1]["reasons"] == {
        "profile session": WHY,
        "profile hf": WHY,
        "dtype bfloat16": "needs bfloat16",
    }
    said = f"INCOMPLETE: not exercised: profile session, profile hf ({WHY}), dtype bfloat16 (needs bfloat16)"
    assert verdict_line(records).startswith(said)
    suite = next(suite for suite in JUnitXml.fromstring(junit(records)) if suite.name == "not checked")
    skipped = {case.name: case.result[0].message for case in suite}
    assert skipped["profile session"] == f"not asked: {WHY}"
    assert skipped["dtype bfloat16"] == "not asked: needs bfloat16"
    assert f"the target cannot be asked for it here: {html.escape(WHY)}" in page(records)


def test_a_precision_counts_only_where_its_profile_is_run():
    report = run_suite(Partly(), ["core"], examples=1)
    assert "dtype bfloat16" not in report.missing


def test_a_case_of_it_is_skipped_with_the_reason(tmp_path):
    class Nothing(ReferenceTarget):
        unavailable = {"core": WHY}  # noqa: RUF012

    path = save_case(CHECKS["select"], "RR-SEL-001", SelectCase(bits=[0, 1065353216], k=1), tmp_path)
    assert replay_case(path, Nothing()).skipped == WHY
    assert replay_case(path, ReferenceTarget()).skipped == ""


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("reasons_are_a_list", "unavailable: is a list"),
        ("reasons_of_nothing_known", "'quantum' is unknown"),
        ("a_reason_without_words", "say why in words"),
    ],
)
def test_reasons_of_another_form_are_refused(vlm_reroute, target, words):
    code, _, err = vlm_reroute("conform", "--target", f"tests.conformance.wrong:{target}")
    assert code == 3
    assert words in err


needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs everything")


@needs_no_gpu
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_the_fused_path_without_a_gpu_is_incomplete_in_every_profile(
    vlm_reroute, monkeypatch, tmp_path, jobs
):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    arguments = ("--target", "optimized-triton", "--report", str(tmp_path), "--jobs", jobs)
    code, out, _ = vlm_reroute("conform", *arguments)
    assert code == 2
    last = out.rstrip().splitlines()[-1]
    assert last.startswith("INCOMPLETE: not exercised: profile core, profile stagewise, ")
    assert last.endswith("(the Triton kernels need a GPU, or TRITON_INTERPRET=1 to run slowly on a CPU)")
    assert "dtype" not in last
    assert (tmp_path / "verdict.txt").read_text().splitlines()[-1] == last


@needs_no_gpu
@pytest.mark.parametrize("command", [("smoke",), ("conform", "--profile", "fuzz", "--minutes", "0.01")])
def test_what_gives_no_verdict_says_what_was_not_asked(vlm_reroute, monkeypatch, tmp_path, command):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    report = ("--report", str(tmp_path)) if command[0] == "conform" else ()
    code, out, _ = vlm_reroute(*command, "--target", "optimized-triton", *report)
    assert code == 2
    assert "not asked: profile core, " in out


@needs_no_gpu
def test_the_fused_path_in_the_interpreter_is_incomplete_in_bfloat16(vlm_reroute, monkeypatch, tmp_path):
    monkeypatch.setattr("reroute_conformance.running.runner.run_check", lambda check, *rest: _no_case(check))
    arguments = ("--target", "optimized-triton", "--profiles", "low-precision", "--report", str(tmp_path))
    code, out, _ = vlm_reroute("conform", *arguments)
    assert code == 2
    assert "dtype bfloat16 (Triton's interpreter computes bfloat16 wrongly; needs a GPU)" in out


def _no_case(check):
    from reroute_conformance.running.results import CheckResult

    assert check.dtype != "bfloat16"
    return CheckResult(check)
