"""Applying, removing and refusing."""

import copy
import json

import pytest
import torch
from reroute_optimized import apply, remove, routed
from reroute_spec import Decision, RerouteError, Schedule
from torch import nn
from transformers import DynamicCache

from . import tiny

TWO = (Decision(2, "0.5"), Decision(4, "0.25"))
ROUTE = Schedule("reroute", TWO)


def state(model):
    return {
        name: (type(module), set(vars(module)), len(module._forward_pre_hooks), len(module._forward_hooks))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("make", [tiny.llava, tiny.text_model])
def test_remove_restores_everything(make):
    model = make()
    before, keys = state(model), list(model.state_dict())
    for action in ("reroute", "delete"):
        result = apply(model, Schedule(action, TWO))
        assert list(model.state_dict()) == keys
        assert type(model).__name__ == type(make()).__name__
        assert "Routed" in type(getattr(model.model, "language_model", model.model)).__name__
        assert isinstance(model, type(make()))
        remove(model)
        assert state(model) == before
        assert result.backend == "torch"


def test_forward_is_the_unrouted_one_after_remove():
    model, inputs = tiny.llava(), tiny.llava_inputs([tiny.row(4, 1, 5)])
    plain = model(**inputs).logits
    with routed(model, ROUTE) as result:
        assert not torch.equal(model(**inputs).logits, plain)
    assert torch.equal(model(**inputs).logits, plain)
    assert len(result.traces) == 1
    assert len(result.kv_lengths) == tiny.LAYERS
    assert result.traces[0].to_dict() == result.traces[0].to_dict()


def test_routed_removes_after_an_exception_and_tolerates_an_earlier_remove():
    model = tiny.llava()
    before = state(model)
    with pytest.raises(KeyError), routed(model, ROUTE):
        raise KeyError
    assert state(model) == before
    with routed(model, ROUTE):
        remove(model)
    assert state(model) == before


def test_schedules_come_as_presets_and_files(tmp_path):
    model, inputs = tiny.llava(), tiny.llava_inputs([tiny.row(4, 1, 5)])
    with routed(model, "fastv-64", backend="torch") as result:
        model(**inputs)
    assert result.plan[0].stages[1].first == 1  # 3 of 32 blocks, scaled to 6
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(ROUTE.to_dict()))
    with routed(model, path) as result:
        model(**inputs)
    assert [record.layer for record in result.traces[0].decisions] == [2, 4]


def test_nothing_to_read_before_the_first_prefill():
    with routed(tiny.llava(), ROUTE) as result:
        for name in ("traces", "kv_lengths", "plan"):
            with pytest.raises(RerouteError, match=name):
                getattr(result, name)


def test_applying_twice_and_removing_nothing_are_refused():
    model = tiny.llava()
    with pytest.raises(RerouteError, match="not routed"):
        remove(model)
    with routed(model, ROUTE), pytest.raises(RerouteError, match="already routed"):
        apply(model, ROUTE)


def sliding():
    model = tiny.text_model("qwen2")
    model.config.layer_types = ["full_attention"] * 5 + ["sliding_attention"]
    return model


def flex():
    model = tiny.text_model()
    model.config._attn_implementation_internal = "flex_attention"
    return model


def wrapped():
    model = tiny.text_model()
    model.model.forward = model.model.forward
    return model


@pytest.mark.parametrize(
    ("make", "schedule", "backend", "field"),
    [
        (tiny.llava, ROUTE, "cuda", "backend"),
        (lambda: nn.Linear(2, 2), ROUTE, "auto", "model"),
        (tiny.llava, "no-such-preset", "auto", "preset"),
        (tiny.llava, Schedule("reroute", (Decision(6, "0.5"),)), "auto", r"decisions\[0\].layer"),
        (sliding, ROUTE, "auto", "model"),
        (flex, ROUTE, "auto", "attn_implementation"),
        (wrapped, ROUTE, "auto", "model"),
    ],
)
def test_what_cannot_be_routed_is_refused_before_anything_changes(make, schedule, backend, field):
    model = make()
    before = state(model)
    with pytest.raises(RerouteError, match=f"^{field}"):
        apply(model, schedule, backend=backend)
    assert state(model) == before


def image_inputs(**more):
    return {**tiny.llava_inputs([tiny.row(4, 1, 5)]), **more}


def embedded(**more):
    return {"inputs_embeds": torch.randn(1, 8, 64), **more}


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        (image_inputs(output_hidden_states=[0, 1]), "output_hidden_states"),
        (image_inputs(output_attentions=True), "output_attentions"),
        (image_inputs(attention_mask=torch.ones(1, 1, 26, 26)), "attention_mask"),
        (image_inputs(attention_mask=torch.ones(1, 7)), "attention_mask"),
        (image_inputs(attention_mask=torch.zeros(1, 26, dtype=torch.long)), r"attention_mask\[0\]"),
        (image_inputs(position_ids=torch.zeros(3, 1, 26, dtype=torch.long)), "position_ids"),
        (image_inputs(position_ids=torch.zeros(1, 26)), "position_ids"),
        (image_inputs(position_ids=[0] * 26), "position_ids"),
        (image_inputs(cu_seq_lens_q=torch.tensor([0, 26])), "cu_seq_lens_q"),
        (image_inputs(visual_mask=torch.ones(1, 26)), "visual_mask"),
        (embedded(), "visual_mask"),
        (embedded(visual_mask=torch.ones(1, 8, dtype=torch.long)), "visual_mask"),
        (embedded(visual_mask=torch.ones(1, 7, dtype=torch.bool)), "visual_mask"),
        (embedded(visual_mask=[True] * 8), "visual_mask"),
    ],
)
def test_requests_that_cannot_be_routed_are_refused_and_the_next_is_right(inputs, field):
    model = tiny.llava()
    with routed(model, ROUTE) as result:
        good = model(**image_inputs()).logits
        traces = result.traces
        with pytest.raises(RerouteError, match=f"^{field}"):
            model(**inputs)
        assert result.traces == traces
        assert torch.equal(model(**image_inputs()).logits, good)


def test_images_of_another_size_are_refused_under_scope_image():
    model = tiny.llava()
    mask = torch.tensor([[False] + [True] * 5 + [False] * 2])
    with routed(model, Schedule("reroute", TWO, scope="image")), pytest.raises(RerouteError, match=r"^scope"):
        model(**embedded(visual_mask=mask))


def test_embeddings_with_a_mask_are_routed():
    model, mask = tiny.llava(), torch.tensor([[False] + [True] * 5 + [False] * 2])
    with routed(model, ROUTE) as result:
        model(**embedded(visual_mask=mask))
    assert result.traces[0].visual_rows == (1, 2, 3, 4, 5)


def test_labels_are_refused_under_delete_only():
    model, inputs = tiny.llava(), image_inputs()
    labels = inputs["input_ids"].clone()
    with routed(model, Schedule("delete", TWO)):
        with pytest.raises(RerouteError, match=r"^labels"):
            model(**inputs, labels=labels)
        model(**inputs, labels=None)
    with routed(model, ROUTE):
        assert model(**inputs, labels=labels).loss.isfinite()


def test_training_and_checkpointing_are_refused():
    model, inputs = tiny.llava(), image_inputs()
    with routed(model, ROUTE):
        model.train()
        with pytest.raises(RerouteError, match=r"^model.training"):
            model(**inputs)
        model.eval()
        model.gradient_checkpointing_enable()
        with pytest.raises(RerouteError, match=r"^gradient_checkpointing"):
            model(**inputs)
        model.gradient_checkpointing_disable()
        model(**inputs)


def test_a_forward_inside_a_forward_is_refused():
    model, inputs = tiny.llava(), image_inputs()
    with routed(model, ROUTE):
        good = model(**inputs).logits
        handle = model.model.language_model.layers[3].register_forward_hook(lambda *_: model(**inputs))
        with pytest.raises(RerouteError, match="one forward at a time"):
            model(**inputs)
        handle.remove()
        handle = model.model.language_model.layers[3].register_forward_hook(lambda *_: remove(model))
        with pytest.raises(RerouteError, match="one forward at a time"):
            model(**inputs)
        handle.remove()
        assert torch.equal(model(**inputs).logits, good)


def test_a_block_that_fails_leaves_nothing_behind():
    model, inputs, cache = tiny.llava(), image_inputs(), DynamicCache()

    def fail(*_):
        raise MemoryError

    with routed(model, ROUTE) as result:
        good = model(**inputs).logits
        traces = result.traces
        handle = model.model.language_model.layers[4].register_forward_hook(fail)
        with pytest.raises(MemoryError):
            model(**inputs, past_key_values=cache)
        handle.remove()
        assert type(cache) is DynamicCache
        assert cache.get_seq_length() == 0
        assert result.traces == traces
        assert torch.equal(model(**inputs, past_key_values=cache).logits, good)


def test_copies_of_a_routed_model_are_refused():
    model, inputs = tiny.llava(), image_inputs()
    with routed(model, ROUTE):
        copied = copy.deepcopy(model)
        for use in (lambda: copied(**inputs), lambda: remove(copied)):
            with pytest.raises(RerouteError, match="copy"):
                use()
        model(**inputs)


def test_tuples_are_returned_where_they_are_asked_for():
    model, inputs = tiny.text_model(), tiny.text_inputs("tvvvtt")
    with routed(model, ROUTE):
        assert torch.equal(model(**inputs, return_dict=False)[0], model(**inputs).logits)
        assert torch.equal(
            model.model(**inputs, return_dict=False)[0], model.model(**inputs).last_hidden_state
        )
