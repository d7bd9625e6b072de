"""Both implementations agree with what the paper's published code did."""

import pytest
import reroute_optimized
import reroute_reference
import torch
from reroute_reference.inputs import read_prompts
from reroute_reference.model import as_decoder

from . import release

LLAVA = [case for case in release.CASES if release.family(case) == "llava"]


def selections(trace):
    return [list(record.selected) for record in trace.decisions]


def test_all_that_was_measured_is_here():
    assert len(LLAVA) == 3 * 6
    assert len(release.CASES) == 3 * 6 + 6 * 6


@pytest.mark.parametrize("case", release.CASES, ids=release.IDS)
def test_the_reference_agrees_with_the_published_release(case):
    model, inputs, schedule = (
        release.model(release.family(case)),
        release.inputs(case),
        release.schedule(case),
    )
    selected, kv_rows, greedy, logits = release.measured(case)
    output = reroute_reference.run(model, inputs, schedule)
    assert selections(output.traces[0]) == selected
    assert list(output.kv_lengths) == kv_rows
    assert (output.logits[0, -len(logits) :] - logits).abs().max() < 1e-4
    tokens = reroute_reference.generate(model, inputs, schedule, 6)
    assert tokens[0, -6:].tolist() == greedy


@pytest.mark.parametrize("case", release.CASES, ids=release.IDS)
def test_the_optimized_engine_agrees_with_the_published_release(case):
    model, inputs = release.model(release.family(case)), release.inputs(case)
    selected, kv_rows, greedy, measured = release.measured(case)
    with reroute_optimized.routed(model, release.schedule(case), backend="torch") as routed, torch.no_grad():
        logits = model(**inputs).logits
        assert selections(routed.traces[0]) == selected
        assert list(routed.kv_lengths) == kv_rows
        assert (logits[0, -1] - measured[-1]).abs().max() < 1e-4
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        assert tokens[0, -6:].tolist() == greedy


@pytest.mark.parametrize("case", release.CASES, ids=release.IDS)
def test_a_vector_holds_what_the_model_gives_its_text_decoder(case):
    """Embeddings after the merge, flags and positions: how these vectors were made from the models."""
    model = release.model(release.family(case))
    with torch.no_grad():
        prompt = read_prompts(as_decoder(model, None), release.inputs(case))[0]
    request = case.data["inputs"]["requests"][0]
    assert prompt.visual == request["visual"]
    held = case.tensor(request["embeddings"]["tensor"])
    assert (prompt.embeddings - held).abs().max() < 1e-5  # the vision tower's last bits are the processor's
    positions = case.tensor(request["positions"]["tensor"]) if "positions" in request else None
    assert prompt.positions.tolist() == (list(range(len(held))) if positions is None else positions.tolist())
