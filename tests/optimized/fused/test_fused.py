"""Backend ``triton`` on a CPU, with its kernels in plain torch: the reference's answers, and refusals where it does not run."""

import copy
import pickle

import pytest
import torch
from accelerate import dispatch_model
from reroute_conformance.cases.case import Row
from reroute_conformance.cases.decoder import DecoderCase
from reroute_optimized import routed
from reroute_optimized.conforming.target import triton_target
from reroute_optimized.fused.engine import MOST_PLANS
from reroute_optimized.turn.pages import PAGE
from reroute_spec import Decision, RerouteError, Schedule, ScoreRule
from torch.testing import assert_close

from .. import test_families, tiny
from ..beside import assert_same_session
from ..stages import test_methods

pytestmark = pytest.mark.usefixtures("_library_kernels")

TWO = Schedule("reroute", (Decision(2, "0.5"), Decision(4, "0.25")))
WAYS = {
    "greedy": {"do_sample": False},
    "beams": {"do_sample": False, "num_beams": 2, "num_return_sequences": 2},
    "no cache": {"do_sample": False, "use_cache": False},
    "hidden states": {"do_sample": False, "output_hidden_states": True},
}
ROWS = [tiny.row(4, 1, 5, 1), tiny.row(2, 2, 3, 2), tiny.row(6, 0, 0, 3)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["delete", "renumber", "survivors", "one"])
def test_a_session_is_the_references(kind, seed):
    assert_same_session(*test_methods.drawn_session(kind, seed), target=triton_target)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_session_with_new_images_is_the_references(family, seed):
    schedule = list(test_families.SCHEDULES.values())[seed + (family == "qwen3_vl")]
    operations = test_families.drawn_session(family, seed)
    assert_same_session(lambda: test_families.model_of(family), schedule, operations, target=triton_target)


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_generates_what_the_other_backend_does(how):
    model, inputs, given = tiny.llava(), tiny.llava_inputs(ROWS), []
    model.generation_config.eos_token_id = None
    for backend in ("torch", "triton"):
        with routed(model, TWO, backend=backend) as routing:
            out = model.generate(
                **inputs, **how, max_new_tokens=2, pad_token_id=0, return_dict_in_generate=True
            )
            assert routing.backend.startswith(backend)
        given.append((out.sequences, [step for steps in out.get("hidden_states") or () for step in steps]))
    assert torch.equal(given[0][0], given[1][0])
    real = inputs["attention_mask"].bool()
    for one, other in zip(given[0][1], given[1][1], strict=True):
        rows = real if one.shape[1] == real.shape[1] else torch.ones(one.shape[:2], dtype=torch.bool)
        assert_close(one[rows], other[rows], atol=1e-4, rtol=1e-4)


def test_a_cache_holds_the_plans_rows_and_gives_its_pages_back():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    with routed(model, TWO, backend="triton") as routing, torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        plans = routing.plan
        for index, layer in enumerate(cache.layers):
            rows = [plan.kv_rows[index] for plan in plans]
            assert layer.rows.lengths.tolist() == rows
            pages = sum(-(-n // PAGE) for n in rows)
            assert layer.key_pages.shape[0] == layer.rows.pool.held == pages
        used = [layer.rows.pool.held for layer in cache.layers]
        for _ in range(3):
            model(input_ids=torch.tensor([[3] * 6, [4] * 6, [5] * 6]), past_key_values=cache)
        cache.crop(-18)
        assert [layer.rows.pool.held for layer in cache.layers] == used
        pools = {layer.rows.pool for layer in cache.layers}
        assert len(pools) == 3
        del cache, layer
        assert [pool.held for pool in pools] == [0] * 3


def test_what_is_given_back_serves_the_next_request():
    model, most, out = tiny.llava(), [0] * 3, None
    with routed(model, TWO, backend="triton") as routing, torch.no_grad():
        fused = routing._router.fused
        for request in range(300):
            row = tiny.row(request % 7, request % 2, 1 + request % 11, request)
            out = model(**tiny.llava_inputs([row]), use_cache=True)
            if request % 10 == 0:
                model(input_ids=torch.tensor([[3]]), past_key_values=out.past_key_values)
            pools = list(fused._pools.values())
            most = [max(before, pool.held) for before, pool in zip(most, pools, strict=True)]
        for pool, held in zip(pools, most, strict=True):
            assert pool.size <= 2 * held * 1.2 + 4  # a request and the one before it
        assert len(fused._plans) <= MOST_PLANS
        del out
        assert [pool.held for pool in pools] == [0] * 3


def test_a_copy_of_a_cache_goes_its_own_way():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    steps = [torch.tensor([[3], [4], [5]]), torch.tensor([[6], [7], [8]])]
    with routed(model, TWO, backend="triton"), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        kept = [(layer.keys, layer.values) for layer in cache.layers]
        copied, pickled = copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))
        assert copied.layers[0].rows.pool is cache.layers[0].rows.pool
        assert pickled.layers[0].rows.pool is not cache.layers[0].rows.pool
        own = [model(input_ids=steps[0], past_key_values=c).logits for c in (cache, copied, pickled)]
        assert all(torch.equal(own[0], other) for other in own[1:])
        model(input_ids=steps[1], past_key_values=cache)
        for layer, (keys, values) in zip(copied.layers, kept, strict=True):
            assert torch.equal(layer.keys[:, :, :-1], keys)
            assert torch.equal(layer.values[:, :, :-1], values)


def test_a_failure_leaves_the_cache_as_it_was(monkeypatch):
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    with routed(model, TWO, backend="triton"), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        step = {"input_ids": torch.tensor([[3], [4], [5]]), "past_key_values": cache}
        before = [(layer.rows.pages(), layer.rows.width, layer.keys) for layer in cache.layers]
        with monkeypatch.context() as broken:

            def fail(*args):
                raise RuntimeError("out of memory")

            broken.setattr(model.model.language_model.layers[4].mlp.down_proj, "forward", fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                model(**step)
        for layer, (pages, width, keys) in zip(cache.layers, before, strict=True):
            assert (layer.rows.pages(), layer.rows.width) == (pages, width)
            assert torch.equal(layer.keys, keys)
        assert model(**step).logits.isfinite().all()


def test_a_nan_is_refused_before_its_block_runs():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    with torch.no_grad():
        model.model.language_model.layers[2].self_attn.k_proj.weight[0, 0] = torch.nan
    with routed(model, TWO, backend="triton"), pytest.raises(RerouteError, match=r"decisions\[0\].scores"):
        model(**inputs)


def test_hooks_that_it_would_not_call_are_refused():
    model = tiny.llava()
    handle = model.model.language_model.layers[1].register_forward_hook(lambda *args: None)
    with pytest.raises(RerouteError, match="block 1, which has hooks"), routed(model, TWO, backend="triton"):
        pass
    handle.remove()


def test_a_device_map_is_refused():
    model = dispatch_model(
        tiny.llava(), {"model.language_model.layers.1": "cpu", "": "cpu"}, force_hooks=True
    )
    with pytest.raises(RerouteError, match="forward of its own"), routed(model, TWO, backend="triton"):
        pass


def test_autocast_is_refused():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    with routed(model, TWO, backend="triton"), torch.no_grad():
        cache = model(**inputs).past_key_values
        step = {"input_ids": torch.tensor([[3], [4], [5]]), "past_key_values": cache}
        with torch.autocast("cpu", torch.bfloat16):
            for given in (inputs, step):
                with pytest.raises(RerouteError, match="autocast is on"):
                    model(**given)
        assert model(**step).logits.isfinite().all()


def test_hooks_that_come_later_are_refused():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    with routed(model, TWO, backend="triton"), torch.no_grad():
        handle = model.model.language_model.layers[3].mlp.register_forward_hook(lambda *args: None)
        with pytest.raises(RerouteError, match="LlamaMLP, which has hooks"):
            model(**inputs)
        handle.remove()
        model(**inputs)


def test_graphs_and_pages_go_with_the_routing():
    model = tiny.llava()
    with routed(model, TWO, backend="triton") as routing, torch.no_grad():
        model(**tiny.llava_inputs(ROWS))
    fused = routing._router.fused
    assert not fused._pools
    assert not fused._plans
    assert not len(fused.graphs)
    assert len(routing.traces) == 3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("decisions", [TWO.decisions, ()])
def test_hidden_states_of_survivors_are_the_other_backends(side, decisions):
    model, shown = tiny.llava(), []
    inputs = tiny.llava_inputs(ROWS, side=side)
    for backend in ("torch", "triton"):
        with routed(model, Schedule("delete", decisions), backend=backend), torch.no_grad():
            shown.append(model(**inputs, output_hidden_states=True).hidden_states)
    for one, other in zip(*shown, strict=True):
        assert_close(one, other, atol=1e-4, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("action", ["reroute", "delete"])
def test_scores_of_the_block_before_do_not_read_what_a_later_turn_has_yet_to_write(action, padded):
    schedule = Schedule(action, (Decision(3, "0.5"),), score=ScoreRule(source="previous"))
    rows = [Row("tvvvvvvtt", 1), Row("tvvvvtt" if padded else "tvvvvvvtt", 2)]
    case = DecoderCase(
        schedule.to_dict(), rows, config=test_methods.decoder_config(6, heads=2, kv_heads=1, head_dim=8)
    )
    turn = DecoderCase(schedule.to_dict(), [Row("vvvvtt", 3), Row("tvvttt", 4)], config=case.config).inputs()
    turn.pop("attention_mask")
    operations = [
        {"op": "prefill", "inputs": case.inputs()},
        {"op": "turn", "inputs": turn},
        {"op": "decode", "tokens": torch.tensor([5, 6])},
    ]
    assert_same_session(case.model, schedule, operations, target=triton_target)


def test_bfloat16_is_refused_where_the_interpreter_would_run_it():
    with (
        pytest.raises(RerouteError, match="bfloat16"),
        routed(tiny.llava().bfloat16(), TWO, backend="triton"),
    ):
        pass


@pytest.mark.parametrize("frozen", [False, True])
def test_a_gradient_that_would_be_lost_is_refused(frozen):
    model = tiny.llava().requires_grad_(True)
    model.get_input_embeddings().requires_grad_(not frozen)
    model.model.vision_tower.requires_grad_(not frozen)
    model.model.multi_modal_projector.requires_grad_(not frozen)
    with routed(model, TWO, backend="triton"), pytest.raises(RerouteError, match="gradients"):
        model(**tiny.llava_inputs(ROWS))


def test_padding_of_a_later_turn_is_not_attended():
    """Requests whose last row is visual run one row more: the turn's rectangle is padded, and so are the pages."""
    case = DecoderCase(
        TWO.to_dict(),
        [Row("tvvvvvvtt", 1), Row("tvvvvvvtt", 2)],
        config=test_methods.decoder_config(6, heads=2, kv_heads=1, head_dim=8),
    )
    turn = DecoderCase(TWO.to_dict(), [Row("vvvvtt", 3), Row("tttvvv", 4)], config=case.config).inputs()
    turn.pop("attention_mask")
    operations = [
        {"op": "prefill", "inputs": case.inputs()},
        {"op": "turn", "inputs": turn},
        {"op": "decode", "tokens": torch.tensor([5, 6])},
    ]
    assert_same_session(case.model, TWO, operations, target=triton_target)
