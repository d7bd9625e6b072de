"""Caches and tokens that cannot go on are refused by name, and the cache stays as it was."""

import pytest
import torch
from reroute_conformance.cases.case import Row
from reroute_conformance.cases.decoder import DecoderCase, decoder_config
from reroute_reference import CanonicalDecoder, forced_logits, run
from reroute_reference.cache import RowCache
from reroute_spec import RerouteError
from transformers import DynamicCache

from . import zoo
from .zoo import SMALL

TOKENS = torch.tensor([5, 6])


def filled(family="llava", dtype=None):
    layout = ("tt", SMALL, "ttt")
    return run(zoo.model(family), zoo.inputs(family, layout), zoo.UNROUTED, dtype=dtype).cache[0]


def canonical(layers, kv_heads=2, seed=0):
    case = DecoderCase(
        zoo.UNROUTED.to_dict(), [Row("tvvt")], seed, None, None, decoder_config(layers, 2, kv_heads), 0
    )
    return CanonicalDecoder(*case.model()), case


def assert_refused(field, call):
    with pytest.raises(RerouteError) as error:
        call()
    assert error.value.field == field
    assert error.value.remedy
    return str(error.value)


@pytest.mark.parametrize(
    "tokens",
    [
        [5, 6],
        None,
        torch.tensor([[5, 6]]),
        torch.tensor(5),
        torch.tensor([], dtype=torch.long),
        torch.tensor([5.0]),
        torch.tensor([True]),
        torch.tensor([5, 10**6]),
        torch.tensor([5, -1]),
    ],
)
@pytest.mark.parametrize("chunk", [False, True])
def test_forced_tokens_without_an_embedding(tokens, chunk):
    model, cache = zoo.model("llava"), filled()
    rows = [cache.rows(layer) for layer in range(zoo.LAYERS)]
    assert_refused("tokens", lambda: forced_logits(model, cache, tokens, chunk=chunk))
    assert [cache.rows(layer) for layer in range(zoo.LAYERS)] == rows
    assert cache.length == rows[0]


def test_forced_tokens_over_a_foreign_cache():
    model = zoo.model("llava")
    for cache in (None, DynamicCache(), (filled(),), filled("qwen3_5"), filled(dtype=torch.bfloat16)):
        assert_refused("cache", lambda cache=cache: forced_logits(model, cache, TOKENS))
    assert_refused("cache", lambda: forced_logits(canonical(3)[0], filled(), TOKENS))


def test_a_cache_of_other_heads_or_kinds():
    linear, plain = filled("qwen3_5"), filled("qwen3_vl")
    later = zoo.text("qwen3_vl", 2)
    message = assert_refused(
        "cache[0]", lambda: run(zoo.model("qwen3_vl"), later, zoo.UNROUTED, cache=[linear])
    )
    assert "linear attention of block 0" in message
    assert_refused("cache[0]", lambda: run(zoo.model("qwen3_5"), later, zoo.UNROUTED, cache=[plain]))
    one, two = canonical(3, 1), canonical(3, 2)
    embeds = {
        "inputs_embeds": torch.randn(1, 4, one[0].width),
        "visual_mask": torch.zeros(1, 4, dtype=torch.bool),
    }
    cache = run(one[0], embeds, zoo.UNROUTED).cache
    message = assert_refused("cache[0]", lambda: run(two[0], embeds, zoo.UNROUTED, cache=cache))
    assert "1 key/value heads" in message


def test_a_cache_that_holds_more_than_it_counts():
    model, whole, later = zoo.model("llava"), filled(), zoo.text("llava", 2)
    for length in (0, whole.length - 1):
        short = RowCache(whole.copy().storage, length)
        assert_refused("cache[0]", lambda short=short: run(model, later, zoo.UNROUTED, cache=[short]))
        assert_refused("cache", lambda short=short: forced_logits(model, short, TOKENS))
    assert run(model, later, zoo.UNROUTED, cache=[whole]).cache[0].length == whole.length + 2
