"""What a run leaves behind: records of their form, JUnit that says what was not tested, a page that escapes what it is told."""

import html
import json
import re

import jsonschema
import pytest
from junitparser import JUnitXml
from reroute_conformance.checks import checks
from reroute_conformance.mutants import mutant
from reroute_conformance.reporting.files import FILES, write_report
from reroute_conformance.reporting.junit import junit
from reroute_conformance.reporting.page import (
    BROKEN,
    PASS,
    UNCHECKED,
    UNEXERCISED,
    Cell,
    histogram,
    matrix,
    page,
)
from reroute_conformance.reporting.records import Circumstances, suite_digest, to_records, verdict_line
from reroute_conformance.running.results import Report
from reroute_conformance.running.runner import run_check, run_suite, save_failures
from reroute_conformance.targets import ReferenceTarget, reference
from reroute_conformance.vectors.manifest import vector_digest
from reroute_conformance.verdicts.margins import EDGES, Margins
from reroute_spec.rules import rules
from reroute_spec.schemas import schema

CHECKS = {check.name: check for check in checks()}
RUN = Circumstances(
    {"vlm-reroute": "0.1.0", "torch": "x"}, "vlm-reroute conform --target x", "2026-06-01T00:00:00+00:00"
)
MUST = [rule.id for rule in rules().values() if rule.strength == "MUST"]


class Hostile(ReferenceTarget):
    """Says what would do harm in a page, in XML, in a terminal and in a file."""

    name = "<script>alert(1)</script>\x1b[31m\ud800"
    device = '"><img src=x onerror=alert(2)>'

    def run(self, *args, **kwargs):
        raise ValueError("</pre><script>alert(3)</script> & \x00 \x0b \ud800 ]]>")


def report_of(target, profiles, *names, families=()):
    return Report(target.name, profiles, [run_check(CHECKS[name], target) for name in names], families)


@pytest.fixture(scope="module")
def conforms():
    return to_records(report_of(reference(), ("core",), "select", "trace-ties"), RUN)


@pytest.fixture(scope="module")
def fails(tmp_path_factory):
    report = report_of(
        mutant("row-0s-decision-for-the-whole-batch"), ("core", "batch"), "select", "trace-batch"
    )
    save_failures(report, "mutant:row-0s-decision-for-the-whole-batch", tmp_path_factory.mktemp("cases"))
    return to_records(report, RUN)


@pytest.fixture(scope="module")
def incomplete():
    return to_records(run_suite(reference(), ["core", "stagewise"], examples=2), RUN)


@pytest.fixture(scope="module")
def hostile():
    return to_records(run_suite(Hostile(), ["core"], examples=2), RUN)


@pytest.fixture(params=["conforms", "fails", "incomplete", "hostile"])
def records(request):
    return request.getfixturevalue(request.param)


def test_every_line_is_of_its_form(records):
    validator = jsonschema.Draft202012Validator(schema("report"))
    lines = [json.loads(json.dumps(record)) for record in records]
    assert [error.message for line in lines for error in validator.iter_errors(line)] == []


def test_the_header_says_what_ran(fails):
    header = fails[0]
    assert (header["suite_version"], header["suite_digest"]) == ("0.1.0", suite_digest())
    assert (header["dtypes"], header["seed"], header["device"]) == (["float32"], "derandomized", "")
    assert header["profiles"] == ["core", "batch"]
    assert header["vectors_digest"] == vector_digest()


def test_a_search_is_not_taken_for_a_reproducible_run(conforms):
    searched = [{**conforms[0], "seed": "random"}, *conforms[1:]]
    assert "the same versions draw the same cases" in page(conforms)
    assert "random: a search" in page(searched)


def test_the_verdict_line_names_profiles_and_families(conforms):
    assert verdict_line(conforms) == "CONFORMS (core)"
    report = report_of(reference(), ("core", "hf"), "select", "llava-picture", families=("llava",))
    assert verdict_line(to_records(report, RUN)) == "CONFORMS (core, hf: llava)"


def test_a_family_that_no_check_ran_is_no_pass():
    report = report_of(
        reference(), ("core", "hf"), "select", "llava-picture", families=("llava", "quantum_vl")
    )
    assert report.missing == ["family quantum_vl"]
    assert verdict_line(to_records(report, RUN)) == "INCOMPLETE: not exercised: family quantum_vl"


def test_margins_fall_into_fixed_bins():
    margins = Margins()
    for margin in (None, 0.0, 5e-7, 1e-6, 9.9e-5, 1e-4, 0.5, 1.0, 3.0):
        margins.count(margin)
    found = margins.to_dict()
    assert (found["none"], found["tie"]) == (1, 1)
    assert {EDGES[i]: count for i, count in enumerate(found["bins"]) if count} == {1e-6: 1, 3.16e-6: 1, 1e-4: 1, 3.16e-4: 1, 1.0: 3}  # fmt: skip
    assert [bar.label for bar in histogram(EDGES, [found]) if bar.near] == [
        "3.2·10⁻⁵ to 10⁻⁴", "10⁻⁵ to 3.2·10⁻⁵", "3.2·10⁻⁶ to 10⁻⁵", "10⁻⁶ to 3.2·10⁻⁶", "below 10⁻⁶",
    ]  # fmt: skip


def test_every_decision_has_its_margin_counted(records):
    for check in records[1:-1]:
        margins = check["margins"]
        assert margins["none"] + margins["tie"] + sum(margins["bins"]) == check["decisions"]


def test_ties_are_counted_as_such(conforms):
    assert next(check for check in conforms if check.get("name") == "trace-ties")["margins"]["tie"] > 0


def test_decisions_in_low_precision_are_reported_apart():
    name = next(check.name for check in checks() if check.dtype and check.kind == "trace")
    records = to_records(report_of(reference(), ("core", "low-precision"), "trace-ties", name), RUN)
    full, low = records[1:-1]
    assert records[0]["dtypes"] == ["float32", CHECKS[name].dtype]
    text = page(records)
    assert f"of {full['decisions']} decisions were ambiguous" in text
    assert f"In low precision {low['differing']} of {low['decisions']} differed" in text


def test_junit_has_a_test_per_rule_of_a_check(fails):
    suites = {suite.name: suite for suite in JUnitXml.fromstring(junit(fails))}
    assert set(suites) == {"core.select", "batch.trace-batch", "not checked"}
    failed = [case for case in suites["batch.trace-batch"] if case.is_failure]
    assert [case.name for case in failed] == ["RR-EQV-004 Requests of a batch are independent"]
    assert "replay: vlm-reroute replay" in failed[0].result[0].text
    assert all(case.is_passed for case in suites["core.select"])
    assert suites["core.select"].time == fails[1]["seconds"]


def test_junit_never_passes_what_was_not_tested(records):
    document = JUnitXml.fromstring(junit(records))
    passed = {case.name.split()[0] for suite in document for case in suite if case.is_passed}
    assert not passed & set(records[-1]["uncovered"])
    skipped = {case.name for suite in document for case in suite if case.is_skipped}
    for name in records[-1]["missing"]:
        assert any(entry.startswith(name) for entry in skipped)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "conforms",
            ["✓</span> CONFORMS", "in core", "no case could fail", "of the [0-9]+ MUST rules were judged"],
        ),
        (
            "fails",
            ["✗</span> FAILS", "RR-EQV-004", "Requests of a batch are independent", "vlm-reroute replay "],
        ),
        ("incomplete", ["○</span> INCOMPLETE", "is never a pass", "Not exercised", "none of its"]),
    ],
)
def test_the_page_leads_with_the_verdict(name, says, request):
    text = page(request.getfixturevalue(name))
    assert text.index("<h1>") < text.index('id="run"') < text.index('id="rules"') < text.index('id="checks"')
    for words in says:
        assert re.search(words, text), words


def test_the_page_needs_nothing_else(records):
    assert not re.search(r"<(script|link|img|iframe)|<[^>]*(\bsrc=|https?:)|url\(|@import", page(records))


def test_the_page_and_its_neighbours_escape_what_a_target_says(hostile, tmp_path):
    text = page(hostile)
    assert "<script" not in text
    assert "<img" not in text
    assert html.escape("<script>alert(1)</script>\\x1b[31m\\ud800") in text
    assert "&lt;script&gt;alert(3)&lt;/script&gt; &amp; \\x00 \\x0b \\ud800" in text
    write_report(hostile, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert JUnitXml.fromfile(str(tmp_path / "junit.xml")).failures > 0


def test_the_matrix_has_every_must_rule_once(records):
    assert [row.rule.id for row in matrix(records)] == MUST


def test_the_matrix_tells_broken_passed_missed_and_unseen(fails, incomplete):
    rows = {row.rule.id: row for row in matrix(fails)}
    assert [cell.state for cell in rows["RR-EQV-004"].cells] == [UNCHECKED, BROKEN]
    assert [cell.state for cell in rows["RR-SEL-005"].cells] == [UNCHECKED, UNCHECKED]
    assert rows["RR-SEL-001"].cells == [Cell(PASS, CHECKS["select"].examples), rows["RR-SEL-001"].cells[1]]
    assert rows["RR-KV-002"].state == UNCHECKED
    assert "cache" in rows["RR-KV-002"].elsewhere
    missed = {row.rule.id for row in matrix(incomplete) if row.state == UNEXERCISED}
    assert missed == set(incomplete[-1]["missing"])


def test_a_rule_that_is_judged_nowhere_is_never_shown_as_passed(records):
    for row in matrix(records):
        if row.rule.id in records[-1]["uncovered"]:
            assert row.state in (BROKEN, UNEXERCISED, UNCHECKED)
