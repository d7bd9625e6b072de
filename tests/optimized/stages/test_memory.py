"""What a routed prefill keeps is what the plan says; what it needs at its peak is no more than the unrouted one, and the stream."""

import pytest
import torch
from reroute_conformance.bench.measuring.memory import peak_bytes
from reroute_optimized import routed
from reroute_spec import Decision, Schedule
from transformers import LlamaConfig, LlamaForCausalLM

from .. import tiny

TWO = (Decision(2, "0.5"), Decision(4, "0.25"))
SCHEDULES = [
    Schedule("reroute", TWO),
    Schedule("delete", TWO),
    Schedule("reroute", (Decision(0, "0.3"), Decision(3, "0.6"))),
]
ROWS = [tiny.row(4, 1, 5, 1), tiny.row(2, 2, 3, 2), tiny.row(9, 0, 0, 3)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_caches_hold_the_plans_rows_and_no_more_storage_than_the_largest_of_each(schedule):
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    with routed(model, schedule) as result:
        cache = model(**inputs).past_key_values
    for layer, stored in enumerate(cache.layers):
        rows = [plan.kv_rows[layer] for plan in result.plan]
        held = next(held for held in cache.routing.held if held.first <= layer <= held.last)
        valid = held.valid_of(stored.keys.shape[2])
        counts = [stored.keys.shape[2]] * 3 if valid is None else valid.sum(1).tolist()
        assert counts == rows
        for table in (stored.keys, stored.values):
            assert table.untyped_storage().nbytes() == 3 * max(rows) * 2 * 16 * 4
    assert result.kv_lengths == tuple(
        max(rows) for rows in zip(*(p.kv_rows for p in result.plan), strict=True)
    )


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_prefill_needs_at_most_one_stream_more_than_the_unrouted_one(schedule, batch):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    }
    config = LlamaConfig(**{**tiny.TEXT, **sizes, "head_dim": 64})
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    rows, width = 320, 512
    embeds = torch.randn(batch, rows, width)
    mask = torch.zeros(batch, rows, dtype=torch.bool)
    mask[:, 20:290] = True
    if batch > 1:
        mask[1, 100:] = False
    unrouted = peak_bytes(lambda: model(inputs_embeds=embeds, logits_to_keep=1))
    with routed(model, schedule):
        ours = peak_bytes(lambda: model(inputs_embeds=embeds, visual_mask=mask, logits_to_keep=1))
    assert unrouted > batch * rows * width * 4
    assert ours <= unrouted + batch * rows * width * 4
