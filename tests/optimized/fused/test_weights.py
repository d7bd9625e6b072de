"""Weights that one product serves: the models keep their parameters, and whatever happens to these is computed with."""

import copy
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reroute_optimized import apply, remove, routed
from reroute_optimized.fused.blocks import Block
from reroute_optimized.fused.graphs import Read
from reroute_optimized.fused.weights import Joined, product
from reroute_optimized.model.decoder import Decoder
from reroute_reference.families import text_decoder_of
from reroute_spec import Decision, Schedule
from torch import nn
from torch.testing import assert_close
from transformers import LlavaForConditionalGeneration

from .. import tiny

LAYERS = 3
pytestmark = pytest.mark.usefixtures("_library_kernels")

TWO = Schedule("reroute", (Decision(1, "0.5"), Decision(2, "0.25")))
PROMPT = tiny.text_inputs("tvvvvtvtt")


def text_model(family="llama"):
    """Of few blocks: they run in an interpreter."""
    model = tiny.text_model(family)
    model.config.num_hidden_layers = LAYERS
    del model.model.layers[LAYERS:]
    return model


def blocks(model):
    return text_decoder_of(model)[0].layers


def groups(block):
    attention, mlp = block.self_attn, block.mlp
    return [attention.k_proj, attention.q_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]


def joined(model):
    """Per block, whether its attention's and its MLP's projections are one product."""
    width = blocks(model)[0].self_attn.q_proj.in_features
    rows = torch.zeros(1, width, dtype=next(model.parameters()).dtype)
    with torch.no_grad():
        return [tuple(product(group, rows) is not None for group in groups(block)) for block in blocks(model)]


def answer(model, inputs):
    """Logits of a model that is routed, or by the other backend."""
    there = nullcontext() if hasattr(type(model), "_reroute_undo") else routed(model, TWO)
    with there, torch.no_grad():
        return model(**inputs, use_cache=True).logits


def own_memory(model):
    return all(x.untyped_storage().nbytes() == x.nbytes for x in model.parameters())


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_one_product_gives_what_the_modules_give(family):
    model, selected = text_model(family), []
    expected = answer(model, PROMPT)
    for apart in (False, True):
        with routed(model, TWO, backend="triton") as routing:
            if apart:
                for parameter in model.parameters():
                    parameter.data = parameter.data.clone()
            assert joined(model) == [(not apart, not apart)] * LAYERS
            assert_close(answer(model, PROMPT), expected, atol=1e-4, rtol=1e-4)
            selected.append([record.selected for record in routing.traces[0].decisions])
    assert selected[0] == selected[1]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_queries_keys_and_values_are_those_of_the_modules(family):
    model = text_model(family)
    _, names = text_decoder_of(model)
    rows = torch.randn(5, 64, generator=torch.Generator().manual_seed(3))
    with routed(model, TWO, backend="triton"), torch.no_grad():
        block = Block(blocks(model)[1], names)
        query, key, value = block.query_key_value(rows)
        assert query.shape == (5, 4, 16)
        assert key.shape == value.shape == (5, 2, 16)
        assert value.stride(0) == (4 + 2 + 2) * 16  # a part of one product
        assert_close(query, block.queries(rows))
        assert_close(key, block.keys(rows))
        assert_close(value, block.values(rows))
        query, value = block.query_value(rows)
        assert value.stride(0) == (4 + 2) * 16
        assert_close(query, block.queries(rows))
        assert_close(value, block.values(rows))


def test_parameters_keep_their_identity_names_and_values_and_get_their_own_memory_back():
    model = tiny.llava()
    before = {name: (parameter, parameter.detach().clone()) for name, parameter in model.named_parameters()}
    with routed(model, TWO, backend="triton"):
        assert not own_memory(model)
        _check_same(model, before)
    _check_same(model, before)
    assert own_memory(model)
    assert joined(model) == [(False, False)] * tiny.LAYERS


def _check_same(model, before):
    assert [name for name, _ in model.named_parameters()] == list(before)
    for name, parameter in model.named_parameters():
        assert parameter is before[name][0]
        assert torch.equal(parameter, before[name][1])
    assert all(
        torch.equal(tensor, before[name][1]) for name, tensor in model.state_dict().items() if name in before
    )


def test_a_routed_model_is_saved_and_loaded_as_it_is(tmp_path):
    model = tiny.llava()
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "plain")
    with routed(model, TWO, backend="triton"):
        model.save_pretrained(tmp_path / "routed")
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path / "routed").eval()
    assert list(loaded.state_dict()) == list(expected)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    with routed(loaded, TWO, backend="triton"):
        assert joined(loaded) == [(True, True)] * tiny.LAYERS
    plain, routed_ = (tmp_path / name / "model.safetensors" for name in ("plain", "routed"))
    assert plain.stat().st_size == routed_.stat().st_size


@pytest.mark.parametrize("assign", [False, True])
def test_weights_that_are_loaded_later_are_computed_with(assign):
    model, other = text_model(), tiny.draw(text_model(), seed=1)
    with routed(model, TWO, backend="triton"):
        model.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
        assert joined(model)[0] == (not assign, not assign)
        logits = answer(model, PROMPT)
    assert_close(logits, answer(other, PROMPT), atol=1e-4, rtol=1e-4)
    assert own_memory(model)


def adapted(model):
    config = LoraConfig(r=2, target_modules=r".*layers.*(q_proj|k_proj|up_proj)", init_lora_weights=False)
    torch.manual_seed(1)
    return get_peft_model(model, config).eval()


@pytest.mark.parametrize("safe", [False, True])
def test_an_adapter_that_comes_and_is_merged_while_routed_is_computed_with(safe):
    expected = answer(adapted(text_model()).merge_and_unload(), PROMPT)
    model = text_model()
    apply(model, TWO, backend="triton")
    with_adapter = adapted(model)
    assert joined(model) == [(False, False)] * LAYERS
    assert_close(answer(model, PROMPT), expected, atol=1e-4, rtol=1e-4)
    assert with_adapter.merge_and_unload(safe_merge=safe) is model
    assert_close(answer(model, PROMPT), expected, atol=1e-4, rtol=1e-4)
    remove(model)
    assert own_memory(model)
    assert_close(answer(model, PROMPT), expected, atol=1e-4, rtol=1e-4)


def test_a_model_in_another_precision_is_computed_with():
    model, other = text_model(), text_model().half()
    inputs = {**PROMPT, "inputs_embeds": PROMPT["inputs_embeds"].half()}
    with routed(model, TWO, backend="triton"):
        model.half()
        assert joined(model) == [(False, False)] * LAYERS
        logits = answer(model, inputs)
    assert logits.dtype == torch.float16
    assert_close(logits, answer(other, inputs), atol=5e-2, rtol=5e-2)
    assert own_memory(model)


def test_a_weight_that_was_replaced_is_computed_with():
    model, other = text_model(), text_model()
    with routed(model, TWO, backend="triton"):
        for each in (model, other):
            attention, mlp = blocks(each)[2].self_attn, blocks(each)[1].mlp
            attention.q_proj.weight = nn.Parameter(-attention.q_proj.weight.detach(), requires_grad=False)
            mlp.up_proj = nn.Linear(*mlp.up_proj.weight.T.shape, bias=False).requires_grad_(False)
            mlp.up_proj.weight.fill_(0.05)
        assert [joined(model)[layer] for layer in (1, 2)] == [(True, False), (False, True)]
        logits = answer(model, PROMPT)
    assert_close(logits, answer(other, PROMPT), atol=1e-4, rtol=1e-4)
    assert own_memory(model)


def test_a_hook_on_a_linear_layer_is_called():
    model, seen = text_model(), []
    with routed(model, TWO, backend="triton"):
        handle = blocks(model)[1].mlp.gate_proj.register_forward_hook(lambda *args: seen.append(1))
        answer(model, PROMPT)
        handle.remove()
        assert len(seen) == 1
        assert joined(model)[1] == (True, True)


def test_memory_that_something_else_shares_is_left_alone():
    model = tiny.text_model()
    first, second, third = (blocks(model)[layer] for layer in (0, 1, 2))
    second.self_attn.k_proj.weight = first.self_attn.k_proj.weight  # the very parameter
    flat = torch.cat([module.weight.detach() for module in groups(third)[1]])
    for module, weight in zip(groups(third)[1], flat.chunk(2), strict=True):
        module.weight.data = weight
    tied = blocks(model)[4].mlp.gate_proj.weight.data
    blocks(model)[5].mlp.gate_proj.weight.data = tied
    with routed(model, TWO, backend="triton"):
        assert blocks(model)[5].mlp.gate_proj.weight.data_ptr() == tied.data_ptr()
        assert second.self_attn.k_proj.weight is first.self_attn.k_proj.weight
        assert third.mlp.gate_proj.weight.data_ptr() == flat.data_ptr()
        shared = [joined(model)[layer] for layer in (0, 1, 4, 5)]
    assert shared == [(True, True), (False, True), (True, False), (True, False)]
    assert third.mlp.gate_proj.weight.data_ptr() == flat.data_ptr()
    assert blocks(model)[4].mlp.gate_proj.weight.data_ptr() == tied.data_ptr()


def test_a_failure_halfway_leaves_the_model_as_it_was(monkeypatch):
    model, lay, calls = text_model(), Joined.lay, []

    def fail(self, parameters):
        calls.append(1)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("out of memory")
        lay(self, parameters)

    monkeypatch.setattr(Joined, "lay", fail)
    with pytest.raises(torch.OutOfMemoryError):
        apply(model, TWO, backend="triton")
    assert own_memory(model)
    assert type(model).__name__ == "LlamaForCausalLM"
    monkeypatch.undo()
    answer(model, PROMPT)


def test_what_a_graph_reads_is_the_same_until_something_moves():
    model = text_model()
    with routed(model, TWO, backend="triton"):
        read = Read(Decoder(*text_decoder_of(model)))
        first = read.addresses()
        answer(model, PROMPT)
        with torch.no_grad():
            blocks(model)[2].mlp.up_proj.weight.mul_(2)
        assert read.addresses() == first
        handle = blocks(model)[2].mlp.up_proj.register_forward_hook(lambda *args: None)
        assert read.addresses() == "up_proj has hooks"
        handle.remove()
        assert read.addresses() == first
        norm = blocks(model)[1].input_layernorm
        norm.weight.data = norm.weight.data.clone()
        assert read.addresses() != first
        blocks(model)[1].mlp.act_fn.forward = torch.relu
        assert read.addresses() == "act_fn has another forward"
