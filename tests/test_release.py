"""Both implementations agree with what the paper's published code did."""

import pytest
import reroute_optimized
import reroute_reference
import torch

from . import release

LLAVA = [case["family"] == "llava" for case in release.CASES]


@pytest.mark.parametrize("case", release.CASES, ids=release.IDS)
def test_the_reference_agrees_with_the_published_release(case):
    model, inputs, schedule = release.model(case["family"]), release.inputs(case), release.schedule(case)
    output = reroute_reference.run(model, inputs, schedule)
    assert release.selections(case, output.traces[0]) == case["selected"]
    assert list(output.kv_lengths) == case["kv_lengths"]
    assert (output.logits[:, -1] - release.output(case, "last_logits")).abs().max() < 1e-4
    everywhere = release.output(case, "logits")
    if everywhere is not None:
        assert (output.logits - everywhere).abs().max() < 1e-4
    tokens = reroute_reference.generate(model, inputs, schedule, 6)
    assert tokens[0, -6:].tolist() == case["greedy"]


@pytest.mark.parametrize(
    "case",
    [case for case, chosen in zip(release.CASES, LLAVA, strict=True) if chosen],
    ids=[name for name, chosen in zip(release.IDS, LLAVA, strict=True) if chosen],
)
def test_the_optimized_engine_agrees_with_the_published_release(case):
    llava, inputs = release.model("llava"), release.inputs(case)
    with reroute_optimized.routed(llava, release.schedule(case), backend="torch") as routed, torch.no_grad():
        logits = llava(**inputs).logits
        assert release.selections(case, routed.traces[0]) == case["selected"]
        assert list(routed.kv_lengths) == case["kv_lengths"]
        assert (logits[:, -1] - release.output(case, "last_logits")).abs().max() < 1e-4
        tokens = llava.generate(**inputs, max_new_tokens=6, do_sample=False)
        assert tokens[0, -6:].tolist() == case["greedy"]
