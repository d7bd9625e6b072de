"""Every family against the dense oracle and against its own unrouted model."""

import pytest
import torch
from reroute_reference import run
from reroute_spec import plan

from . import oracle, zoo
from .zoo import PICTURE, SMALL

every_family = pytest.mark.parametrize("family", zoo.FAMILIES)
qwen_family = pytest.mark.parametrize("family", zoo.QWEN)
LAYOUTS = {
    "one image": ("ttt", PICTURE, "ttttt"),
    "two images": ("tt", PICTURE, "tt", SMALL, "tttt"),
    "ends in its image": ("tt", PICTURE),
    "video": ("tt", (2, 6, 6), "ttt", SMALL, "ttt"),
}
RULES = {
    "reroute": {},
    "delete": {"action": "delete"},
    "survivors": {"pool": "survivors"},
    "last 3, max": {"score": {"query": "last_n", "n": 3, "heads": "max"}},
    "last 99": {"action": "delete", "score": {"query": "last_n", "n": 99}},
}


def agree(family, attention, batch, routing):
    output = run(zoo.model(family, attention), batch, routing)
    right = zoo.oracle_run(family, batch, routing)
    assert {record.layer: list(record.selected) for record in output.traces[0].decisions} == right.selected
    assert list(output.kv_lengths) == list(output.traces[0].kv_rows) == right.ran
    states = right.states[right.alive]
    zoo.rows_close(output.residuals[0][zoo.LAYERS], states, family)
    zoo.rows_close(output.logits[0], zoo.logits(family, states), family)
    return output


@every_family
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_agrees_with_a_dense_masked_forward(family, attention, rule, layout):
    if family == "llava" and layout == "video":
        layout = "two images"
    agree(family, attention, zoo.inputs(family, LAYOUTS[layout]), zoo.pyramid(family, **RULES[rule]))


@every_family
@pytest.mark.parametrize("action", ["reroute", "delete"])
def test_decisions_at_the_first_and_the_last_block_that_can(family, action):
    layers = (3, 7) if family == "qwen3_5" else (0, 4, 7)
    routing = zoo.schedule(*((layer, "0.2") for layer in layers), action=action)
    agree(family, "sdpa", zoo.inputs(family, LAYOUTS["one image"]), routing)


@every_family
@pytest.mark.parametrize("action", ["reroute", "delete"])
def test_one_visual_row_and_budgets_that_keep_all(family, action):
    batch = zoo.inputs(family, ("ttt", PICTURE, "tt"))
    agree(family, "sdpa", batch, zoo.pyramid(family, action, (99, 99, 99)))
    agree(family, "sdpa", batch, zoo.pyramid(family, action, (1, 1, 1)))
    if family != "llava":
        one = zoo.inputs(family, ("ttt", (1, 2, 2), "tt"))
        output = agree(family, "sdpa", one, zoo.pyramid(family, action))
        assert all(record.selected == (0,) for record in output.traces[0].decisions)


@every_family
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", [*LAYOUTS.values(), ("tttttt",)])
def test_keep_1_is_the_unrouted_model_bit_for_bit(family, attention, layout):
    if family == "llava" and (2, 6, 6) in layout:
        layout = LAYOUTS["two images"]
    net, batch = zoo.model(family, attention), zoo.inputs(family, layout)
    with torch.no_grad():
        dense = net(**batch)
    layers = zoo.DECIDING[family]
    for routing in (
        zoo.UNROUTED,
        zoo.schedule(*((layer, "1") for layer in layers)),
        zoo.schedule((layers[0], "1"), action="delete"),
    ):
        output = run(net, batch, routing)
        assert torch.equal(output.logits, dense.logits)
    for layer, cached in enumerate(dense.past_key_values.layers):
        if hasattr(cached, "keys"):
            assert torch.equal(output.cache[0].keys_values(layer)[0], cached.keys[0])
        else:
            ours = output.cache[0].storage.layers[layer]
            assert torch.equal(ours.recurrent_states[0], cached.recurrent_states[0])


@qwen_family
@pytest.mark.parametrize("layout", [LAYOUTS["two images"], LAYOUTS["video"]])
def test_kept_rows_stand_where_the_unrouted_model_has_them(family, layout):
    batch = zoo.inputs(family, layout)
    first = zoo.DECIDING[family][0]
    output = run(zoo.model(family), batch, zoo.schedule((first, "0.3")))
    unrouted = run(zoo.model(family), batch, zoo.UNROUTED)
    trace = output.traces[0]
    kept = {trace.visual_rows[ordinal] for ordinal in trace.decisions[0].selected}
    rows = [row for row in range(trace.num_rows) if row in kept or row not in trace.visual_rows]
    # the deciding block is given what it would be given unrouted: its keys tell the positions
    torch.testing.assert_close(
        output.cache[0].keys_values(first)[0], unrouted.cache[0].keys_values(first)[0][:, rows]
    )
    counted = zoo.positions(family, batch)
    assert output.cache[0].next_position == unrouted.cache[0].next_position == int(counted.max()) + 1
    assert output.cache[0].length == batch["input_ids"].shape[1]


@every_family
@pytest.mark.parametrize("action", ["reroute", "delete"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_its_requests_alone_whatever_the_padding(family, action, side):
    layouts = [("t", PICTURE, "tt"), ("ttt",), ("t", PICTURE, SMALL, "tttt"), ("tt", SMALL, "t")]
    routing = zoo.pyramid(family, action)
    batch = zoo.inputs(family, *layouts, pads=(3, 0, 1, 5), side=side)
    together = run(zoo.model(family), batch, routing)
    taken = {name: 0 for name in batch if name not in ("input_ids", "attention_mask", "mm_token_type_ids")}
    for b in range(len(layouts)):
        real = batch["attention_mask"][b].bool()
        alone = {name: x[b : b + 1, real] for name, x in batch.items() if name not in taken}
        images = sum(not isinstance(part, str) for part in layouts[b])
        _take(alone, batch, taken, images, family)
        single = run(zoo.model(family), alone, routing)
        ours, theirs = together.traces[b], single.traces[0]
        assert [r.selected for r in ours.decisions] == [r.selected for r in theirs.decisions]
        assert (ours.kv_rows, ours.visual_rows) == (theirs.kv_rows, theirs.visual_rows)
        shown = together.logits[b][~together.logits[b].isnan().all(-1)]
        torch.testing.assert_close(shown, single.logits[0], rtol=2e-4, atol=2e-4)
        assert together.cache[b].next_position == single.cache[0].next_position
        if action == "delete":
            torch.testing.assert_close(together.logits[b, -1], single.logits[0, -1], rtol=2e-4, atol=2e-4)


def _take(alone, batch, taken, images, family):
    """The next images of the batch, for one request."""
    if images == 0:
        return
    if family == "llava":
        start = taken["pixel_values"]
        alone["pixel_values"] = batch["pixel_values"][start : start + images]
        taken["pixel_values"] += images
        return
    start = taken["image_grid_thw"]
    grid = batch["image_grid_thw"][start : start + images]
    patches = int(grid.prod(-1).sum())
    alone |= {
        "image_grid_thw": grid,
        "pixel_values": batch["pixel_values"][taken["pixel_values"] :][:patches],
    }
    taken["image_grid_thw"] += images
    taken["pixel_values"] += patches


@every_family
def test_scope_image_keeps_rows_of_every_image_even_where_they_touch(family):
    batch = zoo.inputs(family, ("t", PICTURE, PICTURE, "tt"))
    if family != "llava":  # leave out what stands between two images: their placeholders touch
        keep = ~((batch["input_ids"][0] == 193) | (batch["input_ids"][0] == 192))
        batch |= {name: batch[name][:, keep] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    layers = zoo.DECIDING[family]
    routing = zoo.schedule((layers[0], "0.1"), (layers[1], "0.2"), scope="image")
    if family != "llava":
        # one run of placeholders: Qwen's own rope index takes it for one image, so the caller gives positions
        batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
    for record, count in zip(run(zoo.model(family), batch, routing).traces[0].decisions, (3, 7), strict=True):
        first = [ordinal for ordinal in record.selected if ordinal < 36]
        assert len(first) == len(record.selected) - len(first) == count


@qwen_family
def test_scope_image_takes_a_video_as_one_span_between_images_of_other_sizes(family):
    layouts = [("t", PICTURE, "t", (2, 4, 8), "t", SMALL, "t"), ("tt", (3, 4, 4), "tt")]
    batch = zoo.inputs(family, *layouts)
    layer = zoo.DECIDING[family][0]
    routing = zoo.schedule((layer, "0.5"), scope="image")
    output = run(zoo.model(family), batch, routing)
    for b, sizes in enumerate(([36, 16, 6], [12])):
        flags = zoo.visual_flags(family, batch, b)
        stages = plan(routing, zoo.LAYERS, flags, sizes).stages
        selected, start = output.traces[b].decisions[0].selected, 0
        for size, budget in zip(sizes, stages[-1].budgets, strict=True):
            assert sum(start <= ordinal < start + size for ordinal in selected) == budget == size // 2
            start += size


@every_family
def test_float64_agrees_with_the_oracle_closely(family):
    flags = [c == "v" for c in "ttvvvvvvvvvvvvttvvvvvvvvtttt"]
    generator = torch.Generator().manual_seed(3)
    embeds = torch.randn(1, len(flags), 64, generator=generator)
    batch = {"inputs_embeds": embeds, "visual_mask": torch.tensor([flags])}
    counted = torch.arange(len(flags)).expand(3, -1)
    if family != "llava":
        counted = torch.randint(0, 60, (3, len(flags)), generator=generator)
        batch["position_ids"] = counted[:, None]
    routing = zoo.pyramid(family)
    output = run(zoo.model(family), batch, routing, dtype=torch.float64)
    counts = [stage.kept for stage in plan(routing, zoo.LAYERS, flags).stages if stage.index]
    decoder = zoo.wide(family).model.language_model
    right = oracle.routed(decoder, embeds[0], flags, routing, counts, positions=counted)
    assert {r.layer: list(r.selected) for r in output.traces[0].decisions} == right.selected
    torch.testing.assert_close(output.residuals[0][zoo.LAYERS], right.states, rtol=1e-9, atol=1e-9)


@every_family
def test_nothing_in_the_oracles_precision_rounds_to_float32(family):
    """Perturbing the pixels at 1e-12 is seen, and no more than seen."""
    batch = zoo.inputs(family, LAYOUTS["one image"])
    exact = run(zoo.model(family), batch, zoo.UNROUTED, dtype=torch.float64).logits
    batch["pixel_values"] = batch["pixel_values"].double() * (1 + 1e-12)
    change = (run(zoo.model(family), batch, zoo.UNROUTED, dtype=torch.float64).logits - exact).abs().max()
    assert 0 < change < 1e-8
