"""What a routed prefill leaves in the cache, and what later turns make of it."""

import pytest
import torch
from reroute_optimized import routed
from reroute_optimized.conforming.target import torch_target
from reroute_optimized.turn.cache import RoutedCache
from reroute_spec import Decision, RerouteError, Schedule
from torch.testing import assert_close
from transformers import DynamicCache, StaticCache

from .. import oracle, tiny

TWO = (Decision(2, "0.5"), Decision(4, "0.25"))
LATER = torch.tensor([[7, 50, 90, 12, 33], [8, 51, 91, 13, 34], [9, 52, 92, 14, 35]])
ROWS = [tiny.row(4, 1, 5, 1), tiny.row(2, 2, 3, 2), tiny.row(6, 0, 0, 3)]


def feed(model, cache, tokens, chunks, **kwargs):
    """Logits [B, T, vocab] of ``tokens`` given in pieces of the sizes ``chunks``."""
    pieces = tokens.split(chunks, dim=1)
    return torch.cat(
        [model(input_ids=piece, past_key_values=cache, **kwargs).logits for piece in pieces], dim=1
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("action", ["reroute", "delete"])
@pytest.mark.parametrize(("rows", "side"), [(ROWS, "left"), (ROWS, "right"), (ROWS[:1], "left")])
def test_later_text_attends_to_what_each_block_cached(rows, side, action, attention):
    model, schedule = tiny.llava(attention), Schedule(action, TWO)
    inputs = tiny.llava_inputs(rows, side)
    with routed(model, schedule):
        answers = []
        for chunks in ([1] * 5, [5], [2, 3], [1, 4]):
            cache = model(**inputs, use_cache=True).past_key_values
            answers.append(feed(model, cache, LATER[: len(rows)], chunks))
    for request, real in enumerate(inputs["attention_mask"].bool()):
        images = [int((row == tiny.IMAGE).sum()) // 16 for row in inputs["input_ids"]]
        single = {"input_ids": inputs["input_ids"][request, real][None]}
        if images[request]:
            single["pixel_values"] = inputs["pixel_values"][sum(images[:request]) :][: images[request]]
        expected = oracle.run(model, single, schedule, later=LATER[request]).logits[-5:]
        for answer in answers:
            assert_close(answer[request], expected, atol=1e-4, rtol=1e-4)


def test_the_users_empty_cache_is_the_one_that_is_filled():
    model, inputs = tiny.llava(), tiny.llava_inputs([tiny.row(4, 1, 5)])
    for cache in (DynamicCache(), DynamicCache(config=model.config), RoutedCache()):
        with routed(model, Schedule("reroute", TWO)) as result:
            out = model(**inputs, past_key_values=cache)
        assert out.past_key_values is cache
        assert isinstance(cache, RoutedCache)
        assert isinstance(cache, DynamicCache)
        assert tuple(cache.get_seq_length(layer) for layer in range(tiny.LAYERS)) == result.kv_lengths
        assert cache.get_seq_length() == inputs["input_ids"].shape[1]


def test_a_cache_is_made_as_transformers_makes_it():
    model, inputs = tiny.llava(), tiny.llava_inputs([tiny.row(4, 1, 5)])
    with routed(model, Schedule("reroute", TWO)):
        assert isinstance(model(**inputs).past_key_values, RoutedCache)
        assert model(**inputs, use_cache=False).past_key_values is None
        model.config.text_config.use_cache = False
        assert model(**inputs).past_key_values is None


def test_lengths_and_positions_count_deferred_rows():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    with routed(model, Schedule("delete", TWO)):
        cache = model(**inputs).past_key_values
        feed(model, cache, LATER, [2, 3])
    assert cache.routing.num_rows.tolist() == [len(tokens) + 5 for tokens in ROWS]
    assert cache.routing.next_positions[:, -1].tolist() == [len(tokens) + 5 for tokens in ROWS]
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] + 5


def test_given_positions_of_later_rows_are_used_and_remembered():
    model, inputs = tiny.llava(), tiny.llava_inputs([ROWS[0]])
    tokens = LATER[:1]
    start = len(ROWS[0])
    with routed(model, Schedule("reroute", TWO)):
        cache = model(**inputs).past_key_values
        own = feed(model, cache, tokens, [5])
        cache = model(**inputs).past_key_values
        given = torch.arange(start, start + 5)[None]
        assert torch.equal(model(input_ids=tokens, past_key_values=cache, position_ids=given).logits, own)
        cache = model(**inputs).past_key_values
        far = model(input_ids=tokens, past_key_values=cache, position_ids=given + 40).logits
    assert not torch.allclose(far, own, atol=1e-3)
    assert cache.routing.next_positions[0, -1] == start + 45


def test_positions_given_for_padding_do_not_count():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    positions = (inputs["attention_mask"].cumsum(1) - 1).masked_fill(inputs["attention_mask"] == 0, 999)
    with routed(model, Schedule("reroute", TWO)):
        cache = model(**inputs, position_ids=positions).past_key_values
        expected = model(**inputs).past_key_values
        assert cache.routing.next_positions[:, -1].tolist() == [len(tokens) for tokens in ROWS]
        assert torch.equal(feed(model, cache, LATER, [5]), feed(model, expected, LATER, [5]))


def test_crop_forgets_later_rows_and_nothing_of_the_prefill():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    with routed(model, Schedule("reroute", TWO)):
        cache = model(**inputs).past_key_values
        first = feed(model, cache, LATER, [5])
        cache.crop(0)
        cache.crop(-3)
        assert torch.allclose(feed(model, cache, LATER[:, 2:], [3]), first[:, 2:], atol=1e-4)
        cache.crop(-5)
        assert torch.allclose(feed(model, cache, LATER, [5]), first, atol=1e-4)
        for wrong in (-6, 2):
            with pytest.raises(RerouteError, match="tokens_to_remove"):
                cache.crop(wrong)


def test_requests_of_a_cache_can_be_reordered_repeated_and_chosen():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    order = torch.tensor([2, 0, 1])
    with routed(model, Schedule("delete", TWO)):
        plain = feed(model, model(**inputs).past_key_values, LATER, [5])
        cache = model(**inputs).past_key_values
        cache.reorder_cache(order)
        assert_close(feed(model, cache, LATER[order], [2, 3]), plain[order], atol=1e-4, rtol=1e-4)
        cache = model(**inputs).past_key_values
        cache.batch_repeat_interleave(2)
        twice = LATER.repeat_interleave(2, 0)
        assert_close(feed(model, cache, twice, [5]), plain.repeat_interleave(2, 0), atol=1e-4, rtol=1e-4)
        cache = model(**inputs).past_key_values
        cache.batch_select_indices(torch.tensor([2, 1]))
        assert_close(feed(model, cache, LATER[[2, 1]], [5]), plain[[2, 1]], atol=1e-4, rtol=1e-4)


def test_a_reset_cache_takes_another_prefill():
    model, inputs = tiny.llava(), tiny.llava_inputs([ROWS[0]])
    with routed(model, Schedule("reroute", TWO)) as result:
        cache = model(**inputs).past_key_values
        cache.reset()
        model(**inputs, past_key_values=cache)
    assert tuple(cache.get_seq_length(layer) for layer in range(tiny.LAYERS)) == result.kv_lengths


def test_a_turn_that_fails_leaves_the_cache_as_it_was():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    block = model.model.language_model.layers[3]
    with routed(model, Schedule("reroute", TWO)):
        expected = feed(model, model(**inputs).past_key_values, LATER, [5])
        cache = model(**inputs).past_key_values
        before = [cache.get_seq_length(layer) for layer in range(tiny.LAYERS)]

        def fail(*_):
            raise RuntimeError("no memory")

        handle = block.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="no memory"):
            feed(model, cache, LATER, [5])
        handle.remove()
        assert [cache.get_seq_length(layer) for layer in range(tiny.LAYERS)] == before
        assert torch.equal(feed(model, cache, LATER, [5]), expected)


def test_unfit_caches_are_refused_and_left_alone():
    model, inputs = tiny.llava(), tiny.llava_inputs([ROWS[0]])
    filled = model(**inputs, use_cache=True).past_key_values
    rows = filled.get_seq_length()
    static = StaticCache(config=model.config.text_config, max_cache_len=64)
    with routed(model, Schedule("reroute", TWO)):
        for cache in (filled, static):
            with pytest.raises(RerouteError, match="past_key_values"):
                model(**inputs, past_key_values=cache)
        with pytest.raises(RerouteError, match=r"^cache_implementation: 'static'"):
            model.generate(**inputs, max_new_tokens=2, cache_implementation="static")
        cache = model(**inputs).past_key_values
        with pytest.raises(RerouteError, match="past_key_values"):
            model(input_ids=LATER[:2, :1], past_key_values=cache)
    assert filled.get_seq_length() == rows


def test_an_unrouted_model_does_not_go_on_with_a_routed_cache():
    model, inputs = tiny.llava(), tiny.llava_inputs([ROWS[0]])
    with routed(model, Schedule("reroute", TWO)):
        cache = model(**inputs).past_key_values
        expected = feed(model, model(**inputs).past_key_values, LATER[:1], [5])
    with pytest.raises(RerouteError, match="past_key_values"):
        feed(model, cache, LATER[:1, :1], [1])
    with routed(model, Schedule("delete", TWO)):
        assert torch.equal(feed(model, cache, LATER[:1], [5]), expected)
    cache.reset()
    assert model(**inputs, past_key_values=cache).past_key_values.get_seq_length() == len(ROWS[0])


def test_padding_in_a_later_turn_is_refused():
    model, inputs = tiny.llava(), tiny.llava_inputs(ROWS)
    with routed(model, Schedule("reroute", TWO)):
        cache = model(**inputs).past_key_values
        padded = torch.ones(3, 5, dtype=torch.long)
        padded[1, 0] = 0
        with pytest.raises(RerouteError, match="attention_mask"):
            feed(model, cache, LATER, [5], attention_mask=padded)
        whole = torch.cat([inputs["attention_mask"], torch.ones(3, 5, dtype=torch.long)], dim=1)
        out = feed(model, cache, LATER, [5], attention_mask=whole)
        assert torch.equal(out, feed(model, model(**inputs).past_key_values, LATER, [5]))


def test_teacher_forced_decoding_of_the_target():
    model, schedule = tiny.text_model(), Schedule("delete", TWO)
    inputs = tiny.text_inputs("tttvvvvvvtvvvttt")
    (answer,) = torch_target().run(model, inputs, schedule, continuation=LATER[:1])
    expected = oracle.run(model, inputs, schedule, later=LATER[0]).logits[-5:]
    assert_close(answer["decode_logits"], expected, atol=1e-4, rtol=1e-4)
