"""Sessions: later turns of text and of new images, decode between them, crop, moving requests."""

import pytest
import torch
from reroute_reference import generate, run
from reroute_spec import RerouteError

from . import oracle, zoo
from .zoo import PICTURE, SMALL, net

BOTH_ACTIONS = pytest.mark.parametrize("action", ["reroute", "delete"])
FIRST, SECOND = ("ttt", PICTURE, "ttttt"), ("tt", PICTURE, "tttt")
PLAIN = [family for family in zoo.FAMILIES if family != "qwen3_5"]


def both_turns(family):
    """Two turns with an image each, and the same as one prompt."""
    turns = [zoo.inputs(family[0], layout, seed=seed) for seed, layout in enumerate((FIRST, SECOND))]
    return *turns, {name: torch.cat([turn[name] for turn in turns], dim=_axis(name)) for name in turns[0]}


def _axis(name):
    return 0 if "pixel" in name or "grid" in name else 1


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=5e-4, atol=5e-4)


def same_caches(ours, theirs):
    assert (ours.length, ours.next_position) == (theirs.length, theirs.next_position)
    for layer in range(zoo.LAYERS):
        for mine, other in zip(ours.keys_values(layer), theirs.keys_values(layer), strict=True):
            close(mine, other)


@BOTH_ACTIONS
def test_a_later_turn_of_text_sees_what_each_block_cached(family, action):
    """As one prompt, whose decisions are those of the first turn."""
    batch, text = zoo.inputs(family[0], FIRST), zoo.text(family[0], 4)
    routing = zoo.pyramid(family[0], action)
    first = run(net(family), batch, routing)
    later = run(net(family), text, routing, cache=first.cache)
    whole = {name: x for name, x in batch.items() if _axis(name) == 0}
    whole["input_ids"] = torch.cat([batch["input_ids"], text["input_ids"]], dim=1)
    if "mm_token_type_ids" in batch:
        whole["mm_token_type_ids"] = torch.nn.functional.pad(batch["mm_token_type_ids"], (0, 4))
    once = run(net(family), whole, routing, decisions=[[r.selected for r in first.traces[0].decisions]])
    close(later.logits[0], once.logits[0, -4:])
    same_caches(later.cache[0], once.cache[0])
    assert later.traces[0].decisions == ()
    assert later.traces[0].kv_rows == later.kv_lengths == once.kv_lengths


@BOTH_ACTIONS
def test_new_images_form_their_own_pool(family, action):
    """As one prompt that keeps what both turns kept; the scores are the oracle's over the cache and the new rows."""
    one, two, whole = both_turns(family)
    layers = zoo.DECIDING[family[0]]
    keeps = (9, 6, 3)[: len(layers)]
    routing = zoo.schedule(*zip(layers, keeps, strict=True), action=action)
    first = run(net(family), one, routing)
    later = run(net(family), two, routing, cache=first.cache)
    turns = [output.traces[0] for output in (first, later)]
    union = [
        [*a.selected, *(36 + ordinal for ordinal in b.selected)]
        for a, b in zip(turns[0].decisions, turns[1].decisions, strict=True)
    ]
    double = zoo.schedule(
        *zip(layers, (2 * keep for keep in keeps), strict=True)
    )  # reroute: all rows have states
    once = run(net(family), whole, double, decisions=[union])
    new = two["input_ids"].shape[1]
    gone = set() if action == "reroute" else set(turns[1].decisions[-1].deferred)
    kept = [row for row in range(new) if row not in {turns[1].visual_rows[ordinal] for ordinal in gone}]
    close(later.logits[0], once.logits[0, -new:][kept])
    assert later.kv_lengths == once.kv_lengths
    same_caches(later.cache[0], once.cache[0])

    decoder, before = zoo.wide(family[0]).model.language_model, one["input_ids"].shape[1]
    for stage, (a, b) in enumerate(zip(turns[0].decisions, turns[1].decisions, strict=True)):
        cached = [row for row in range(before) if row not in {turns[0].visual_rows[i] for i in a.deferred}]
        alive = set(range(new))
        if action == "delete" and stage:
            alive -= {turns[1].visual_rows[i] for i in turns[1].decisions[stage - 1].deferred}
        rows = torch.tensor([*cached, *(before + row for row in sorted(alive))])
        states = once.residuals[0][b.layer].double()
        with torch.no_grad():
            full = oracle.own_scores(
                decoder.layers[b.layer], states, zoo.positions(family[0], whole), rows, 1
            )[:, 0].mean(0)
        expected = full[[before + turns[1].visual_rows[ordinal] for ordinal in b.pool]]
        torch.testing.assert_close(torch.tensor(b.scores).double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("rule", ["reroute", "delete", "previous", "last_n"])
def test_an_image_after_a_turn_of_text_is_decided_as_in_one_prompt(family, rule):
    text, batch = zoo.text(family[0], 5), zoo.inputs(family[0], SECOND)
    score = {"previous": {"source": "previous"}, "last_n": {"query": "last_n", "n": 3, "heads": "max"}}
    routing = zoo.pyramid(
        family[0], "reroute" if rule in ("reroute", "last_n") else "delete", score=score.get(rule, {})
    )
    if rule == "previous" and family[0] == "qwen3_5":
        # no two blocks of plain attention follow each other
        with pytest.raises(RerouteError, match="linear_attention"):
            run(net(family), text, routing)
        return
    start = run(net(family), text, routing)
    later = run(net(family), batch, routing, cache=start.cache)
    whole = {**batch, "input_ids": torch.cat([text["input_ids"], batch["input_ids"]], dim=1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    if "mm_token_type_ids" in batch:
        whole["mm_token_type_ids"] = torch.nn.functional.pad(batch["mm_token_type_ids"], (5, 0))
    once = run(net(family), whole, routing)
    for mine, other in zip(later.traces[0].decisions, once.traces[0].decisions, strict=True):
        assert mine.selected == other.selected
        assert mine.scores == pytest.approx(other.scores, rel=1e-3, abs=1e-7)
    close(later.logits[0], once.logits[0, 5:])
    same_caches(later.cache[0], once.cache[0])


def test_the_cache_that_is_given_stays_as_it_is(family):
    one, two, _ = both_turns(family)
    routing = zoo.pyramid(family[0])
    first = run(net(family), one, routing)
    held = [[x.clone() for x in first.cache[0].keys_values(layer)] for layer in range(zoo.LAYERS)]
    branches = [run(net(family), two, routing, cache=first.cache) for _ in range(2)]
    assert torch.equal(branches[0].logits, branches[1].logits)
    for layer, tensors in enumerate(held):
        now = first.cache[0].keys_values(layer)
        assert all(torch.equal(a, b) for a, b in zip(tensors, now, strict=True))


def test_greedy_decode_is_a_turn_per_token_and_a_new_image_may_follow(family):
    one, two, _ = both_turns(family)
    routing = zoo.pyramid(family[0])
    output, tokens = run(net(family), one, routing), []
    for _ in range(3):
        tokens.append(output.logits[:, -1].argmax(-1))
        output = run(net(family), {"input_ids": tokens[-1][:, None]}, routing, cache=output.cache)
    assert torch.equal(torch.stack(tokens, 1), generate(net(family), one, routing, 3)[:, -3:])
    rows = output.kv_lengths
    later = run(net(family), two, routing, cache=output.cache)
    grown = [after - before for before, after in zip(rows, later.kv_lengths, strict=True)]
    fresh = run(net(family), two, routing).kv_lengths
    assert grown == list(fresh)
    assert later.cache[0].length == sum(turn["input_ids"].shape[1] for turn in (one, two)) + 3


def test_a_batch_of_sessions_is_its_sessions_alone(family):
    routing = zoo.pyramid(family[0])
    firsts = [zoo.inputs(family[0], layout, seed=s) for s, layout in enumerate((FIRST, ("tt", SMALL, "tt")))]
    starts = [run(net(family), batch, routing).cache[0] for batch in firsts]
    turn = zoo.inputs(family[0], SECOND, ("tt",), pads=(2, 0), seed=4)
    together = run(net(family), turn, routing, cache=starts)
    real = turn["attention_mask"][0].bool()
    alone = {name: x if _axis(name) == 0 else x[:1, real] for name, x in turn.items()}
    single = run(net(family), alone, routing, cache=starts[:1])
    close(together.logits[0, real], single.logits[0])
    assert together.traces[0].kv_rows == single.traces[0].kv_rows
    word = {"input_ids": turn["input_ids"][1:, -2:]}
    close(together.logits[1, -2:], run(net(family), word, routing, cache=starts[1:]).logits[0])
    moved = run(net(family), word, routing, cache=(starts[1],))  # requests move whole
    twice = {"input_ids": word["input_ids"].expand(2, -1)}
    repeated = run(net(family), twice, routing, cache=(starts[1], starts[1]))
    close(repeated.logits[0], moved.logits[0])
    close(repeated.logits[1], moved.logits[0])


def test_positions_of_the_caller_never_lower_the_next_one(family):
    start = run(net(family), zoo.inputs(family[0], FIRST), zoo.UNROUTED).cache
    text = {**zoo.text(family[0], 3), "position_ids": torch.tensor([[0, 1, 2]])}
    later = run(net(family), text, zoo.UNROUTED, cache=start).cache[0]
    assert later.next_position == start[0].next_position
    assert later.reach == start[0].reach + [start[0].next_position] * 3


def test_float64_goes_on_in_float64(family):
    one, two, _ = both_turns(family)
    routing = zoo.pyramid(family[0])
    narrow, exact = (run(net(family), one, routing, dtype=dtype) for dtype in (None, torch.float64))
    replay = [[r.selected for r in run(net(family), two, routing, cache=narrow.cache).traces[0].decisions]]
    ours, theirs = (
        run(net(family), two, routing, decisions=replay, dtype=dtype, cache=cache)
        for dtype, cache in ((None, narrow.cache), (torch.float64, exact.cache))
    )
    assert theirs.logits.dtype == torch.float64
    torch.testing.assert_close(ours.logits.double(), theirs.logits, rtol=1e-3, atol=1e-3)
    with pytest.raises(RerouteError, match=r"cache\[0\]: holds torch.float64"):
        run(net(family), two, routing, cache=exact.cache)


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("routing", ["preserve", "renumber"])
def test_crop_takes_rows_back_as_if_they_had_never_been(family, routing):
    schedule = zoo.pyramid(family)
    if routing == "renumber" and family == "llava":
        schedule = zoo.pyramid(family, "delete", positions="renumber")
    model, batch, text = zoo.model(family), zoo.inputs(family, FIRST), zoo.text(family, 5)
    first = run(model, batch, schedule)
    longer = run(model, text, schedule, cache=first.cache).cache[0]
    longer.crop(-3)
    short = {"input_ids": text["input_ids"][:, :2]}
    kept = run(model, short, schedule, cache=first.cache).cache[0]
    same_caches(longer, kept)
    assert longer.reach == kept.reach
    longer.crop(first.cache[0].length)
    same_caches(longer, first.cache[0])
    for rows in (-1, 3):
        with pytest.raises(RerouteError, match="past the end of the last routed prefill"):
            longer.crop(rows)
    longer.crop(0)
    for rows in (1000, 1.5, True, None):
        with pytest.raises(RerouteError, match="crop"):
            longer.crop(rows)
    same_caches(longer, first.cache[0])


@pytest.mark.parametrize("family", PLAIN)
def test_crop_reaches_into_an_unrouted_image(family):
    batch = zoo.inputs(family, ("ttt", PICTURE, "tt"))
    whole = run(zoo.model(family), batch, zoo.UNROUTED).cache[0]
    whole.crop(10)
    assert whole.length == 10
    assert whole.next_position == int(zoo.positions(family, batch)[:, :10].max()) + 1
    assert {whole.rows(layer) for layer in range(zoo.LAYERS)} == {10}


@pytest.mark.parametrize("family", PLAIN)
def test_where_nothing_was_routed_all_rows_may_go(family):
    model, batch = zoo.model(family), zoo.inputs(family, FIRST)
    start = run(model, zoo.text(family, 4), zoo.UNROUTED)
    start.cache[0].crop(-4)
    assert (start.cache[0].length, start.cache[0].next_position) == (0, 0)
    again, fresh = (run(model, batch, zoo.pyramid(family), cache=cache) for cache in (start.cache, None))
    assert torch.equal(again.logits, fresh.logits)
    assert again.traces == fresh.traces


def test_crop_is_refused_over_linear_attention():
    output = run(zoo.model("qwen3_5"), zoo.inputs("qwen3_5", ("tttt",)), zoo.UNROUTED)
    with pytest.raises(RerouteError, match="linear attention"):
        output.cache[0].crop(-1)
    assert output.cache[0].length == 4


def test_caches_that_cannot_be_meant_are_refused():
    from transformers import DynamicCache, StaticCache

    model, batch = zoo.model("llava"), zoo.inputs("llava", FIRST)
    routing, text = zoo.pyramid("llava"), zoo.text("llava", 2)
    good = run(model, batch, routing).cache
    with torch.no_grad():
        foreign = model(**batch).past_key_values
    static = StaticCache(config=model.config.get_text_config(), max_cache_len=8)
    for cache in (foreign, DynamicCache(), static, good[0], [foreign], [None], "cache"):
        with pytest.raises(RerouteError, match="give the cache that an earlier run returned"):
            run(model, text, routing, cache=cache)
    for name, value in (("past_key_values", foreign), ("prefill_chunk_size", 8), ("assistant_model", model)):
        with pytest.raises(RerouteError, match=rf"^{name}: "):
            run(model, {**text, name: value}, routing)
    with pytest.raises(RerouteError, match="holds 2 requests"):
        run(model, text, routing, cache=(*good, *good))
    with pytest.raises(RerouteError, match="over a cache of 'preserve'"):
        run(model, text, zoo.pyramid("llava", "delete", positions="renumber"), cache=good)
    shallow = run(zoo.model("qwen2_5_vl"), zoo.inputs("qwen2_5_vl", ("tt",)), zoo.UNROUTED).cache
    shallow[0].storage.layers.pop()
    with pytest.raises(RerouteError, match="is of 7 blocks"):
        run(model, text, routing, cache=shallow)
