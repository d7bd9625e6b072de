"""The worked example: the page, the plain Python that prints it, and the reference agree number by number."""

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch
from reroute_conformance.cases.fixed import example as example_case
from reroute_reference import CanonicalDecoder, run
from reroute_spec import Schedule

SPEC = Path(__file__).parents[2] / "spec"
PAGE = (SPEC / "example.md").read_text("utf-8")


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SPEC))
        yield importlib.import_module("example")
    sys.modules.pop("example")


def test_the_page_has_the_tables_that_the_script_prints(example):
    for name, table in example.tables().items():
        assert table in PAGE, name
    assert example.route()[0].kv_rows == (6, 4, 4, 4)


def test_every_number_in_the_prose_is_in_a_table_or_worked_out_there(example):
    prose = "\n".join(line for line in PAGE.splitlines() if not line.startswith("|"))
    queries, keys = example.queries_keys(1, example.route()[1][1], range(6))
    known = [*queries[5], *keys[4], 2.4156, 1.2704, 0.6166, 1.2727, 1.3032, 0.5494, 0.6952]
    known += [
        float(number) for table in example.tables().values() for number in re.findall(r"\d+\.\d{4}", table)
    ]
    found = [float(number) for number in re.findall(r"\d+\.\d{4}\b", prose)]
    assert len(found) > 15
    for number in found:
        assert min(abs(abs(value) - number) for value in known) < 6e-5, number


def test_the_reference_runs_the_example_as_the_page_says(example):
    weights = {name: torch.tensor(value, dtype=torch.float64) for name, value in example.WEIGHTS.items()}
    inputs = {
        "inputs_embeds": torch.tensor([example.EMBEDDINGS], dtype=torch.float64),
        "visual_mask": torch.tensor([example.VISUAL]),
    }
    output = run(CanonicalDecoder(example.CONFIG, weights), inputs, Schedule.from_dict(example.SCHEDULE))
    _, states, decisions = example.route()
    for layer, residual in output.residuals[0].items():
        assert residual.tolist() == [pytest.approx(x, rel=1e-9) for x in states[layer]]
    for record, (scores, selected) in zip(output.traces[0].decisions, decisions, strict=True):
        assert record.scores == pytest.approx(scores, rel=1e-9)
        assert list(record.selected) == selected
    assert output.traces[0].decisions[1].reentered == (2,)
    assert output.kv_lengths == (6, 4, 4, 4)


def test_the_suite_runs_the_same_example(example):
    case = example_case()
    assert case.schedule == example.SCHEDULE
    assert [letter == "v" for letter in case.rows[0].layout] == example.VISUAL
    assert case.embeddings == example.EMBEDDINGS
    assert case.canonical() == example.CONFIG
    assert case.weights == example.WEIGHTS
