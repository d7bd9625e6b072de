"""A whole prefill without data: every shape and index follows from the masks, so nothing in it can wait for a device."""

from functools import cache
from itertools import product

import pytest
import torch
from reroute_conformance.tiny.qwen import tiny_qwen
from reroute_optimized.fused import turn
from reroute_optimized.fused.decode import run_row
from reroute_optimized.fused.engine import Fused
from reroute_optimized.fused.plan import PackedPlan
from reroute_optimized.fused.turn import FusedTurn, PackedRows
from reroute_optimized.model.decoder import Decoder
from reroute_optimized.model.deepstack import DeepStack
from reroute_optimized.stages import engine
from reroute_optimized.stages.engine import Rows, Turn
from reroute_optimized.turn.cache import make_cache
from reroute_optimized.turn.layout import build_layout
from reroute_reference.families import text_decoder_of
from reroute_spec import Decision, Schedule, ScoreRule
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from .. import tiny

TWO = (Decision(3, "0.5"), Decision(7, "0.25"))
SCHEDULES = {
    "reroute": Schedule("reroute", TWO),
    "delete": Schedule("delete", TWO),
    "per image": Schedule("reroute", TWO, pool="survivors", scope="image"),
    "last 3": Schedule("delete", TWO, score=ScoreRule(query="last_n", n=3, heads="max")),
    "previous": Schedule("delete", (Decision(4, "0.5"),), score=ScoreRule(source="previous")),
    "renumber": Schedule("delete", TWO, positions="renumber"),
}
LAYOUTS = ["ttvvvvvvvvtt", "tttttttvvvvt", "tttttttttttt"]


@cache
def decoder_of(family):
    if family == "llama":
        model = tiny.text_model()
        model.model.layers.extend(tiny.text_model().model.layers[:2])
        for layer, block in enumerate(model.model.layers):
            block.self_attn.layer_idx = layer
        model.config.num_hidden_layers = 8
    else:
        model = tiny_qwen(family)
    return Decoder(*text_decoder_of(model))


def prefill(family, schedule, fused=False):
    """Layout, embeddings and prefill, all within the mode."""
    decoder = decoder_of(family)
    visual = [[letter == "v" for letter in layout] for layout in LAYOUTS]
    real = [[True] * 12, [False] * 2 + [True] * 10, [True] * 12]
    images = [[4, 4], [4], []]
    hidden = torch.randn(3, 12, 64)
    layout = build_layout(schedule, 8, real, visual, images, hidden.device)
    features = None
    if decoder.names.deepstack is not None:
        features = DeepStack.of([torch.randn(12, 64), torch.randn(12, 64)], visual, hidden)
    rotary = decoder.position_embeddings(hidden, torch.arange(12)[None])
    if fused:
        plan = PackedPlan.of(layout, schedule.score.n, hidden.device)
        rows = PackedRows(layout, hidden, rotary, features, plan=plan)
        cache, engine = make_cache(decoder), Fused(decoder, schedule)
        final = FusedTurn(decoder, schedule, rows, cache, fused=engine).run()
        if engine.as_modules:  # a token runs as in the other backend
            return final[:, -1:]
        angles = tuple(table[:, :1] for table in rotary)
        return run_row(decoder, engine, cache, hidden[:, :1], [angles], None)
    rows = Rows(layout, hidden, rotary, features)
    return Turn(decoder, schedule, rows, make_cache(decoder), keep_hidden_states=True).run()


REFUSED = {
    ("qwen2_5_vl", "renumber"),
    ("qwen3_vl", "renumber"),
    ("qwen3_5", "renumber"),
    ("qwen3_5", "previous"),
}
FAMILIES = ("llama", "qwen2_5_vl", "qwen3_vl", "qwen3_5")


@pytest.mark.parametrize(("family", "name"), sorted(set(product(FAMILIES, SCHEDULES)) - REFUSED))
def test_a_prefill_runs_without_data(family, name, monkeypatch):
    monkeypatch.setattr(engine, "reads_at_once", lambda device: False)  # as on a device that does not wait
    decoder_of(family)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        final = prefill(family, SCHEDULES[name])
    assert final.shape[0] == 3
    assert final.shape[2] == 64


@pytest.mark.parametrize(("family", "name"), sorted(set(product(FAMILIES, SCHEDULES)) - REFUSED))
def test_a_fused_prefill_and_a_token_run_without_data(family, name, monkeypatch):
    monkeypatch.setattr(turn, "reads_at_once", lambda device: False)
    monkeypatch.setattr(engine, "reads_at_once", lambda device: False)
    decoder_of(family)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        row = prefill(family, SCHEDULES[name], fused=True)
    assert row.shape == (3, 1, 64)


def test_what_reads_data_is_found_out(monkeypatch):
    monkeypatch.setattr(engine, "reads_at_once", lambda device: False)
    block = decoder_of("llama").blocks[2]
    handle = block.register_forward_hook(lambda module, args, output: output[output > 0])
    try:
        with (
            torch.no_grad(),
            FakeTensorMode(allow_non_fake_inputs=True),
            pytest.raises(DynamicOutputShapeException),
        ):
            prefill("llama", SCHEDULES["reroute"])
    finally:
        handle.remove()
