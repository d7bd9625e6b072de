"""What a processor returns, in its variants: precisions, features made beforehand, seconds per frame, real processors."""

import inspect

import pytest
import torch
from PIL import Image
from reroute_conformance.tiny.qwen import tiny_qwen
from reroute_reference import forced_logits, run
from reroute_reference.families import PLAIN_ATTENTION, block_kinds, text_decoder_of
from reroute_spec import RerouteError, Schedule
from transformers import BatchFeature

from . import zoo
from .zoo import PICTURE, SMALL

LAYOUT = ("ttt", PICTURE, "tt", SMALL, "tttt")
every_family = pytest.mark.parametrize("family", zoo.FAMILIES)
qwen_family = pytest.mark.parametrize("family", zoo.QWEN)


@pytest.fixture
def dense():
    """The unrouted logits of a batch; what the forward leaves on the model is taken away again."""

    def logits(model, batch):
        with torch.no_grad():
            found = model(**batch).logits
        if hasattr(model.model, "rope_deltas"):
            model.model.rope_deltas = None
        return found

    return logits


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_runs_and_is_the_models_own_unrouted(family, dtype, dense):
    model, batch = zoo.model(family), BatchFeature(zoo.inputs(family, LAYOUT))
    low = type(model)._from_config(model.config, attn_implementation="sdpa").eval()
    low.load_state_dict(model.state_dict())
    low = low.to(dtype)
    assert torch.equal(run(low, batch, zoo.UNROUTED).logits, dense(low, batch))
    routed = run(low, batch, zoo.pyramid(family))
    assert routed.logits.dtype == dtype
    assert routed.logits.isfinite().all()
    later = run(low, zoo.text(family, 3), zoo.pyramid(family), cache=routed.cache)
    assert later.logits.dtype == dtype
    again = run(model, batch, zoo.pyramid(family), dtype=dtype)
    assert again.traces == routed.traces


@qwen_family
def test_features_made_beforehand_are_taken(family):
    model, batch = zoo.model(family), zoo.inputs(family, LAYOUT)
    with torch.no_grad():
        made = {"image": model.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"])}
    before = {name: x for name, x in batch.items() if name != "pixel_values"}
    given = {**before, "mm_encoder_outputs": made}
    if "mm_encoder_outputs" not in inspect.signature(model.model.forward).parameters:
        with pytest.raises(RerouteError, match="do not match"):  # an older transformers would leave them out
            run(model, given, zoo.pyramid(family))
        return
    ours = run(model, given, zoo.pyramid(family))
    assert torch.equal(ours.logits, run(model, batch, zoo.pyramid(family)).logits)


@every_family
def test_a_generated_token_may_be_a_placeholders_id(family):
    model = zoo.model(family)
    routing = zoo.pyramid(family, scope="image")
    start = run(model, zoo.inputs(family, LAYOUT), routing)
    token = torch.tensor([[model.config.image_token_id]])
    output = run(model, {"input_ids": token}, routing, cache=start.cache)
    assert output.traces[0].decisions == ()
    assert output.cache[0].length == start.cache[0].length + 1
    forced = start.cache[0].copy()
    torch.testing.assert_close(output.logits[0], forced_logits(model, forced, token[0]), rtol=1e-4, atol=1e-4)


@qwen_family
def test_embeddings_do_not_inherit_the_positions_of_the_request_before(family):
    model, batch = zoo.model(family), zoo.inputs(family, LAYOUT)
    embeds, _ = zoo.embeddings(family, batch)
    given = {
        "inputs_embeds": embeds[None],
        "visual_mask": torch.tensor([zoo.visual_flags(family, batch)]),
    }
    clean = run(model, given, zoo.pyramid(family))
    model.model.rope_deltas = torch.tensor([[-30]])  # as the model's own forward leaves it
    try:
        again = run(model, given, zoo.pyramid(family))
    finally:
        model.model.rope_deltas = None
    assert torch.equal(clean.logits, again.logits)
    assert clean.cache[0].next_position == again.cache[0].next_position == embeds.shape[0]


def test_seconds_per_frame_space_a_video_and_are_not_rounded(dense):
    model, batch = zoo.model("qwen2_5_vl"), zoo.inputs("qwen2_5_vl", ("tt", (4, 4, 4), "tt"))
    plain = run(model, batch, zoo.UNROUTED).cache[0].next_position
    batch["second_per_grid_ts"] = torch.tensor([3.7])
    output = run(model, batch, zoo.UNROUTED)
    assert torch.equal(output.logits, dense(model, batch))
    assert output.cache[0].next_position > plain + 20  # four positions per second, three frames later
    low = run(model, batch, zoo.UNROUTED, dtype=torch.bfloat16)
    assert low.cache[0].next_position == output.cache[0].next_position


def test_a_preset_snaps_to_the_plain_attention_blocks_of_a_hybrid():
    model = tiny_qwen("qwen3_5", num_layers=32, std=0.1)
    kinds = block_kinds(text_decoder_of(model)[0])
    plain = [layer for layer, kind in enumerate(kinds) if kind == PLAIN_ATTENTION]
    routing = Schedule.load("reroute-pdrop-192", 32, plain)
    output = run(model, zoo.inputs("qwen3_5", LAYOUT), routing)
    assert [record.layer for record in output.traces[0].decisions] == [3, 7, 15, 23]
    assert [layer for layer, rows in enumerate(output.kv_lengths) if rows] == plain


@qwen_family
def test_the_image_processors_own_grids_are_read(family, dense):
    """Pictures of three sizes through the real image processor of the family."""
    from transformers import Qwen2VLImageProcessor

    pictures = [Image.new("RGB", size, color) for size, color in (((112, 84), "red"), ((56, 140), "blue"))]
    processor = Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=112 * 112, patch_size=14, merge_size=2)
    seen = processor(pictures, return_tensors="pt")
    grids = [tuple(grid) for grid in seen["image_grid_thw"].tolist()]
    batch = {**zoo.inputs(family, ("tt", grids[0], "t", grids[1], "ttt")), **seen}
    model = zoo.model(family)
    assert torch.equal(run(model, batch, zoo.UNROUTED).logits, dense(model, batch))
    layer = zoo.DECIDING[family][0]
    output = run(model, batch, zoo.schedule((layer, 2), scope="image"))
    first = grids[0][1] * grids[0][2] // 4
    selected = output.traces[0].decisions[0].selected
    assert (len(selected), sum(ordinal < first for ordinal in selected)) == (4, 2)
