"""The enumeration and the counterexample of spec/proofs hold, and can fail; Coq itself runs in `make proofs`."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import reroute_spec.trace
import torch
from reroute_reference import CanonicalDecoder, run
from reroute_spec import Schedule, select
from reroute_spec.rules import rules

PROOFS = Path(__file__).parents[2] / "spec" / "proofs"
STEMS = {path.stem for path in PROOFS.glob("*.py")}


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(PROOFS))
    yield
    for stem in STEMS:
        sys.modules.pop(stem, None)


@pytest.mark.slow
def test_every_property_of_the_enumeration_holds():
    counts = importlib.import_module("enumeration").main()
    assert len(counts) == 13
    assert sum(counts.values()) > 1_000_000
    assert min(counts.values()) > 300


@pytest.mark.parametrize(
    "wrong",
    [
        lambda scores, k: select(scores[::-1], k),  # other rows
        lambda scores, k: select(scores, k)[::-1],  # not ascending
        lambda scores, k: sorted(sorted(range(len(scores)), key=lambda v: (-scores[v], -v))[:k]),  # late ties
    ],
)
def test_the_enumeration_finds_a_wrong_selection(wrong, monkeypatch):
    checks = importlib.import_module("enum_select")
    monkeypatch.setattr(checks, "select", wrong)
    with pytest.raises(checks.PropertyError, match="ascending"):
        checks.selections()


def test_the_enumeration_finds_a_selection_that_ignores_spans(monkeypatch):
    def over_all_rows(plan, stage, pool, scores):
        return tuple(pool[i] for i in select(scores, sum(plan.stages[0].budgets)))

    checks = importlib.import_module("enum_select")
    monkeypatch.setattr(reroute_spec.trace, "select_in_spans", over_all_rows)
    with pytest.raises(checks.PropertyError, match="best per span"):
        checks.interleaved_spans()


def test_the_counterexample_is_found_again_and_is_the_one_that_is_written_down():
    search = importlib.import_module("counterexample")
    assert search.main() == {"two_heads": 6818, "one_head": 2275}
    weights, _ = search.search(heads=2, bound=3)
    written = (PROOFS / "counterexample.md").read_text("utf-8")
    assert search.table(weights) in written
    for number, head in enumerate(weights):
        assert f"| {number} | {' | '.join(map(str, head))} |" in written


@pytest.mark.parametrize(
    ("action", "pool"), [("reroute", "all"), ("reroute", "survivors"), ("delete", "survivors")]
)
def test_the_reference_takes_the_counterexamples_decisions(action, pool):
    search = importlib.import_module("counterexample")
    weights, _ = search.search(heads=2, bound=3)
    config, tensors, embeddings = search.canonical(weights)
    shapes = config.weight_shapes()
    decoder = CanonicalDecoder(
        config,
        {
            name: torch.tensor(rows, dtype=torch.float64).reshape(shapes[name])
            for name, rows in tensors.items()
        },
    )
    inputs = {
        "inputs_embeds": torch.tensor([embeddings], dtype=torch.float64),
        "visual_mask": torch.tensor([[True, True, True, False]]),
    }
    decisions = [{"layer": layer, "keep": keep} for layer, keep in enumerate(search.KEEPS)]
    given = Schedule.from_dict({"action": action, "pool": pool, "decisions": decisions})
    made = run(decoder, inputs, given).traces[0].decisions
    for step, decision in zip(search.decide(weights, action, pool), made, strict=True):
        assert decision.selected == step.selected
        assert decision.scores == pytest.approx([float(step.scores[v]) for v in decision.pool], rel=1e-12)


def test_every_theorem_cites_a_rule_and_is_asked_what_it_assumes():
    check = importlib.import_module("check")
    source = (PROOFS / "Route.v").read_text("utf-8")
    proved = check.statements(source)
    answers = (check.CLOSED + "\n") * len(proved)
    assert check.faults(source, answers) == []
    assert check.faults(source, answers + "Axioms:\nfunctional_extensionality\n") != []
    unasked = source.replace("Print Assumptions gather_scatter.\n", "")
    assert check.faults(unasked, answers) != []


def test_every_rule_that_the_proofs_cite_exists():
    for path in (*PROOFS.glob("*.md"), *PROOFS.glob("*.v")):
        cited = set(re.findall(r"RR-[A-Z]+-\d{3}", path.read_text("utf-8")))
        assert cited <= rules().keys(), path
