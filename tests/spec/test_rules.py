"""The chapters are the source of rules.json, and whoever cites a rule cites one that exists."""

import re
import subprocess
import sys
from pathlib import Path

from reroute_spec.rules import parse, rules, to_json

ROOT = Path(__file__).parents[2]
SOURCES = [path for part in ("spec", "reference", "conformance") for path in (ROOT / part).rglob("*.py")]


def test_rules_json_is_what_the_chapters_say():
    assert (ROOT / "spec/reroute_spec/rules.json").read_text("utf-8") == to_json(parse(ROOT / "spec"))


def test_every_cited_rule_exists():
    cited = {rule for path in SOURCES for rule in re.findall(r"RR-[A-Z]+-\d{3}", path.read_text("utf-8"))}
    assert len(cited) > 30
    assert cited <= rules().keys()


def test_the_specification_needs_no_torch():
    code = "import reroute_spec, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
