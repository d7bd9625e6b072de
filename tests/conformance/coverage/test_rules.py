"""What keeps every rule: `rules`, `explain`, and the audit behind them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from reroute_conformance.coverage import traceability
from reroute_conformance.mutants import MUTANTS
from reroute_spec.rules import rules

SPEC = Path(__file__).parents[3] / "spec"


def test_every_must_rule_is_traced_or_planned(vlm_reroute):
    code, out, _ = vlm_reroute("rules", "--check")
    counts = traceability.audit().counts
    assert code == 0, out
    assert counts["must"] == counts["traced"] + counts["planned"]
    assert f"{counts['must']} MUST, of which {counts['traced']} traced, {counts['planned']} planned" in out
    for rule_id, (parts, until) in traceability.plans().items():
        assert f"{rule_id} ({', '.join(sorted(parts))})" in out
        assert f"until {until}" in out


def test_the_list_shows_every_rule_once(vlm_reroute):
    code, out, _ = vlm_reroute("rules")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line.startswith("RR-")] == list(rules())
    data = json.loads(vlm_reroute("rules", "--json")[1])
    assert [entry["id"] for entry in data["rules"]] == list(rules())
    assert data["faults"] == []


def test_explain_shows_text_check_reference_checks_and_mutants(vlm_reroute):
    code, out, _ = vlm_reroute("explain", "RR-SEL-003")
    assert code == 0
    for words in (
        "Ties go to the lower ordinal",
        "Equal scores are ordered by ascending ordinal.",
        "all(i < j for i in selected for j in left_out if s[i] == s[j])",
        "reroute_spec/select.py:",
        "best_first = sorted(",
        "select",
        "mutant:higher-ordinal-wins-ties",
        "leaves ties to `topk`",
    ):
        assert words in out
    data = json.loads(vlm_reroute("explain", "rr-sel-003", "--json")[1])
    assert data["mutants"] == ["higher-ordinal-wins-ties", "higher-ordinal-wins-ties-in-a-run"]
    assert data["planned"] is None


def test_explain_refuses_an_unknown_rule_with_the_nearest(vlm_reroute):
    code, _, err = vlm_reroute("explain", "RR-SEL-03")
    assert code == 3
    assert "did you mean RR-SEL-003? `vlm-reroute rules` lists all" in err


def _malformed(chapters):
    raise ValueError("10-x.md: heading of another shape")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda patch: patch.setattr(traceability, "MUTANTS", ()),
            "RR-SEL-003 has no mutant, and none is planned",
        ),
        (
            lambda patch: patch.setattr(traceability, "checks", tuple),
            "RR-SEL-003 has no check, and none is planned",
        ),
        (
            lambda patch: patch.setattr(traceability, "reference_marks", dict),
            "RR-SEL-003 has no reference, and none is planned",
        ),
        (
            lambda patch: patch.setattr(
                traceability, "plans", lambda: {"RR-SEL-003": (frozenset({"mutant"}), "later")}
            ),
            "RR-SEL-003 has its mutant, yet planned.json still plans it",
        ),
        (
            lambda patch: patch.setattr(
                traceability, "plans", lambda: {"RR-XX-001": (frozenset({"check"}), "")}
            ),
            "RR-XX-001 is planned, and no such rule exists",
        ),
        (
            lambda patch: patch.setattr(traceability, "to_json", str),
            "rules.json is not what the chapters say",
        ),
        (lambda patch: patch.setattr(traceability, "to_index", str), "INDEX.md is not what the chapters say"),
        (
            lambda patch: patch.setattr(traceability, "_cited", lambda: {"a.py": {"RR-SEL-999"}}),
            "a.py names RR-SEL-999, and no such rule exists",
        ),
    ],
)
def test_a_rule_that_nothing_keeps_fails_the_check(vlm_reroute, monkeypatch, change, fault):
    change(monkeypatch)
    code, out, _ = vlm_reroute("rules", "--check")
    assert code == 1
    assert fault in out


def test_a_mark_is_the_line_that_does_it():
    for marks in traceability.reference_marks().values():
        for mark in marks:
            assert mark.code
            assert not mark.code.startswith("#")
    mark = traceability.reference_marks()["RR-SEL-004"][0]
    assert (mark.path, mark.code) == ("select.py", "return sorted(best_first[:k])")


def test_every_mutant_breaks_a_must_rule_that_its_check_exercises():
    by_name = {check.name: check for check in traceability.checks()}
    for entry in MUTANTS:
        assert rules()[entry.rule].strength == "MUST"
        assert entry.check in by_name
    assert len({entry.name for entry in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize(
    ("chapter", "old", "new", "fault"),
    [
        (
            "50-select.md",
            "for i in selected), default=inf)",
            "for i in chosen), default=inf)",
            "its check uses chosen",
        ),
        (
            "50-select.md",
            "# Selection\n",
            "# Selection\n\nA port MUST sort.\n",
            "has a MUST that no rule numbers",
        ),
        ("50-select.md", "Ties go to", "Draws go to", "rules.json is not what the chapters say"),
        ("50-select.md", "MUST · exact", "SHOULD · exact", "heading of another shape"),
    ],
)
def test_what_the_chapters_may_not_say_is_a_fault(tmp_path, chapter, old, new, fault):
    for path in SPEC.glob("*.md"):
        shutil.copy(path, tmp_path)
    assert traceability.stale(tmp_path) == []
    text = (tmp_path / chapter).read_text("utf-8")
    (tmp_path / chapter).write_text(text.replace(old, new, 1), "utf-8")
    assert any(fault in found for found in traceability.stale(tmp_path))


def test_a_check_or_mutant_of_no_rule_is_a_fault_and_no_crash(vlm_reroute, monkeypatch):
    unknown = replace(traceability.checks()[0], rules=("RR-SEL-999",))
    monkeypatch.setattr(traceability, "checks", lambda: (unknown,))
    monkeypatch.setattr(traceability, "MUTANTS", (replace(MUTANTS[0], rule="RR-SEL-998"),))
    code, out, _ = vlm_reroute("rules", "--check")
    assert code == 1
    assert "check config exercises RR-SEL-999, and no such rule exists" in out
    assert "mutant unknown-field-ignored breaks RR-SEL-998, and no such rule exists" in out
