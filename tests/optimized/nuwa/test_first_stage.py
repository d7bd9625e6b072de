"""Nüwa's first stage as a step of the vision tower, beside the reference's."""

from functools import cache

import pytest
import torch
from reroute_conformance.tiny import NARROW_IMAGE, NARROW_PATCHES, narrow_llava
from reroute_optimized import apply, routed
from reroute_optimized.conforming.target import torch_target
from reroute_reference import run
from reroute_reference.nuwa import first_stage
from reroute_spec import RerouteError, Schedule
from torch.testing import assert_close

from .. import tiny

LAYERS = 8


@cache
def llava():
    model = narrow_llava(num_layers=LAYERS, heads=(4, 2), attention="sdpa")
    model.generation_config.eos_token_id = None
    return model


def prompt(before, images, after):
    return [1, *range(3, 3 + before), *[NARROW_IMAGE] * (NARROW_PATCHES * images), *range(50, 50 + after)]


def batch(rows, side="left"):
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    ids = [p + r if side == "left" else r + p for p, r in zip(pads, rows, strict=True)]
    mask = [p + [1] * len(r) if side == "left" else [1] * len(r) + p for p, r in zip(pads, rows, strict=True)]
    inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    count = sum(row.count(NARROW_IMAGE) // NARROW_PATCHES for row in rows)
    pixels = torch.randn(count, 3, 336, 336, generator=torch.Generator().manual_seed(1))
    return {**inputs, "pixel_values": pixels} if count else inputs


ROWS = [prompt(3, 1, 5), prompt(1, 2, 2), prompt(4, 0, 4)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tier", ["64", "192"])
def test_what_it_leaves_is_the_references(tier, side):
    inputs = batch(ROWS, side)
    expected, own = first_stage(llava(), inputs, tier), torch_target().first_stage(llava(), inputs, tier)
    for b in range(len(ROWS)):
        theirs, mine = expected["attention_mask"][b].bool(), own["attention_mask"][b].bool()
        for name in ("position_ids", "visual_mask"):
            assert torch.equal(own[name][b][mine], expected[name][b][theirs])
        assert_close(
            own["inputs_embeds"][b][mine], expected["inputs_embeds"][b][theirs], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("name", ["nuwa-64", "reroute-nuwa-128"])
def test_the_preset_runs_both_stages(name):
    model, inputs, tier = llava(), batch(ROWS[:1]), name.rpartition("-")[2]
    left = first_stage(model, inputs, tier)
    expected = run(model, left, Schedule.load(name, LAYERS))
    with routed(model, name) as result:
        out = model(**inputs)
    kept = {"64": 112, "128": 224}[tier]
    assert result.traces[0].num_rows == len(ROWS[0]) - NARROW_PATCHES + kept
    assert [d.selected for d in result.traces[0].decisions] == [
        d.selected for d in expected.traces[0].decisions
    ]
    assert_close(out.logits[0], expected.logits[0], atol=1e-4, rtol=1e-4)
    state = out.past_key_values.routing
    assert state.num_rows.tolist() == [result.traces[0].num_rows]
    assert state.next_positions[:, -1].tolist() == [len(ROWS[0])]
    assert out.past_key_values.get_seq_length() == len(ROWS[0])


def test_a_batch_generates_as_each_alone_and_several_images_keep_a_tenth():
    model = llava()
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with routed(model, "nuwa-64") as result:
        together = model.generate(**batch(ROWS), **options)
        assert [len(d.selected) for t in result.traces for d in t.decisions] == [16, 22]
        pixels = batch(ROWS)["pixel_values"]
        for row, own, images in zip(ROWS, together, (pixels[:1], pixels[1:], None), strict=True):
            single = {"input_ids": torch.tensor([row])}
            if images is not None:
                single["pixel_values"] = images
            assert torch.equal(model.generate(**single, **options)[0, -4:], own[-4:])
        beams = model.generate(**batch(ROWS[:1]), **options, num_beams=2)
        assert beams.shape == (1, len(ROWS[0]) + 4)


def test_later_turns_bring_images_of_their_own():
    model, first = llava(), batch(ROWS)
    with routed(model, "nuwa-64") as result:
        cache = model(**first).past_key_values
        mask = torch.cat([first["attention_mask"], torch.ones(3, 2, dtype=torch.long)], dim=1)
        model(input_ids=torch.tensor([[5, 6]] * 3), attention_mask=mask, past_key_values=cache)
        turn = batch([prompt(3, 1, 5), [1, *[7] * 8, *[NARROW_IMAGE] * NARROW_PATCHES], [8] * 585])
        del turn["attention_mask"]
        model(**turn, past_key_values=cache)
        model(input_ids=torch.tensor([[5]] * 3), past_key_values=cache)
        assert [t.num_rows for t in result.traces] == [121, 121, 585]
    assert cache.routing.num_rows.tolist() == [121 + 2 + 121 + 1, 228 + 2 + 121 + 1, 9 + 2 + 585 + 1]


def test_it_is_refused_where_it_is_not_defined_and_nothing_stays():
    model = tiny.llava()
    with pytest.raises(RerouteError, match=r"^model: its vision tower has 4 x 4 patches"):
        apply(model, "nuwa-64")
    model, before = llava(), batch(ROWS[:1])
    plain = model(**before).logits
    with routed(model, "nuwa-64"), pytest.raises(RerouteError, match=r"^labels"):
        model(**before, labels=before["input_ids"])
    assert torch.equal(model(**before).logits, plain)
    with pytest.raises(RerouteError, match=r"^tier"):
        torch_target().first_stage(model, before, "65")
    with pytest.raises(RerouteError, match=r"^model"):
        torch_target().first_stage(tiny.text_model(), before, "64")
