"""Forms in which requests come: turns of a ``generate``, arguments beside one another, and wrong ones, refused by name."""

import pickle

import pytest
import torch
from reroute_conformance.tiny.qwen import qwen_inputs, tiny_qwen
from reroute_optimized import routed
from reroute_spec import Decision, RerouteError, Schedule
from transformers import DynamicCache, StaticCache

from .. import tiny

QWEN = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")
OPTIONS = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [190, 191, 192, 193]}
ROUTE = Schedule("reroute", (Decision(3, "0.5"),))
PICTURE = ["ttt", (1, 4, 6), "tttt"]


def two_turns(model, inputs):
    cache = DynamicCache(config=model.config.get_text_config())
    first = model.generate(**inputs, past_key_values=cache, **OPTIONS)
    ids = torch.cat([first, torch.full((len(first), 3), 5)], dim=1)
    return model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **OPTIONS
    )


@pytest.mark.parametrize("family", QWEN)
@pytest.mark.parametrize("batch", [1, 3])
def test_what_an_unrouted_use_left_behind_does_not_reach_a_second_generation(family, batch):
    model, inputs = tiny_qwen(family), qwen_inputs(family, [PICTURE] * batch)
    with routed(model, ROUTE):
        fresh = two_turns(model, inputs)
    model.generate(**qwen_inputs(family, [["ttt", (1, 8, 8), "t"]] * 2), **OPTIONS)
    left = model.model.rope_deltas
    with routed(model, ROUTE):
        assert torch.equal(two_turns(model, inputs), fresh)
    assert model.model.rope_deltas is left


@pytest.mark.parametrize("family", QWEN)
@pytest.mark.parametrize("given", ["new", "all"])
def test_generate_goes_on_with_a_new_image(family, given):
    model = tiny_qwen(family)
    first, second = (qwen_inputs(family, [["tt", (1, 4, 6), "tt"]], seed=seed) for seed in (0, 1))
    with torch.no_grad(), routed(model, ROUTE):
        cache, expected, turn = model(**first).past_key_values, [], second
        for _ in range(OPTIONS["max_new_tokens"]):
            logits = model(**turn, past_key_values=cache).logits[:, -1].clone()
            logits[:, OPTIONS["suppress_tokens"]] = -torch.inf
            expected.append(logits.argmax().item())
            turn = {"input_ids": torch.tensor([expected[-1:]])}
        cache = model(**first).past_key_values
        columns = cache.get_seq_length() + second["input_ids"].shape[1]
        turn = {**second, "attention_mask": torch.ones(1, columns, dtype=torch.long)}
        if given == "all":
            for name in ("input_ids", "mm_token_type_ids"):
                turn[name] = torch.cat([first[name], second[name]], dim=1)
        tokens = model.generate(**turn, past_key_values=cache, **OPTIONS)
    assert tokens[0, -len(expected) :].tolist() == expected


@pytest.mark.parametrize("family", QWEN)
def test_generate_knows_the_images_of_a_request_where_each_has_its_own_budget(family):
    model, inputs = tiny_qwen(family), qwen_inputs(family, [["tt", (1, 4, 6), "t", (1, 4, 4), "t"], ["tttt"]])
    with torch.no_grad(), routed(model, Schedule("reroute", (Decision(3, "0.5"),), scope="image")) as result:
        model(**inputs)
        alone = [trace.decisions for trace in result.traces]
        model.generate(**inputs, **OPTIONS)
        assert [[d.selected for d in own] for own in alone] == [
            [d.selected for d in trace.decisions] for trace in result.traces
        ]
        model.generate(**inputs, **OPTIONS, num_beams=2)
        assert [d.selected for d in result.traces[1].decisions] == [d.selected for d in alone[0]]


def test_hidden_states_are_what_blocks_return_before_deepstack_adds_to_them():
    model, inputs = tiny_qwen("qwen3_vl"), qwen_inputs("qwen3_vl", [PICTURE])
    unrouted = model(**inputs, output_hidden_states=True).hidden_states
    with routed(model, Schedule("reroute", (Decision(4, "1"),))):
        states = model(**inputs, output_hidden_states=True).hidden_states
    for own, expected in zip(states, unrouted, strict=True):
        assert torch.allclose(own, expected, atol=1e-4)


def test_embeddings_beside_their_ids_are_routed_as_the_ids_say():
    model, inputs = tiny.llava(), tiny.llava_inputs([tiny.row(4, 1, 5)])
    seen = {}
    handle = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with routed(model, ROUTE):
        expected = model.generate(**inputs, **options)
        both = {"input_ids": inputs["input_ids"], "inputs_embeds": seen["inputs_embeds"]}
        assert torch.equal(model.generate(**both, **options)[:, -3:], expected[:, -3:])


@pytest.mark.parametrize("scope", ["request", "image"])
def test_features_of_the_class_token_are_routable_where_a_forward_selects_them(scope):
    model, pictures = tiny.llava(), torch.randn(2, 3, 56, 56)
    image = [tiny.IMAGE] * (tiny.PATCHES + 1)
    inputs = {"input_ids": torch.tensor([[5, *image, 6, *image, 7, 8]]), "pixel_values": pictures}
    with routed(model, Schedule("reroute", (Decision(2, "0.5"),), scope=scope)) as result:
        model(**inputs, vision_feature_select_strategy="full")
    assert len(result.traces[0].visual_rows) == 2 * len(image)


@pytest.mark.parametrize("family", QWEN)
def test_ids_of_32_bits_are_ids(family):
    model, inputs = tiny_qwen(family), qwen_inputs(family, [PICTURE])
    short = {**inputs, "input_ids": inputs["input_ids"].int()}
    with routed(model, ROUTE):
        assert torch.equal(model(**short).logits, model(**inputs).logits)
        assert torch.equal(model.generate(**short, **OPTIONS), model.generate(**inputs, **OPTIONS))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda given: {"image_grid_thw": given["image_grid_thw"].tolist()}, "image_grid_thw: is a list"),
        (lambda given: {"pixel_values": given["pixel_values"][1:]}, "pixel_values: hold 23 patches"),
    ],
)
def test_pixels_that_disagree_with_their_grid_are_refused(change, field):
    model, inputs = tiny_qwen("qwen2_5_vl"), qwen_inputs("qwen2_5_vl", [PICTURE])
    wrong = {**inputs, **change(inputs)}
    with routed(model, ROUTE):
        for call in (lambda: model(**wrong), lambda: model.generate(**wrong, **OPTIONS)):
            with pytest.raises(RerouteError, match=f"^{field}"):
                call()


def test_caches_and_masks_of_another_kind_are_named():
    model, inputs = tiny_qwen("qwen2_5_vl"), qwen_inputs("qwen2_5_vl", [PICTURE])
    static = StaticCache(config=model.config.get_text_config(), max_cache_len=64)
    with routed(model, ROUTE):
        with pytest.raises(RerouteError, match=r"^past_key_values: a StaticCache"):
            model.generate(**inputs, past_key_values=static, **OPTIONS)
        cache = model(**inputs).past_key_values
        with pytest.raises(RerouteError, match=r"^past_key_values: holds 1 requests, 2 are given"):
            model(input_ids=torch.tensor([[5, 6]] * 2), past_key_values=cache)
        embeds = {"inputs_embeds": torch.randn(1, 4, 64), "visual_mask": [[False] * 4]}
        with pytest.raises(RerouteError, match=r"^visual_mask: is list"):
            model.generate(**embeds, **OPTIONS)


def test_numbers_of_rows_to_forget_or_keep_are_integers_and_tensors():
    model = tiny.llava()
    with routed(model, ROUTE):
        cache = model(**tiny.llava_inputs([tiny.row(4, 1, 5)])).past_key_values
        columns = cache.get_seq_length()
        model(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=cache)
        for wrong in (-1.0, "a", None):
            with pytest.raises(RerouteError, match=r"^tokens_to_remove: is a"):
                cache.crop(wrong)
        cache.crop(torch.tensor(-2))
        assert cache.get_seq_length() == columns + 1
        assert isinstance(cache.get_seq_length(), int)
        with pytest.raises(RerouteError, match=r"^indices: are a list"):
            cache.batch_select_indices([0])


def test_pickling_and_continuous_batching_are_refused_with_what_to_do():
    model = tiny.llava()
    with routed(model, ROUTE):
        with pytest.raises(RerouteError, match="remove routing, then save"):
            pickle.dumps(model)
        with pytest.raises(RerouteError, match="continuous batching"):
            model.generate_batch(inputs=[[5, 6]])
    assert pickle.dumps(model)
