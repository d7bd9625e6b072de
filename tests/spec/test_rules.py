"""The chapters are the source of rules.json and of every check; whoever cites a rule cites one that exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from reroute_spec import RerouteError
from reroute_spec.predicates import VOCABULARY, holds, names
from reroute_spec.rules import parse, rule, rules, to_index, to_json

ROOT = Path(__file__).parents[2]
SPEC = ROOT / "spec"
README = (SPEC / "README.md").read_text("utf-8")
TEXTS = sorted(SPEC.rglob("*.md"))


def test_what_is_generated_is_what_the_chapters_say():
    parsed = parse(SPEC)
    assert (SPEC / "reroute_spec/rules.json").read_text("utf-8") == to_json(parsed)
    assert (SPEC / "INDEX.md").read_text("utf-8") == to_index(parsed)


def test_every_rule_that_a_text_cites_exists():
    for path in TEXTS:
        cited = set(re.findall(r"RR-[A-Z]+-\d{3}", path.read_text("utf-8")))
        assert cited - rules().keys() <= {"RR-SCORE-005"}, path


def test_every_rule_is_in_the_map_of_the_rulings_or_beside_it():
    chart = README[README.index("## Where the rulings are") : README.index("## Versions")]
    named = set()
    for first, last in re.findall(r"(RR-[A-Z]+-\d{3})(?: to (RR-[A-Z]+-\d{3}))?", chart):
        area, low = first.rsplit("-", 1)
        high = last.rsplit("-", 1)[1] if last else low
        named |= {f"{area}-{number:03}" for number in range(int(low), int(high) + 1)}
    assert rules().keys() <= named
    assert named - rules().keys() <= {"RR-SCORE-005"}
    assert [f"| §{n} " in chart for n in range(1, 14)] == [True] * 13


def test_every_name_in_a_check_is_defined_in_the_readme():
    section = README[README.index("## Names in checks") : README.index("## Where the rulings are")]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    defined = {re.match(r"\w+", name)[0] for row in rows for name in re.findall(r"`([^`]+)`", row)}
    used = set().union(*(names(rule_id) for rule_id in rules()))
    assert used == defined
    prose = section[: section.index("| name |")]
    assert all(name in prose for name in VOCABULARY)


def test_no_rule_recommends_and_every_must_has_a_number():
    for path in SPEC.glob("[0-9]*.md"):
        text = path.read_text("utf-8")
        assert not re.search(r"\b(SHOULD|should|SHALL|RECOMMENDED|recommended)\b", text), path
        outside = [line for line in text.splitlines() if "MUST" in line and not line.startswith("### RR-")]
        assert outside == [], path


def test_a_check_takes_its_names_and_no_others():
    assert names("RR-SEL-003") == {"s", "selected", "left_out"}
    assert holds("RR-SEL-003", s=[2, 3, 2, 2], selected=[0, 1], left_out=[2, 3])
    assert not holds("RR-SEL-003", s=[2, 3, 2, 2], selected=[1, 2], left_out=[0, 3])
    with pytest.raises(TypeError, match=r"takes \['left_out', 's', 'selected'\]"):
        holds("RR-SEL-003", s=[1.0], selected=[0])
    with pytest.raises(RerouteError, match="did you mean RR-SEL-003"):
        rule("RR-SEL-03")


RULE = """### RR-SEL-001  A title        MUST · exact · since 0.1
A statement.

    check: all(
        x for x in s)
Source: ours.
"""


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("MUST", "SHOULD", "another shape"),
        ("Source: ours.\n", "", "no statement or no source"),
        ("A statement.\n", "", "no statement or no source"),
        ("    check: all(\n        x for x in s)\n", "", "has 0 checks"),
        ("all(", "all(all(", "no Python expression"),
        ("exact", "undefined", "has 1 checks"),
    ],
)
def test_a_rule_of_another_shape_is_refused(old, new, complaint, tmp_path):
    (tmp_path / "10-x.md").write_text(RULE.replace(old, new), "utf-8")
    with pytest.raises(ValueError, match=complaint):
        parse(tmp_path)


def test_a_rule_is_read_whole(tmp_path):
    (tmp_path / "10-x.md").write_text(f"# X\n\n{RULE}\n{RULE.replace('001', '002')}", "utf-8")
    first, second = parse(tmp_path)
    assert (first.id, first.chapter, first.statement, first.check) == (
        "RR-SEL-001",
        "10-x.md",
        "A statement.",
        "all( x for x in s)",
    )
    assert (second.id, second.source, second.example) == ("RR-SEL-002", "ours.", "")
    (tmp_path / "20-y.md").write_text(RULE, "utf-8")
    with pytest.raises(ValueError, match="there twice"):
        parse(tmp_path)


def test_the_specification_needs_no_torch():
    code = "import reroute_spec, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
