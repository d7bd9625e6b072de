"""Backend ``triton`` after a prefix: its pages are shared, its prompts are answered as without it."""

from functools import partial
from itertools import product

import pytest
import torch
from reroute_optimized import routed
from reroute_optimized.fused.graphs import Graphs
from reroute_optimized.turn.pages import PAGE
from torch.testing import assert_close

from ..prefix import test_prefix as asked
from ..prefix.begun import beginning_of, joined, model_of, question, questions
from .test_graphs import Again

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl")
TWO = asked.SCHEDULES["reroute"]


@pytest.fixture(autouse=True)
def _fused(monkeypatch, _library_kernels):
    monkeypatch.setattr(asked, "routed", partial(routed, backend="triton"))


@pytest.mark.parametrize("name", asked.SCHEDULES)
@pytest.mark.parametrize(("family", "side"), [*product(FAMILIES, ["left"]), ("llava", "right")])
def test_prompts_that_begin_alike_are_answered_as_each_by_itself(family, name, side):
    asked.test_prompts_that_begin_alike_are_answered_as_each_by_itself(family, name, side)


@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("name", asked.NOT_HYBRID)
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_wherever_the_first_decision_is_and_whatever_it_reads(family, name, kind):
    asked.test_wherever_the_first_decision_is_and_whatever_it_reads(family, name, kind)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_positions_may_be_counted_anew(kind):
    asked.test_positions_may_be_counted_anew(kind)


def test_requests_hold_the_prefixs_pages_and_go_on_in_their_own():
    model, beginning = model_of("llava"), beginning_of("llava")
    inputs = joined(beginning, questions("llava"))
    with routed(model, TWO, backend="triton") as result, torch.no_grad():
        pools = result._router.fused._pools
        with result.prefix(beginning) as prefix:
            rows, pool = prefix._recorded.opening.layers[0].held, pools[0]
            shared, before = prefix.num_rows // PAGE, rows.rectangle(rows.pool.keys[0])
            cache = model(**inputs, use_cache=True).past_key_values
            held = cache.layers[0].held
            assert shared
            assert (held.tables[:, :shared] == rows.tables[:, :shared]).all()
            own = sum(
                len(table[shared:])
                for table in [t[: -(-n // PAGE)] for t, n in zip(held.tables, held.lengths, strict=True)]
            )
            assert pool.held == len(rows.pages()) + own
            model(input_ids=torch.tensor([[3], [4], [5]]), past_key_values=cache)
            assert torch.equal(rows.rectangle(rows.pool.keys[0]), before)
            del cache, held
            assert pool.held == len(rows.pages())
            sizes = [pool.size for pool in pools.values()]
            for seed in range(40):
                model(**joined(beginning, [question("llava", 1 + seed % 5, seed)]), use_cache=seed % 2 == 0)
            assert [pool.size for pool in pools.values()] == sizes
            assert pool.held == len(rows.pages())
        del prefix, rows
    assert pool.held == 0


def test_prompts_after_a_prefix_run_on_graphs():
    model, beginning, given = model_of("llava"), beginning_of("llava"), []
    for replays in (False, True):
        with routed(model, TWO, backend="triton") as result, result.prefix(beginning), torch.no_grad():
            if replays:
                for group in range(3):
                    result._router.fused.pool(group, torch.zeros(1)).reserve(30)
                graphs = result._router.fused.graphs = Graphs(Again(), 10**9)
            given.append(
                [model(**joined(beginning, [question("llava", 4, seed)])).logits for seed in range(4)]
            )
    assert (graphs.captured, graphs.replayed) == (1, 3)
    for one, other in zip(*given, strict=True):
        assert_close(one, other, atol=0, rtol=0)
