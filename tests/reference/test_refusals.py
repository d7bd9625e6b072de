"""What cannot be meant is refused by name, before anything runs."""

import pytest
import torch
from reroute_conformance.cases.case import Row
from reroute_conformance.cases.decoder import DecoderCase, decoder_config
from reroute_conformance.tiny import picture_inputs, tiny_llava
from reroute_reference import CanonicalDecoder, generate, run
from reroute_spec import RerouteError, Schedule

ONE = Schedule.from_dict({"action": "reroute", "decisions": [{"layer": 2, "keep": 3}]})


@pytest.fixture(scope="module")
def llava():
    return tiny_llava(0)


def assert_refused(field, call):
    with pytest.raises(RerouteError) as error:
        call()
    assert field in error.value.field
    return str(error.value)


def test_a_decision_beyond_the_decoder(llava):
    deep = Schedule.from_dict({"action": "reroute", "decisions": [{"layer": 8, "keep": 3}]})
    assert_refused("decisions[0].layer", lambda: run(llava, picture_inputs(), deep))


def test_models_that_are_not_described(llava):
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11)).eval()
    assert "GPT2LMHeadModel is not described" in assert_refused("model", lambda: run(gpt2, {}, ONE))
    assert_refused("model", lambda: run("llava", picture_inputs(), ONE))
    assert_refused("model", lambda: run(llava.model, picture_inputs(), ONE))


def test_training_mode(llava):
    llava.train()
    try:
        assert_refused("model", lambda: run(llava, picture_inputs(), ONE))
    finally:
        llava.eval()
    part = llava.model.language_model.layers[3].mlp
    part.train()
    try:
        for dtype in (None, torch.float64):
            message = assert_refused(
                "model", lambda dtype=dtype: run(llava, picture_inputs(), ONE, dtype=dtype)
            )
            assert "layers.3.mlp is in training mode" in message
    finally:
        llava.eval()


@pytest.mark.parametrize("mask", [torch.ones(1, 3), torch.ones(1, 1, 46, 46), "ones"])
def test_attention_masks_of_another_shape(llava, mask):
    assert_refused("attention_mask", lambda: run(llava, {**picture_inputs(), "attention_mask": mask}, ONE))


def test_a_request_without_real_rows(llava):
    inputs = picture_inputs()
    inputs["attention_mask"] = torch.zeros_like(inputs["attention_mask"])
    assert_refused("attention_mask[0]", lambda: run(llava, inputs, ONE))


def test_embeddings_without_a_visual_mask(llava):
    embeds = torch.randn(1, 5, 64)
    assert_refused("visual_mask", lambda: run(llava, {"inputs_embeds": embeds}, ONE))
    assert_refused(
        "visual_mask", lambda: run(llava, {"inputs_embeds": embeds, "visual_mask": torch.ones(1, 5)}, ONE)
    )
    mask = torch.tensor([[False, True, True, True, False]])
    assert run(llava, {"inputs_embeds": embeds, "visual_mask": mask}, ONE).traces[0].visual_rows == (1, 2, 3)


def test_placeholders_that_do_not_match_the_features(llava):
    inputs = picture_inputs()
    for pixels in (torch.cat([inputs["pixel_values"]] * 2), None):
        message = assert_refused(
            "pixel_values", lambda pixels=pixels: run(llava, {**inputs, "pixel_values": pixels}, ONE)
        )
        assert "36 rows of input_ids" in message


def test_nan_names_block_and_row(llava):
    inputs = picture_inputs()
    inputs["pixel_values"][0, 0, 0, 0] = torch.nan
    message = assert_refused("scores", lambda: run(llava, inputs, ONE))
    assert "block 2" in message
    assert "prompt row" in message
    assert run(llava, picture_inputs(), ONE).logits.isfinite().all()


def test_max_new_tokens_and_missing_ids(llava):
    for count in (0, -1, 1.5, True):
        assert_refused("max_new_tokens", lambda count=count: generate(llava, picture_inputs(), ONE, count))
    assert_refused("input_ids", lambda: generate(llava, {"inputs_embeds": torch.randn(1, 2, 64)}, ONE, 1))


def test_weights_of_another_shape():
    case = DecoderCase(ONE.to_dict(), [Row("tvt")], 0, None, None, decoder_config(3, 2, 2), 0)
    config, weights = case.model()
    for change in ({"norm.weight": torch.ones(3)}, {"extra": torch.ones(1)}):
        assert_refused("weights[", lambda change=change: CanonicalDecoder(config, {**weights, **change}))
    del weights["norm.weight"]
    assert_refused("weights[norm.weight]", lambda: CanonicalDecoder(config, weights))


def test_a_decoder_with_another_kind_of_attention():
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {
        "vocab_size": 11,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
    }
    config = Qwen2Config(
        **sizes, num_key_value_heads=1, use_sliding_window=True, sliding_window=4, max_window_layers=2
    )
    model = Qwen2ForCausalLM(config).eval()
    message = assert_refused(
        "model", lambda: run(model, {"input_ids": torch.tensor([[1, 2]])}, Schedule("reroute", ()))
    )
    assert "block 2 of its text decoder is sliding_attention" in message


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"input_ids": None}, "input_ids"),
        ({"input_ids": [[1, 2]]}, "input_ids"),
        ({"input_ids": torch.ones(1, 4)}, "input_ids"),
        ({"input_ids": torch.ones(4, dtype=torch.long)}, "input_ids"),
        ({"input_ids": torch.ones(0, 4, dtype=torch.long)}, "input_ids"),
        ({"position_ids": "0"}, "position_ids"),
        ({"position_ids": torch.zeros(1, 46)}, "position_ids"),
        ({"position_ids": torch.zeros(3, 46, dtype=torch.long)}, "position_ids"),
        ({"images": 5}, "images"),
        ({"images": [[36], [36]]}, "images"),
    ],
)
def test_inputs_that_are_no_batch(llava, changes, field):
    assert_refused(field, lambda: run(llava, {**picture_inputs(), **changes}, ONE))


def test_arguments_of_another_type(llava):
    for inputs in (None, [1], "picture"):
        assert_refused("inputs", lambda inputs=inputs: run(llava, inputs, ONE))
        assert_refused("inputs", lambda inputs=inputs: generate(llava, inputs, ONE, 1))
    for schedule in (None, "reroute-fastv-192", ONE.to_dict()):
        assert_refused("schedule", lambda schedule=schedule: run(llava, picture_inputs(), schedule))
    assert_refused("decisions", lambda: run(llava, picture_inputs(), ONE, decisions=3))
    for dtype in ("float32", torch.int32):
        assert_refused("dtype", lambda dtype=dtype: run(llava, picture_inputs(), ONE, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_embeddings_follow_the_precision_that_is_asked_for(llava, dtype):
    embeds, mask = torch.randn(1, 5, 64), torch.tensor([[False, True, True, True, False]])
    output = run(llava, {"inputs_embeds": embeds, "visual_mask": mask}, ONE, dtype=dtype)
    assert output.logits.dtype == dtype
    assert output.logits.isfinite().all()
