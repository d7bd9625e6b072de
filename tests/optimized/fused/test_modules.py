"""Backend ``triton`` where blocks are called as the modules that they are: Qwen3.5 within the same plan."""

import copy
from functools import partial

import pytest
import torch
from reroute_conformance.tiny.qwen import qwen_inputs
from reroute_optimized import routed
from reroute_optimized.conforming.target import triton_target
from reroute_optimized.fused.graphs import Graphs
from reroute_optimized.turn.cache import is_state
from reroute_spec import Decision, RerouteError, Schedule, ScoreRule
from torch.testing import assert_close

from .. import test_families
from ..beside import assert_same_session
from ..prefix import test_prefix as asked
from .test_fused import WAYS
from .test_graphs import Again

pytestmark = pytest.mark.usefixtures("_library_kernels")

FAMILY = "qwen3_5"
SCHEDULES = test_families.SCHEDULES
REROUTE = SCHEDULES["reroute"]


@pytest.mark.parametrize("seed", range(6))
def test_a_session_with_new_images_is_the_references(seed):
    schedule = list(SCHEDULES.values())[seed % len(SCHEDULES)]
    operations = test_families.drawn_session(FAMILY, seed)
    assert_same_session(lambda: test_families.model_of(FAMILY), schedule, operations, target=triton_target)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_padded_batch_of_images_and_videos_is_the_references(name, side):
    inputs = qwen_inputs(FAMILY, test_families.LAYOUTS, side=side)
    operations = [{"op": "prefill", "inputs": inputs}, {"op": "decode", "tokens": torch.arange(3, 7)}]
    model = partial(test_families.model_of, FAMILY)
    assert_same_session(model, SCHEDULES[name], operations, target=triton_target)


def attending_in_blocks_4_and_6():
    """The same model with plain attention, and random weights of it, in two more blocks."""
    given, more = test_families.model_of(FAMILY), (4, 6)
    config = copy.deepcopy(given.config)
    for layer in more:
        config.text_config.layer_types[layer] = "full_attention"
    model = type(given)._from_config(config, attn_implementation="sdpa").eval().requires_grad_(False)
    model.load_state_dict(given.state_dict(), strict=False)
    generator = torch.Generator().manual_seed(2)
    for layer in more:
        for weight in model.model.language_model.layers[layer].self_attn.parameters():
            weight.normal_(0, 0.2, generator=generator)
    return model


@pytest.mark.parametrize("query", [{}, {"query": "last_n", "n": 9}], ids=["last", "last 9"])
@pytest.mark.parametrize("action", ["reroute", "delete"])
def test_scores_may_be_of_the_block_before_where_it_attends(action, query):
    decisions = Decision(4, "0.5"), Decision(7, "0.25")
    score = ScoreRule(source="previous", **query)
    schedule = Schedule(action, decisions, score=score, pool="survivors")
    operations = [{"op": "prefill", "inputs": qwen_inputs(FAMILY, test_families.LAYOUTS)}]
    assert_same_session(attending_in_blocks_4_and_6, schedule, operations, target=triton_target)


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", ["reroute", "delete"])
def test_generates_what_the_other_backend_does(name, how):
    model, inputs, given = test_families.model_of(FAMILY), qwen_inputs(FAMILY, test_families.LAYOUTS), []
    for backend in ("torch", "triton"):
        with routed(model, SCHEDULES[name], backend=backend) as routing:
            out = model.generate(
                **inputs, **how, max_new_tokens=3, pad_token_id=0, return_dict_in_generate=True
            )
            assert routing.backend == {"triton": "triton (attention: modules)"}.get(backend, backend)
        given.append((out.sequences, [step for steps in out.get("hidden_states") or () for step in steps]))
    assert torch.equal(given[0][0], given[1][0])
    real = inputs["attention_mask"].bool()
    for one, other in zip(given[0][1], given[1][1], strict=True):
        rows = real if one.shape[1] == real.shape[1] else ~one.isnan().any(2)
        assert_close(one[rows], other[rows], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["reroute", "delete", "nothing"])
def test_prompts_after_a_prefix_are_answered_as_each_by_itself(name, side, monkeypatch):
    monkeypatch.setattr(asked, "routed", partial(routed, backend="triton"))
    asked.test_prompts_that_begin_alike_are_answered_as_each_by_itself(FAMILY, name, side)


def test_a_cache_is_the_other_backends():
    model, inputs = test_families.model_of(FAMILY), qwen_inputs(FAMILY, test_families.LAYOUTS)
    with routed(model, REROUTE, backend="triton") as routing, torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        text = model.model.language_model.config.layer_types
        assert [is_state(layer) for layer in cache.layers] == [kind != "full_attention" for kind in text]
        assert not routing._router.fused._pools
        step = model(input_ids=torch.arange(3, 7)[:, None], past_key_values=cache).logits
    with routed(model, REROUTE), torch.no_grad():
        other = model(**inputs, use_cache=True).past_key_values
        expected = model(input_ids=torch.arange(3, 7)[:, None], past_key_values=other).logits
    assert_close(step, expected, atol=1e-4, rtol=1e-4)


def test_blocks_are_called_whole_with_their_hooks_and_own_their_outputs():
    model, inputs = test_families.model_of(FAMILY), qwen_inputs(FAMILY, test_families.LAYOUTS[:1])
    parameters, seen = [p.data_ptr() for p in model.parameters()], []
    handles = [
        block.register_forward_hook(lambda module, args, output: seen.append((output, output.clone())))
        for block in model.model.language_model.layers
    ]
    try:
        with routed(model, REROUTE, backend="triton"), torch.no_grad():
            model(**inputs)
            assert [p.data_ptr() for p in model.parameters()] == parameters
    finally:
        for handle in handles:
            handle.remove()
    assert len(seen) == len(handles)
    for output, kept in seen:
        assert_close(output, kept, atol=0, rtol=0)


def test_nothing_is_captured_and_the_reason_is_said(caplog):
    model, inputs = test_families.model_of(FAMILY), qwen_inputs(FAMILY, test_families.LAYOUTS)
    with routed(model, REROUTE, backend="triton") as routing, torch.no_grad():
        eager = model(**inputs).logits
        graphs = routing._router.fused.graphs = Graphs(Again(), 10**9)
        for _ in range(3):
            assert_close(model(**inputs).logits, eager, atol=0, rtol=0)
    assert graphs.eager == {"blocks run as modules": 3}
    assert not graphs.captured
    assert "blocks run as modules" in caplog.text


def test_a_nan_is_refused_before_its_block_runs():
    model = test_families.tiny_qwen(FAMILY)
    ran = []
    with torch.no_grad():
        layers = model.model.language_model.layers
        layers[3].self_attn.k_proj.weight[0, 0] = torch.nan
        layers[3].register_forward_pre_hook(lambda module, args: ran.append(3))
    with (
        routed(model, REROUTE, backend="triton"),
        torch.no_grad(),
        pytest.raises(RerouteError, match=r"decisions\[0\].scores"),
    ):
        model(**qwen_inputs(FAMILY, test_families.LAYOUTS))
    assert not ran
