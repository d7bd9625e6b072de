"""What does not share a prefix is not served from it, and is told by what it differs; nothing else is changed by that."""

import pytest
import torch
from reroute_optimized import apply, remove, routed
from reroute_spec import Decision, RerouteError, Schedule

from .. import tiny
from .begun import FAMILIES, beginning_of, joined, model_of, question, questions

SCHEDULE = Schedule("reroute", (Decision(3, "0.5"),))


def changed(inputs, name, place, value=None):
    other = {**inputs, name: inputs[name].clone()}
    other[name][place] = other[name][place] + 1 if value is None else value
    return other


@pytest.mark.parametrize("call", ["forward", "generate"])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_tokens_or_pixels_are_refused(family, call):
    model, beginning = model_of(family), beginning_of(family)
    inputs = joined(beginning, [question(family, 3, 1), question(family, 3, 2)])
    with routed(model, SCHEDULE) as result, result.prefix(beginning) as prefix:

        def run(given):
            with torch.no_grad():
                return (
                    model(**given).logits
                    if call == "forward"
                    else model.generate(**given, max_new_tokens=2, do_sample=False, pad_token_id=0)
                )

        before = run(inputs)
        with pytest.raises(RerouteError, match=r"^input_ids\[1\]: row 2 is another token"):
            run(changed(inputs, "input_ids", (1, 2)))
        last = len(inputs["pixel_values"]) - 1
        with pytest.raises(RerouteError, match=r"^pixel_values: of request 1 are not the prefix's"):
            run(changed(inputs, "pixel_values", (last, 0)))
        served = prefix.served
        assert torch.equal(run(inputs), before)
        assert prefix.served == served + 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_goes_on_after_the_prefix(family):
    model, beginning = model_of(family), beginning_of(family)
    with routed(model, SCHEDULE) as result, result.prefix(beginning):
        with pytest.raises(RerouteError, match=r"^input_ids\[0\]: holds (\d+) rows, the prefix \1"):
            model(**beginning)
        with pytest.raises(RerouteError, match=r"^input_ids\[0\]: holds 3 rows"):
            model(input_ids=torch.tensor([[5, 6, 7]]))


def test_other_positions_are_refused():
    model, beginning = model_of("qwen2_5_vl"), beginning_of("qwen2_5_vl")
    inputs = joined(beginning, [question("qwen2_5_vl", 3)])
    positions = torch.arange(inputs["input_ids"].shape[1]).expand(3, 1, -1)
    with (
        routed(model, SCHEDULE) as result,
        result.prefix(beginning),
        pytest.raises(RerouteError, match=r"^position_ids\[0\]"),
    ):
        model(**inputs, position_ids=positions)


def test_an_image_of_another_size_with_the_same_pixels_is_another_image():
    family = "qwen2_5_vl"
    model, beginning = model_of(family), beginning_of(family)
    inputs = joined(beginning, [question(family, 3)])
    inputs["image_grid_thw"] = torch.tensor([[1, 4, 16]])  # as many patches, otherwise arranged
    with routed(model, SCHEDULE) as result, result.prefix(beginning), pytest.raises(RerouteError):
        model(**inputs)


def test_embeddings_are_compared_where_they_are_given():
    model, inputs = tiny.text_model(), tiny.text_inputs("tttvvvvvvvvvvtttttt")
    beginning = {name: tensor[:, :8] for name, tensor in inputs.items()}
    with routed(model, SCHEDULE) as result, result.prefix(beginning):
        model(**inputs)
        with pytest.raises(RerouteError, match=r"^inputs_embeds: row 7 of request 0"):
            model(**changed(inputs, "inputs_embeds", (0, 7)))
        model(**changed(inputs, "inputs_embeds", (0, 8)))
        with pytest.raises(RerouteError, match=r"^inputs_embeds\[0\]: holds 8 rows"):
            model(**beginning)


def test_features_of_another_block_of_the_tower_are_not_the_prefixs():
    model, beginning = model_of("llava"), beginning_of("llava")
    inputs = joined(beginning, [question("llava", 3)])
    with routed(model, SCHEDULE) as result, result.prefix(beginning):
        with pytest.raises(RerouteError, match=r"^pixel_values"):
            model(**inputs, vision_feature_layer=-1)
        model(**inputs)
    with routed(model, SCHEDULE) as result:
        expected = model(**inputs, vision_feature_layer=-1).logits
        with result.prefix({**beginning, "vision_feature_layer": -1}):
            assert torch.allclose(model(**inputs, vision_feature_layer=-1).logits, expected, atol=1e-4)


def test_features_between_blocks_belong_to_the_prefix():
    model, beginning = model_of("qwen3_vl"), beginning_of("qwen3_vl")
    inputs = joined(beginning, [question("qwen3_vl", 3)])
    seen = {}

    def keep(module, args, kwargs):
        seen.update(kwargs)

    with routed(model, SCHEDULE) as result:
        handle = model.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
        model(**inputs)
        handle.remove()
        with result.prefix(beginning), pytest.raises(RerouteError, match=r"^inputs_embeds"):
            model(  # the same rows, without what is added to them later
                inputs_embeds=seen["inputs_embeds"],
                position_ids=seen["position_ids"],
                visual_mask=seen["visual_mask"],
            )


def test_what_the_caller_changes_later_is_not_the_prefix():
    model, beginning = model_of("llava"), beginning_of("llava")
    inputs = joined(beginning, [question("llava", 3)])
    given = {name: tensor.clone() for name, tensor in beginning.items()}
    with routed(model, SCHEDULE) as result:
        prefix = result.prefix(given)
        given["input_ids"][0, 2] += 1
        given["pixel_values"].zero_()
        with prefix:
            model(**inputs)
            with pytest.raises(RerouteError, match=r"^pixel_values"):
                model(**changed(inputs, "pixel_values", ..., 0.0))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"past_key_values": object()}, "past_key_values"),
        ({"labels": torch.zeros(1, 1)}, "labels"),
        ({"attention_mask": "left"}, "attention_mask"),
    ],
)
def test_a_prefix_is_the_beginning_of_one_prompt(change, field):
    model, beginning = model_of("llava"), beginning_of("llava")
    if change.get("attention_mask") == "left":
        change = {"attention_mask": beginning["attention_mask"].clone()}
        change["attention_mask"][0, 0] = 0
    with routed(model, SCHEDULE) as result:
        with pytest.raises(RerouteError, match=rf"^{field}"):
            result.prefix({**beginning, **change})
        with pytest.raises(RerouteError, match=r"^input_ids: hold 3 requests"):
            result.prefix(joined(beginning, questions("llava")))
        with pytest.raises(RerouteError, match=r"^inputs"):
            result.prefix(beginning["input_ids"])
        assert result.prefix(beginning).num_rows == beginning["input_ids"].shape[1]


def test_a_prefix_is_of_the_routing_that_made_it():
    model, beginning = tiny.llava(), beginning_of("llava")
    first = apply(model, SCHEDULE)
    prefix = first.prefix(beginning)
    remove(model)
    with pytest.raises(RerouteError, match=r"^prefix: its routing has been removed"), prefix:
        pass
    with pytest.raises(RerouteError, match=r"^prefix: its routing has been removed"):
        first.prefix(beginning)
    with routed(model, Schedule("delete", (Decision(2, "0.5"),))) as second:
        with pytest.raises(RerouteError, match=r"^prefix: its routing has been removed"), prefix:
            pass
        own = second.prefix(beginning)
        with own:
            with pytest.raises(RerouteError, match=r"^prefix: a prefix is in use"), own:
                pass
            with pytest.raises(RerouteError, match=r"^prefix: a prefix is in use"):
                second.prefix(beginning)
            model(**joined(beginning, questions("llava")))
    assert "get_image_features" not in vars(model.model)


def test_a_prefix_is_of_the_models_dtype_and_weights():
    model, beginning = tiny.llava(), beginning_of("llava")
    inputs = joined(beginning, questions("llava"))
    with routed(model, SCHEDULE) as result:
        prefix = result.prefix(beginning)
        with torch.no_grad():
            model.model.language_model.embed_tokens.weight.mul_(1.5)
        with prefix, pytest.raises(RerouteError, match=r"^model: embeds row 0 otherwise"):
            model(**inputs)
        model.to(torch.float64)
        with prefix, pytest.raises(RerouteError, match=r"^model\.dtype"):
            model(**{**inputs, "pixel_values": inputs["pixel_values"].double()})


def test_hidden_states_of_all_blocks_are_not_to_be_had():
    model, beginning = model_of("llava"), beginning_of("llava")
    inputs = joined(beginning, questions("llava"))
    with routed(model, SCHEDULE) as result, result.prefix(beginning):
        with pytest.raises(RerouteError, match=r"^output_hidden_states"):
            model(**inputs, output_hidden_states=True)
        model(**inputs)


def test_making_a_prefix_changes_nothing_else():
    model, beginning = model_of("qwen2_5_vl"), beginning_of("qwen2_5_vl")
    inputs = joined(beginning, questions("qwen2_5_vl"))
    model.model.rope_deltas = None
    with routed(model, SCHEDULE) as result:
        logits, trace = model(**inputs).logits, result.traces
        prefix = result.prefix(beginning)
        assert result.traces == trace
        assert model.model.rope_deltas is None
        with prefix:
            assert result.traces == trace
        assert torch.equal(model(**inputs).logits, logits)
        assert prefix.served == 0


def test_a_gradient_through_a_prefix_is_refused():
    model = tiny.text_model()
    given = tiny.text_inputs("tvvvvtt")
    embeddings = given["inputs_embeds"]
    beginning = {"inputs_embeds": embeddings[:, :4], "visual_mask": given["visual_mask"][:, :4]}
    with routed(model, Schedule("reroute", (Decision(2, "0.5"),))) as routing, routing.prefix(beginning):
        with pytest.raises(RerouteError, match="prefix: has no gradient"):
            model(**{**given, "inputs_embeds": embeddings.clone().requires_grad_()})
        assert model(**given).logits.isfinite().all()


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({}, "inputs"),
        ({"input_ids": torch.tensor([1, 2, 3])}, "input_ids"),
        ({"inputs_embeds": torch.full((1, 3, 64), torch.nan)}, "inputs"),
    ],
    ids=["nothing", "one dimension", "nan"],
)
def test_what_is_no_beginning_is_refused_by_name(inputs, field):
    model = tiny.text_model()
    with routed(model, Schedule("reroute", (Decision(2, "0.5"),))) as routing:
        with pytest.raises(RerouteError) as refused:
            routing.prefix(inputs)
        assert refused.value.field == field


def test_a_callers_own_way_to_encode_pictures_stays():
    model = model_of("llava")

    def mine(*args, **kwargs):
        return type(model.model).get_image_features(model.model, *args, **kwargs)

    model.model.get_image_features = mine
    try:
        with routed(model, Schedule("reroute", (Decision(2, "0.5"),))) as routing:
            with routing.prefix(beginning_of("llava")):
                assert model.model.get_image_features is not mine
            assert model.model.__dict__["get_image_features"] is mine
    finally:
        del model.model.get_image_features


def test_what_else_is_asked_of_a_picture_is_encoded_anew():
    model, inputs = model_of("llava"), beginning_of("llava")
    with routed(model, Schedule("reroute", (Decision(2, "0.5"),))) as routing, routing.prefix(inputs):
        features = model.get_image_features(inputs["pixel_values"], output_hidden_states=True)
        assert features.hidden_states
