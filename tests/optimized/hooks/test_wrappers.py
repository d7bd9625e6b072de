"""What else wraps a model stays: adapters, hooks of several devices, user hooks."""

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.utils import send_to_device
from peft import LoraConfig, get_peft_model
from reroute_optimized import apply, remove, routed
from reroute_reference import run
from reroute_spec import Decision, RerouteError, Schedule

from .. import tiny

ROUTE = Schedule("reroute", (Decision(2, "0.5"), Decision(4, "0.25")))
ROWS = [tiny.row(4, 1, 5, 1), tiny.row(2, 2, 3, 2)]
OPTIONS = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}


def with_adapter(model):
    config = LoraConfig(
        r=2, target_modules=r".*language_model.*(q_proj|k_proj|up_proj)", init_lora_weights=False
    )
    torch.manual_seed(1)
    return get_peft_model(model, config).eval()


def test_an_adapter_that_is_not_merged_is_routed_with():
    inputs = tiny.llava_inputs(ROWS)
    plain = tiny.llava()
    with routed(plain, ROUTE):
        without = plain(**inputs).logits
    adapted = with_adapter(tiny.llava())
    keys = list(adapted.state_dict())
    with routed(adapted, ROUTE) as result:
        logits = adapted(**inputs).logits
        tokens = adapted.generate(**inputs, **OPTIONS)
        assert list(adapted.state_dict()) == keys
    assert not torch.allclose(logits, without, atol=1e-2)
    merged = adapted.merge_and_unload()
    expected = run(merged, inputs, ROUTE)
    for b, trace in enumerate(expected.traces):
        assert [d.selected for d in trace.decisions] == [d.selected for d in result.traces[b].decisions]
    with routed(merged, ROUTE):
        assert torch.equal(merged.generate(**inputs, **OPTIONS), tokens)


def everywhere(model, whole):
    """A device map with accelerate's hooks; ``whole``: on the text decoder itself."""
    parts = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    decoder = model.model.language_model
    inner = [f"layers.{i}" for i in range(len(decoder.layers))] + ["embed_tokens", "norm", "rotary_emb"]
    parts += ["model.language_model"] if whole else [f"model.language_model.{name}" for name in inner]
    return dispatch_model(model, dict.fromkeys(parts, "cpu"), main_device="cpu", force_hooks=True)


@pytest.mark.parametrize("whole", [True, False])
def test_hooks_of_a_device_map_keep_working(whole):
    inputs = tiny.llava_inputs(ROWS)
    plain = tiny.llava()
    with routed(plain, ROUTE):
        expected, tokens = plain(**inputs).logits, plain.generate(**inputs, **OPTIONS)
    model = everywhere(tiny.llava(), whole)
    unrouted = model(**inputs).logits
    seen = []
    hook = model.model.language_model.__dict__.get("_hf_hook")
    if hook is not None:
        before = hook.pre_forward
        hook.pre_forward = lambda module, *args, **kwargs: (seen.append(1), before(module, *args, **kwargs))[
            1
        ]
    apply(model, ROUTE)
    assert torch.equal(model(**inputs).logits, expected)
    assert torch.equal(model.generate(**inputs, **OPTIONS), tokens)
    assert bool(seen) == whole
    with pytest.raises(RerouteError, match="already routed"):
        apply(model, ROUTE)
    remove(model)
    assert torch.equal(model(**inputs).logits, unrouted)


def test_a_users_hooks_run_and_stay():
    model, inputs, calls = tiny.llava(), tiny.llava_inputs(ROWS), []
    decoder = model.model.language_model
    handles = [
        decoder.layers[3].register_forward_hook(lambda *_: calls.append("block")),
        decoder.register_forward_hook(lambda *_: calls.append("decoder")),
        model.register_forward_hook(lambda *_: calls.append("model")),
    ]
    with routed(model, ROUTE):
        model(**inputs)
    model(**inputs)
    assert calls == ["block", "decoder", "model"] * 2
    for handle in handles:
        handle.remove()


def test_weights_that_are_offloaded_are_fetched_while_the_cache_stays():
    inputs = tiny.llava_inputs(ROWS)
    plain = tiny.llava()
    with routed(plain, ROUTE):
        expected, tokens = plain(**inputs).logits, plain.generate(**inputs, **OPTIONS)
    model = cpu_offload(tiny.llava(), torch.device("cpu"))
    with routed(model, ROUTE):
        out = model(**inputs)
        assert torch.equal(out.logits, expected)
        assert torch.equal(model.generate(**inputs, **OPTIONS), tokens)
        assert torch.equal(model.generate(**inputs, **OPTIONS, use_cache=False), tokens)
        cache, where = out.past_key_values, [layer.keys for layer in out.past_key_values.layers]
        assert send_to_device({"past_key_values": cache}, "meta")["past_key_values"] is cache
        assert cache.to(None) is cache
        assert all(layer.keys is keys for layer, keys in zip(cache.layers, where, strict=True))
        model(input_ids=torch.tensor([[5, 6], [7, 8]]), past_key_values=cache)
    assert cache.to("meta", non_blocking=True).layers[0].keys.is_meta
