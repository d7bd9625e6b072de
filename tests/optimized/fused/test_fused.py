"""Backend ``triton`` on a CPU, its kernels in Triton's interpreter: the reference's answers, and refusals where it does not run."""

import pytest
import torch
from reroute_conformance.cases import DecoderCase, Row
from reroute_optimized import routed
from reroute_optimized.fused.pages import PAGE, PagedLayer
from reroute_optimized.target import triton_target
from reroute_spec import Decision, RerouteError, Schedule
from torch.testing import assert_close

from .. import test_families, test_methods, tiny
from ..beside import assert_same_session

TWO = Schedule("reroute", (Decision(2, "0.5"), Decision(4, "0.25")))
LATER = Schedule("reroute", (Decision(3, "0.5"),))
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


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 2, "num_return_sequences": 2},
        {"do_sample": False, "use_cache": False},
        {"do_sample": False, "output_hidden_states": True},
    ],
    ids=["greedy", "beams", "no cache", "hidden states"],
)
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
        out = model(**inputs, use_cache=True)
        plans = routing.plan
        for index, layer in enumerate(out.past_key_values.layers):
            rows = [plan.kv_rows[index] for plan in plans]
            assert layer.lengths == rows
            pages = sum(-(-n // PAGE) for n in rows)
            assert pages <= layer.key_pages.shape[0] <= pages + 1
        used = [layer.key_pages.shape[0] for layer in out.past_key_values.layers]
        for _ in range(3):
            model(input_ids=torch.tensor([[3] * 6, [4] * 6, [5] * 6]), past_key_values=out.past_key_values)
        out.past_key_values.crop(-18)
        for layer, pages in zip(out.past_key_values.layers, used, strict=True):
            held = sum(map(len, layer.tables))
            assert held <= pages
            assert held + len(layer._free) == layer.key_pages.shape[0]


def test_a_failure_leaves_the_cache_as_it_was(monkeypatch):
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    with routed(model, TWO, backend="triton"), torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        step = {"input_ids": torch.tensor([[3], [4], [5]]), "past_key_values": cache}
        before = [
            (list(layer.lengths), [list(t) for t in layer.tables], layer.keys) for layer in cache.layers
        ]
        with monkeypatch.context() as broken:

            def fail(*args):
                raise RuntimeError("out of memory")

            broken.setattr(model.model.language_model.layers[4].mlp, "forward", fail)
            broken.setattr(model.model.language_model.layers[4].mlp.down_proj, "forward", fail)
            with pytest.raises(RuntimeError, match="out of memory"):
                model(**step)
        for layer, (lengths, tables, keys) in zip(cache.layers, before, strict=True):
            assert (layer.lengths, layer.tables) == (lengths, tables)
            assert torch.equal(layer.keys, keys)
        assert model(**step).logits.isfinite().all()


def test_a_nan_is_refused_before_its_block_runs():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    with torch.no_grad():
        model.model.language_model.layers[2].self_attn.k_proj.weight[0, 0] = torch.nan
    with routed(model, TWO, backend="triton"), pytest.raises(RerouteError, match=r"decisions\[0\].scores"):
        model(**inputs)


def test_many_requests_leave_no_memory_behind():
    """Requests of different sizes, one after another, on one routed model."""
    model = tiny.llava()
    counts = []
    with routed(model, TWO, backend="triton"), torch.no_grad():
        for request in range(5):
            model(**tiny.llava_inputs([ROWS[request % 3], ROWS[(request + 1) % 3]]), use_cache=True)
            counts.append(sum(isinstance(x, PagedLayer) for x in _alive()))
    assert len(set(counts[1:])) == 1


def _alive():
    import gc

    gc.collect()
    return gc.get_objects()


def test_families_that_it_does_not_run_are_refused_by_name_and_left_alone():
    model = test_families.model_of("qwen3_5")
    kind = type(model)
    with (
        pytest.raises(RerouteError, match="Qwen3_5TextModel") as refused,
        routed(model, LATER, backend="triton"),
    ):
        pass
    assert refused.value.field == "backend"
    assert type(model) is kind


def test_hooks_that_it_would_not_call_are_refused():
    model = tiny.llava()
    handle = model.model.language_model.layers[1].register_forward_hook(lambda *args: None)
    with pytest.raises(RerouteError, match="block 1, which has hooks"), routed(model, TWO, backend="triton"):
        pass
    handle.remove()


def test_bfloat16_is_refused_where_the_interpreter_would_run_it():
    with (
        pytest.raises(RerouteError, match="bfloat16"),
        routed(tiny.llava().bfloat16(), TWO, backend="triton"),
    ):
        pass


def test_a_gradient_that_would_be_lost_is_refused():
    model = tiny.llava().requires_grad_(True)
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
