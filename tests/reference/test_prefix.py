"""A prefix that is computed once serves every request that begins with it, and no other."""

import pytest
import torch
from reroute_reference import prefix_of, run
from reroute_spec import RerouteError

from . import zoo
from .zoo import PICTURE, net

LAYOUT = ("ttt", PICTURE, "ttttt")


def rows_of(family):
    return 3 + 36 + (0 if family == "llava" else 2)


def question(family, batch, seed):
    """The same beginning, other words at the end."""
    ids = batch["input_ids"].clone()
    ids[0, -4:] = zoo.text(family, 4, seed)["input_ids"][0]
    return {**batch, "input_ids": ids}


@pytest.mark.parametrize("action", ["reroute", "delete", "previous", "renumber", "unrouted"])
def test_every_question_is_answered_as_without_the_prefix(family, action):
    name = family[0]
    if action in ("previous", "renumber") and name != "llava":
        action = "delete"
    given = {"previous": {"score": {"source": "previous"}}, "renumber": {"positions": "renumber"}}.get(
        action, {}
    )
    routing = (
        zoo.UNROUTED
        if action == "unrouted"
        else zoo.pyramid(name, "reroute" if action == "reroute" else "delete", **given)
    )
    batch = zoo.inputs(name, LAYOUT)
    prefix = prefix_of(net(family), batch, routing, rows_of(name))
    for seed in (1, 2):
        asked = question(name, batch, seed)
        served, alone = (run(net(family), asked, routing, prefix=x) for x in (prefix, None))
        assert [r.selected for r in served.traces[0].decisions] == [
            r.selected for r in alone.traces[0].decisions
        ]
        torch.testing.assert_close(served.logits, alone.logits, rtol=1e-4, atol=1e-4)
        assert served.kv_lengths == alone.kv_lengths
        mine, other = served.cache[0], alone.cache[0]
        assert (mine.length, mine.next_position) == (other.length, other.next_position)


def test_a_request_that_begins_otherwise_is_refused():
    family = ("llava", "sdpa")
    batch, routing = zoo.inputs("llava", LAYOUT), zoo.pyramid("llava")
    prefix = prefix_of(net(family), batch, routing, 20)
    other = zoo.inputs("llava", LAYOUT, seed=5)
    with pytest.raises(RerouteError, match="not what the request begins with"):
        run(net(family), other, routing, prefix=prefix)
    with pytest.raises(RerouteError, match="for another schedule"):
        run(net(family), batch, zoo.schedule((2, 3)), prefix=prefix)
    with pytest.raises(RerouteError, match="of 20 rows for 5"):
        run(net(family), zoo.text("llava", 5), routing, prefix=prefix)
    with pytest.raises(RerouteError, match="is given with a cache"):
        run(net(family), batch, routing, prefix=prefix, cache=run(net(family), batch, routing).cache)
    with pytest.raises(RerouteError, match="prefix: is a int"):
        run(net(family), batch, routing, prefix=3)


@pytest.mark.parametrize("rows", [0, 44, -1, True, 2.0])
def test_a_prefix_leaves_something_to_ask(rows):
    batch = zoo.inputs("llava", LAYOUT)
    with pytest.raises(RerouteError, match="give 1 to 43"):
        prefix_of(net(("llava", "sdpa")), batch, zoo.pyramid("llava"), rows)


def test_a_prefix_serves_again_and_stays_as_it_is():
    family, batch = ("llava", "sdpa"), zoo.inputs("llava", LAYOUT)
    prefix = prefix_of(net(family), batch, zoo.pyramid("llava"), 39)
    first, second = (run(net(family), batch, zoo.pyramid("llava"), prefix=prefix).logits for _ in range(2))
    assert torch.equal(first, second)
    assert prefix.cache.length == 0
