"""What the examples show, runs, and cites rules that exist."""

import re
import runpy
from pathlib import Path

from reroute_spec.rules import rules

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_walk_through_the_reference_follows_one_token_with_rule_numbers(capsys):
    runpy.run_path(str(EXAMPLES / "reference_walkthrough.py"), run_name="__main__")
    printed = capsys.readouterr().out
    cited = re.findall(r"\[(RR-[A-Z]+-\d{3})\]$", printed, re.MULTILINE)
    assert len(cited) > 20
    assert set(cited) <= rules().keys()
    assert "deferred" in printed
    assert "its state changes by 0.0, bit for bit" in printed
    assert "selected, and re-enters" in printed
    assert "joins every cache: (47, 20, 20, 20, 20, 20, 20, 20)" in printed
