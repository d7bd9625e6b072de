"""Heads divided among two real processes: every rank takes the decisions of one process, bit for bit alike."""

import pytest
import torch
from reroute_conformance.tiny.qwen import qwen_inputs, tiny_qwen
from reroute_optimized import routed
from reroute_spec import Decision, Schedule
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM

from .. import tiny
from .launch import launch

pytestmark = pytest.mark.timeout(
    300
)  # the first test waits for both processes, which may share a core with others
FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
SHARDED = ("llava", "qwen2_5_vl", "qwen3_5")
CASES = [(family, name) for family in FAMILIES for name in ("mean", "max", "delete")]
CASES += [("llava", "previous"), ("qwen3_vl", "planned")]
CLOSE = {"atol": 2e-3, "rtol": 2e-3}


def deep_llava():
    """The tests' LLaVA with blocks enough for decisions at 3, 7 and 8, whose kept rows have margins."""
    from reroute_conformance.tiny import tiny_llava

    return tiny_llava(num_layers=10)


def nan_in_one_head():
    """A NaN in the last key head, which the second process has."""
    model = deep_llava()
    model.model.language_model.layers[3].self_attn.k_proj.weight.data[-1, 0] = torch.nan
    return model


def uneven():
    return LlamaForCausalLM(LlamaConfig(**{**tiny.TEXT, "num_key_value_heads": 1, "num_hidden_layers": 8}))


def llava_inputs():
    """Two padded requests, and a later turn of both with an image."""
    from reroute_conformance.tiny import PATCHES_PER_IMAGE, tiny_processor

    image, generator = tiny_processor().image_token_id, torch.Generator().manual_seed(0)
    rows = [[5] * 4 + [image] * PATCHES_PER_IMAGE + [6, 7, 8], [9] + [image] * 2 * PATCHES_PER_IMAGE + [4]]
    turn = [[3] + [image] * PATCHES_PER_IMAGE + [5, 8]] * 2
    made = []
    for part in (rows, turn):
        width = max(map(len, part))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in part])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part])
        pictures = int((ids == image).sum()) // PATCHES_PER_IMAGE
        pixels = torch.randn(pictures, 3, 84, 84, generator=generator)
        made.append({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels})
    del made[1]["attention_mask"]
    return {"prefill": made[0], "turn": made[1]}


def inputs_of(family):
    if family == "llava":
        return llava_inputs()
    layouts = [["ttt", (1, 8, 8), "ttttt"], ["tt", (1, 4, 8), "t", (2, 4, 4), "ttt"]]
    turn = qwen_inputs(family, [["t", (1, 4, 8), "tt"]] * 2, seed=1)
    del turn["attention_mask"]
    return {"prefill": qwen_inputs(family, layouts), "turn": turn}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of every family, and what it is asked."""
    folder = tmp_path_factory.mktemp("ranks")
    deep_llava().save_pretrained(folder / "llava")
    nan_in_one_head().save_pretrained(folder / "nan")
    uneven().save_pretrained(folder / "uneven")
    for family in FAMILIES[1:]:
        tiny_qwen(family, std=0.1 if family == "qwen3_5" else 0.2).save_pretrained(folder / family)
    torch.save({family: inputs_of(family) for family in FAMILIES}, folder / "inputs.pt")
    return folder


@pytest.fixture(scope="module")
def ranks(folder):
    """What both ranks saw."""
    ended = launch("ranks.py", folder, timeout=280)
    assert [rank.code for rank in ended] == [0, 0], "\n".join(rank.said[-3000:] for rank in ended)
    return [torch.load(folder / f"seen.{rank}.pt") for rank in (0, 1)]


def selections(decided):
    return [[(layer, rows) for layer, rows, _ in request] for request in decided]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_two_processes_decide_as_one(ranks, family, name):
    for rank in ranks:
        whole, parts = rank[family, name]
        for turn in ("prefill", "turn", "generate"):
            assert selections(parts[turn]) == selections(whole[turn])
            for one, two in zip(whole[turn], parts[turn], strict=True):
                for (_, _, expected), (_, _, found) in zip(one, two, strict=True):
                    assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-5, rtol=1e-3)
        assert any(selections(whole["prefill"])[0])
        assert parts["rows"] == whole["rows"]
        assert torch.equal(parts["tokens"], whole["tokens"])
        for found, expected in zip(parts["logits"], whole["logits"], strict=True):
            assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_the_ranks_agree_bit_for_bit(ranks, family, name):
    for turn in ("prefill", "turn", "generate"):
        first, second = (rank[family, name][1][turn] for rank in ranks)
        assert first == second


def test_the_heads_of_a_family_with_a_plan_are_divided_and_the_others_replicated(ranks):
    for rank in ranks:
        for family in FAMILIES:
            whole, parts = rank[family, "mean"]
            divided = family in SHARDED
            assert (whole["shards"], parts["shards"]) == (1, 2 if divided else 1)
            assert parts["keys"] == [heads // 2 if divided else heads for heads in whole["keys"]]
        assert rank["qwen3_vl", "planned"][1]["shards"] == 2


def test_a_prefix_is_shared_by_processes_too(ranks):
    for rank in ranks:
        whole, parts = rank["prefix"]
        assert selections(parts) == selections(whole) == selections(rank["llava", "mean"][0]["prefill"][1:])
        assert parts == ranks[0]["prefix"][1]


def test_kernels_that_know_only_their_own_heads_are_refused(ranks):
    for rank in ranks:
        field, said = rank["triton"]
        assert field == "backend"
        assert "here 2 share them" in said


def test_ranks_agree_in_bfloat16(ranks):
    assert ranks[0]["bfloat16"] == ranks[1]["bfloat16"]
    assert len(ranks[0]["bfloat16"][0]) == 2


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_a_nan_in_the_heads_of_one_process_is_refused_by_all(ranks, reduction):
    first, second = (rank["nan", reduction] for rank in ranks)
    assert first == second
    assert "NaN" in first[1]


def test_heads_that_cannot_be_divided_are_refused(ranks):
    for rank in ranks:
        field, said = rank["uneven"]
        assert field == "model"
        assert "num_key_value_heads is 1, for 2 processes" in said


def test_weights_that_are_gathered_block_by_block_are_refused(ranks):
    for rank in ranks:
        assert rank["fsdp"][0] == "model"
        assert "FSDP" in rank["fsdp"][1]


def test_processes_with_whole_models_wait_for_nobody(ranks, folder):
    model, inputs = deep_llava(), llava_inputs()
    for rank, part in zip(ranks, ("prefill", "turn"), strict=True):
        shards, found = rank["data parallel"]
        assert shards == 1
        with routed(model, Schedule("reroute", (Decision(3, "0.5"), Decision(7, "0.25")))) as result:
            model(**inputs[part])
        expected = [[(d.layer, d.selected, d.scores) for d in trace.decisions] for trace in result.traces]
        assert found == expected
