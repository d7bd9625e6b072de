"""Nüwa's first stage against its definition written out in loops, and what the decoder makes of it."""

import math

import pytest
import torch
from reroute_conformance.tiny import NARROW_IMAGE as IMAGE
from reroute_conformance.tiny import NARROW_PATCHES as PATCHES
from reroute_conformance.tiny import narrow_llava, picture_inputs, tiny_llava
from reroute_conformance.tiny.qwen import tiny_qwen
from reroute_reference import nuwa, run
from reroute_spec import RerouteError, Schedule, plan

from . import oracle

BEFORE, AFTER = 5, 7


@pytest.fixture(scope="module")
def llava():
    """24 blocks of CLIP over 24 x 24 patches, 32 blocks of Llama, all of them narrow."""
    return narrow_llava()


def inputs(images=1, after=AFTER, pad=0):
    generator = torch.Generator().manual_seed(images)
    words = torch.randint(3, 180, (BEFORE + after,), generator=generator).tolist()
    ids = [0] * pad + words[:BEFORE] + [IMAGE] * (PATCHES * images) + words[BEFORE:]
    tokens = torch.tensor([ids])
    mask = (torch.arange(len(ids)) >= pad).long()[None]
    pixels = torch.randn(images, 3, 336, 336, generator=generator)
    return {"input_ids": tokens, "attention_mask": mask, "pixel_values": pixels}


def defined(model, pixels, tier):
    """Pillars and their rows, patch by patch as the rules say it."""
    with torch.no_grad():
        seen = model.model.vision_tower(pixels, output_hidden_states=True, output_attentions=True)
    metric = seen.attentions[22][0, :, 0, 1:].sum(0).double().tolist()
    states = torch.stack(seen.hidden_states[16:25]).mean(0)[0, 1:].double()
    per_region, count = {"64": (1, 112), "128": (2, 224), "192": (3, 336)}[tier]
    regions = {}
    for patch in range(PATCHES):
        regions.setdefault((patch // 24 // 2, patch % 24 // 2), []).append(patch)
    assert len(regions) == 144
    best = [
        p for region in regions.values() for p in sorted(region, key=lambda p: (-metric[p], p))[:per_region]
    ]
    pillars = sorted(sorted(best, key=lambda p: (-metric[p], p))[:count])
    ordered = sorted(metric[p] for p in pillars)
    place = 0.55 * (count - 1)
    low = math.floor(place)
    quantile = ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])
    unit = states / states.norm(dim=-1, keepdim=True)
    features = []
    for i in pillars:
        weights = torch.zeros(PATCHES, dtype=torch.float64)
        for p in range(PATCHES) if metric[i] < quantile else [i]:
            distance = math.hypot(i // 24 - p // 24, i % 24 - p % 24)
            weights[p] = max(0.0, float(unit[i] @ unit[p])) * (1 - min(distance / math.sqrt(280), 1))
        weights = weights / (weights.sum() + 1e-8)
        weights[i] = 1
        features.append(weights @ seen.hidden_states[-2][0, 1:].double())
    with torch.no_grad():
        return pillars, model.model.multi_modal_projector(torch.stack(features).float())


@pytest.mark.parametrize("tier", ["64", "128", "192"])
def test_pillars_and_their_rows_are_as_defined(llava, tier):
    batch = inputs()
    left = nuwa.first_stage(llava, batch, tier)
    pillars, rows = defined(llava, batch["pixel_values"], tier)
    positions = left["position_ids"][0]
    visual = left["visual_mask"][0]
    assert (positions[visual] - BEFORE).tolist() == pillars
    torch.testing.assert_close(left["inputs_embeds"][0, visual], rows, rtol=1e-3, atol=1e-4)
    assert left["images"] == [[len(pillars)]]
    assert left["pillars"] == [pillars]
    replayed = nuwa.first_stage(llava, batch, tier, pillars=[pillars[::2]])
    assert replayed["pillars"] == [pillars[::2]]
    assert torch.equal(replayed["metric"], left["metric"])
    text = [*range(BEFORE), *range(BEFORE + PATCHES, BEFORE + PATCHES + AFTER)]
    assert positions[~visual].tolist() == text
    words = llava.get_input_embeddings()(batch["input_ids"][0, text])
    assert torch.equal(left["inputs_embeds"][0, ~visual], words)


def test_pillars_follow_regions_and_ties_go_to_the_lower_patch():
    flat = nuwa.select_pillars([1.0] * PATCHES, nuwa.TIERS["64"])
    first_of_region = [row * 24 + column for row in range(0, 24, 2) for column in range(0, 24, 2)]
    assert flat == first_of_region[:112]
    scores = [0.0] * PATCHES
    scores[25], scores[1], scores[24] = 3.0, 2.0, 1.0  # one region: 0, 1, 24, 25
    assert {0, 1, 24, 25} & set(nuwa.select_pillars(scores, nuwa.TIERS["64"])) == {25}
    assert {1, 24, 25} <= set(nuwa.select_pillars(scores, nuwa.TIERS["192"]))


def test_a_pillar_among_the_best_takes_only_itself():
    states = torch.randn(PATCHES, 8, generator=torch.Generator().manual_seed(1)).abs()
    scores = torch.arange(float(PATCHES))
    pillars = torch.tensor([3, 100, 200, 500])
    taken = nuwa.weights(states, scores, pillars)
    assert (taken > 0).sum(-1).tolist()[2:] == [1, 1]  # at or above the quantile of 0.55, which is 165
    assert (taken > 0).sum(-1)[:2].min() > 1
    assert torch.equal(taken[range(4), pillars], torch.ones(4))


@pytest.mark.parametrize("preset", ["nuwa-64", "reroute-nuwa-64"])
def test_the_second_stage_agrees_with_the_oracle(llava, preset):
    batch, routing = nuwa.first_stage(llava, inputs(), "64"), Schedule.load(preset)
    output = run(llava, batch, routing)
    flags = batch["visual_mask"][0].tolist()
    counts = [stage.kept for stage in plan(routing, 32, flags).stages if stage.index]
    assert counts == [16] * len(routing.decisions)
    positions = batch["position_ids"].expand(3, -1)
    decoder = oracle.wide(llava).model.language_model
    right = oracle.routed(decoder, batch["inputs_embeds"][0], flags, routing, counts, positions=positions)
    assert {r.layer: list(r.selected) for r in output.traces[0].decisions} == right.selected
    assert list(output.kv_lengths) == right.ran
    states = right.states[right.alive]
    torch.testing.assert_close(output.residuals[0][32].double(), states, rtol=1e-3, atol=1e-3)
    assert output.cache[0].next_position == BEFORE + PATCHES + AFTER  # as with all patches
    token = run(llava, {"input_ids": torch.tensor([[7]])}, routing, cache=output.cache)
    assert token.cache[0].next_position == BEFORE + PATCHES + AFTER + 1


def test_a_batch_with_padding_and_two_images_is_its_requests_alone(llava):
    one, two = inputs(1, pad=PATCHES + 2), inputs(2, after=AFTER + 2)
    batch = {name: torch.cat([one[name], two[name]]) for name in one}
    together = nuwa.first_stage(llava, batch, "64")
    assert together["images"] == [[112], [112, 112]]
    for b, alone in enumerate((inputs(1), two)):
        single = nuwa.first_stage(llava, alone, "64")
        real = together["attention_mask"][b].bool()
        for name in ("visual_mask", "position_ids"):
            assert torch.equal(together[name][b, real], single[name][0])
        torch.testing.assert_close(together["inputs_embeds"][b, real], single["inputs_embeds"][0])
    per_image = Schedule.from_dict(
        {"action": "reroute", "decisions": [{"layer": 2, "keep": 5}], "scope": "image"}
    )
    output = run(llava, together, per_image)
    assert [len(trace.decisions[0].selected) for trace in output.traces] == [5, 10]


def test_another_number_of_pillars_keeps_a_tenth():
    routing = Schedule.load("nuwa-64")
    assert nuwa.second_stage(routing, 112) == routing
    tenth = nuwa.second_stage(routing, 224)
    assert [str(decision.keep) for decision in tenth.decisions] == ["1/10"]
    assert tenth.score == routing.score
    with pytest.raises(RerouteError, match="no preset of Nüwa"):
        nuwa.second_stage(Schedule.load("pdrop-64"), 112)


def test_float64_is_the_same_stage_more_exactly(llava):
    narrow, exact = (nuwa.first_stage(llava, inputs(), "64", dtype=dtype) for dtype in (None, torch.float64))
    assert exact["inputs_embeds"].dtype == torch.float64
    assert torch.equal(narrow["position_ids"], exact["position_ids"])
    error = (narrow["inputs_embeds"] - exact["inputs_embeds"]).abs().max()
    assert 0 < error < 1e-4


def test_what_the_first_stage_is_not_defined_for_is_refused(llava):
    for model, match in (
        (tiny_llava(0), "2 blocks over 6 x 6 patches"),
        (tiny_qwen("qwen2_5_vl"), "Qwen2.5-VL has no described vision tower"),
    ):
        with pytest.raises(RerouteError, match=match):
            nuwa.first_stage(model, picture_inputs(), "64")
    with pytest.raises(RerouteError, match="tier: '65' is not known"):
        nuwa.first_stage(llava, inputs(), "65")
    batch = inputs()
    del batch["pixel_values"]
    with pytest.raises(RerouteError, match="pixel_values"):
        nuwa.first_stage(llava, batch, "64")
    with pytest.raises(RerouteError, match="do not match"):
        nuwa.first_stage(llava, {**inputs(), "pixel_values": torch.zeros(2, 3, 336, 336)}, "64")


def test_what_would_be_dropped_or_misread_is_refused(llava):
    batch = inputs(pad=3)
    hiding = batch["attention_mask"].clone()
    hiding[0, 3 + BEFORE + 10 : 3 + BEFORE + 34] = 0
    ids = batch["input_ids"]
    for name, value in (("attention_mask", hiding), ("labels", ids), ("position_ids", ids)):
        with pytest.raises(RerouteError) as error:
            nuwa.first_stage(llava, {**batch, name: value}, "64")
        assert error.value.field == name


def test_arguments_of_another_type(llava):
    preset = Schedule.load("nuwa-64")
    for field, call in (
        ("model", lambda: nuwa.first_stage("llava", inputs(), "64")),
        ("tier", lambda: nuwa.first_stage(llava, inputs(), 64)),
        ("tier", lambda: nuwa.first_stage(llava, inputs(), ["64"])),
        ("dtype", lambda: nuwa.first_stage(llava, inputs(), "64", dtype="float64")),
        ("dtype", lambda: nuwa.first_stage(llava, inputs(), "64", dtype=torch.int32)),
        ("inputs", lambda: nuwa.first_stage(llava, None, "64")),
        ("schedule", lambda: nuwa.second_stage("nuwa-64", 112)),
        ("pillars", lambda: nuwa.second_stage(preset, "112")),
        ("pillars", lambda: nuwa.second_stage(preset, 0)),
        ("pillars", lambda: nuwa.second_stage(preset, True)),
    ):
        with pytest.raises(RerouteError) as error:
            call()
        assert error.value.field == field
