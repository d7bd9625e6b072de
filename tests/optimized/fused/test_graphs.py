"""What is captured once and replayed. Without a GPU, a replay runs the same work again on the graph's own inputs, with all that a
captured graph holds fast: whatever it reads besides would be of another request.
"""

import pytest
import torch
from peft import LoraConfig
from reroute_optimized import routed
from reroute_optimized.fused.graphs import MOST_GRAPHS, Graphs
from reroute_spec import Decision, RerouteError, Schedule, ScoreRule
from torch.testing import assert_close

from .. import tiny

pytestmark = pytest.mark.usefixtures("_library_kernels")

TWO = Schedule("reroute", (Decision(2, "0.5"), Decision(4, "0.25")))
SCHEDULES = {
    "reroute": TWO,
    "delete": Schedule("delete", TWO.decisions),
    "per image": Schedule("reroute", TWO.decisions, pool="survivors", scope="image"),
    "renumber": Schedule("delete", TWO.decisions, positions="renumber"),
    "previous": Schedule("delete", (Decision(3, "0.5"),), score=ScoreRule(source="previous")),
}
ROWS = [tiny.row(4, 1, 5, 1), tiny.row(2, 2, 3, 2), tiny.row(6, 0, 0, 3)]


class Again:
    """Runs the work again."""

    def __init__(self, held=1000):
        self.held = held

    def capture(self, work):
        work()
        return work, self.held


def graphs_of(routing, model):
    """Graphs of a model whose pools are as large as they will be."""
    model(**tiny.llava_inputs(ROWS * 3), use_cache=True)
    for pool in routing._router.fused._pools.values():
        pool.reserve(60)
    graphs = routing._router.fused.graphs = Graphs(Again(), 10**9)
    return graphs


def session(model, schedule, executor, requests):
    """Logits, traces and tokens of prompts of one layout, one after another."""
    shown = []
    with routed(model, schedule, backend="triton") as routing, torch.no_grad():
        graphs = graphs_of(routing, model) if executor else None
        for seed in requests:
            rows = [tiny.row(4, 1, 5, seed), tiny.row(2, 2, 3, seed + 1), tiny.row(6, 0, 0, seed + 2)]
            out = model(**tiny.llava_inputs(rows), use_cache=True)
            shown.append((out.logits, [trace.to_dict() for trace in routing.traces]))
            for token in range(3):
                step = torch.tensor([[3 + token], [4], [5 + seed]])
                shown.append((model(input_ids=step, past_key_values=out.past_key_values).logits, None))
    return shown, graphs


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_replay_gives_what_a_run_gives(name):
    model, schedule = tiny.llava(), SCHEDULES[name]
    eager, _ = session(model, schedule, False, range(4))
    replayed, graphs = session(model, schedule, True, range(4))
    assert graphs.eager == {"met for the first time": graphs.captured}
    assert graphs.replayed == 4 + 12 - graphs.captured
    assert 2 <= graphs.captured <= 4  # prompts, and tokens before and after tables grow
    for (logits, trace), (others, other) in zip(eager, replayed, strict=True):
        assert_close(logits, others, atol=0, rtol=0, equal_nan=True)
        assert trace == other


def test_results_outlive_the_next_replay():
    model = tiny.llava()
    with routed(model, TWO, backend="triton") as routing, torch.no_grad():
        graphs_of(routing, model)
        outs = []
        for seed in (1, 2, 3, 4):
            out = model(**tiny.llava_inputs([tiny.row(4, 1, 5, seed)]))
            outs.append((out.logits, out.logits.clone(), out.past_key_values, routing._router.last))
        for logits, kept, _, _ in outs:
            assert_close(logits, kept, atol=0, rtol=0)
        assert outs[2][3].traces()[0] != outs[3][3].traces()[0]


def test_generate_runs_on_graphs():
    model, inputs, tokens = tiny.llava(), tiny.llava_inputs(ROWS), []
    model.generation_config.eos_token_id = None
    for replays in (False, True):
        with routed(model, TWO, backend="triton") as routing:
            graphs = graphs_of(routing, model) if replays else None
            for _ in range(3):
                out = model.generate(**inputs, max_new_tokens=4, do_sample=False, pad_token_id=0)
            tokens.append(out)
    assert torch.equal(*tokens)
    assert graphs.replayed == 3 + 9 - graphs.captured


def test_weights_that_move_or_change_are_seen():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    with routed(model, TWO, backend="triton") as routing, torch.no_grad():
        graphs, layers = graphs_of(routing, model), model.model.language_model.layers
        for _ in range(3):
            model(**inputs, use_cache=False)
        layers[3].mlp.down_proj.weight.mul_(2)  # in place: the graph reads it
        model(**inputs, use_cache=False)
        assert (graphs.captured, graphs.dropped) == (1, 0)
        layers[3].mlp.down_proj = torch.nn.Linear(*reversed(layers[3].mlp.down_proj.weight.shape), bias=False)
        changed = model(**inputs, use_cache=False).logits
        assert (graphs.captured, graphs.dropped) == (2, 1)
    with routed(model, TWO, backend="triton"), torch.no_grad():
        assert_close(model(**inputs, use_cache=False).logits, changed, atol=0, rtol=0)


def test_pages_that_move_are_seen():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    with routed(model, TWO, backend="triton") as routing, torch.no_grad():
        graphs, kept = graphs_of(routing, model), []
        for _ in range(3):
            out = model(**inputs)
        for _ in range(30):
            kept.append(model(**inputs))
        assert graphs.dropped > 0
        for other in kept:
            assert_close(other.logits, out.logits, atol=0, rtol=0)
            for one, two in zip(other.past_key_values.layers, out.past_key_values.layers, strict=True):
                assert torch.equal(one.keys, two.keys)


def test_a_projection_with_a_hook_runs_without_a_graph_and_says_so(caplog):
    model, inputs, seen = tiny.llava(), tiny.llava_inputs(ROWS), []
    with routed(model, TWO, backend="triton") as routing, torch.no_grad():
        graphs = graphs_of(routing, model)
        handle = model.model.language_model.layers[1].mlp.down_proj.register_forward_hook(
            lambda *args: seen.append(1)
        )
        for _ in range(3):
            model(**inputs, use_cache=False)
        handle.remove()
    assert seen == [1] * 3
    assert graphs.eager == {"down_proj has hooks": 3}
    assert [record.message for record in caplog.records] == ["runs without a graph: down_proj has hooks"]


def test_an_adapter_is_in_no_graph():
    """It may be scaled, merged or disabled in place."""
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    model.add_adapter(LoraConfig(target_modules=["o_proj", "down_proj"]))
    model.eval()
    with routed(model, TWO, backend="triton") as routing, torch.no_grad():
        graphs = graphs_of(routing, model)
        for _ in range(3):
            model(**inputs, use_cache=False)
    assert graphs.captured == 0
    assert graphs.eager == {"o_proj is a Linear": 3}


def test_a_capture_that_fails_is_told_and_not_tried_again(caplog):
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)

    class Broken:
        tried = 0

        def capture(self, work):
            self.tried += 1
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with routed(model, TWO, backend="triton") as routing, torch.no_grad():
        graphs = routing._router.fused.graphs = Graphs(Broken(), 10**9)
        outs = [model(**inputs, use_cache=True) for _ in range(4)]
        assert_close(outs[3].logits, outs[0].logits, atol=0, rtol=0)
    assert graphs.executor.tried == 1
    assert sum(graphs.eager.values()) == 4
    (record,) = caplog.records
    assert "capture failed: RuntimeError: operation not permitted" in record.message
    del outs
    assert not any(pool.held for pool in routing._router.fused._pools.values())


def test_the_least_used_goes_first_and_memory_is_bounded():
    graphs, runs = Graphs(Again(held=100), limit=1000), []

    def ask(key):
        return graphs.run(
            key, (), [torch.zeros(1)], lambda given: runs.append(key) or given[0] + 1, torch.clone
        )

    for key in range(12):
        ask(key), ask(key)
        assert graphs.held <= 1000
    assert len(graphs) == 9  # 104 bytes each
    assert graphs.dropped == 3
    ask(0)
    assert graphs.captured == 13  # met before: captured at once
    for key in range(100, 100 + 5 * MOST_GRAPHS):
        ask(key)
    assert len(graphs._met) <= 4 * MOST_GRAPHS
    large = Graphs(Again(held=2000), limit=1000)
    for _ in range(3):
        assert large.run("key", (), [torch.zeros(1)], lambda given: given[0] + 1, torch.clone) == 1
    assert large.captured == 0
    assert len(large.eager) == 2


def test_inputs_of_other_shapes_are_other_graphs():
    graphs = Graphs(Again(), 10**6)
    for size in (1, 2, 1, 2, 1, 2):
        out = graphs.run("key", (), [torch.zeros(size)], lambda given: given[0] + 1, torch.clone)
        assert out.tolist() == [1] * size
    assert (graphs.captured, graphs.replayed) == (2, 4)


def test_a_nan_in_a_replay_is_refused_and_leaves_nothing():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    with routed(model, TWO, backend="triton") as routing, torch.no_grad():
        graphs = graphs_of(routing, model)
        for _ in range(3):
            model(**inputs)
        model.model.language_model.layers[2].self_attn.k_proj.weight[0, 0] = torch.nan
        with pytest.raises(RerouteError, match=r"decisions\[0\].scores"):
            model(**inputs)
        assert graphs.replayed == 3
        assert not any(pool.held for pool in routing._router.fused._pools.values())
