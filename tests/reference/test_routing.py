"""What routing promises, on every family: bypass, re-entry, equivalences, outputs, decode, replay."""

import json
from itertools import pairwise

import pytest
import torch
from reroute_reference import forced_logits, generate, run
from reroute_spec import RerouteError, RoutingTrace

from . import zoo
from .zoo import PICTURE, SMALL, net

LAYOUT = ("ttt", PICTURE, "ttttt")
BOTH_ACTIONS = pytest.mark.parametrize("action", ["reroute", "delete"])


def inputs(family, *layouts, **rest):
    return zoo.inputs(family[0], *layouts, **rest)


def pyramid(family, *args, **rest):
    return zoo.pyramid(family[0], *args, **rest)


def test_text_only_is_unrouted_and_untouched_by_the_request_before(family):
    batch = inputs(family, ("tttttt",))
    with torch.no_grad():
        dense = net(family)(**batch).logits
    run(net(family), inputs(family, LAYOUT), pyramid(family))
    output = run(net(family), batch, pyramid(family))
    assert torch.equal(output.logits, dense)
    assert output.traces[0].decisions == ()


def test_requests_share_nothing_and_leave_the_model_as_it_was(family):
    model, batch = net(family), inputs(family, LAYOUT)
    first = run(model, batch, pyramid(family))
    if family[0] != "llava":
        model.model.rope_deltas = torch.tensor([[7]])  # as a generate call of the caller's leaves it
    run(model, inputs(family, ("tt", SMALL, "ttt"), seed=5), pyramid(family, "delete"))
    again = run(model, batch, pyramid(family))
    assert torch.equal(first.logits, again.logits)
    assert first.traces == again.traces
    if family[0] != "llava":
        assert model.model.rope_deltas.tolist() == [[7]]
        model.model.rope_deltas = None


def test_deferred_rows_are_bitwise_unchanged(family):
    batch = inputs(family, LAYOUT)
    output = run(net(family), batch, pyramid(family, keeps=("0.3", "0.2", "0.1")))
    trace = output.traces[0]
    _, deltas = zoo.embeddings(family[0], batch, family[1])
    for record, after in pairwise([*trace.decisions, None]):
        end = zoo.LAYERS if after is None else after.layer
        rows = [trace.visual_rows[ordinal] for ordinal in record.deferred]
        assert rows
        state = output.residuals[0][record.layer][rows]
        for delta in deltas[record.layer : end]:  # DeepStack belongs to the boundary, whoever ran the block
            state = state + delta[rows]
        assert torch.equal(state, output.residuals[0][end][rows])


def test_deferred_rows_come_back(family):
    records = run(net(family), inputs(family, LAYOUT), pyramid(family, keeps=zoo.FLAT)).traces[0].decisions
    assert records[0].reentered == ()
    assert any(record.reentered for record in records[1:])
    for before, after in pairwise(records):
        assert after.pool == tuple(range(36))
        assert set(after.reentered) == set(after.selected) - set(before.selected)


def test_one_decision_reroute_equals_delete_on_active_rows(family):
    batch, layer = inputs(family, LAYOUT), zoo.DECIDING[family[0]][1]
    deferred, removed = (
        run(net(family), batch, zoo.schedule((layer, "0.25"), action=action))
        for action in ("reroute", "delete")
    )
    record = deferred.traces[0].decisions[0]
    assert record.selected == removed.traces[0].decisions[0].selected
    gone = {deferred.traces[0].visual_rows[ordinal] for ordinal in record.deferred}
    kept = [row for row in range(batch["input_ids"].shape[1]) if row not in gone]
    torch.testing.assert_close(deferred.logits[0, kept], removed.logits[0], rtol=1e-5, atol=1e-5)


def test_monotone_reroute_is_not_delete(family):
    """The active rows have the same states, yet the softmax of the second decision runs over other rows."""
    batch = inputs(family, LAYOUT)
    removed = run(net(family), batch, pyramid(family, "delete"))
    selections = [record.selected for record in removed.traces[0].decisions]
    deferred = run(net(family), batch, pyramid(family), decisions=[selections])
    torch.testing.assert_close(deferred.logits[0, -1], removed.logits[0, -1], rtol=1e-4, atol=1e-4)
    second, under_delete = (output.traces[0].decisions[1] for output in (deferred, removed))
    common = torch.tensor([second.scores[ordinal] for ordinal in under_delete.pool])
    ratio = common / torch.tensor(under_delete.scores)
    assert ratio.max() < 1  # more rows share the softmax
    assert ratio.max() / ratio.min() > 1 + 1e-4  # and not alike in every head


@BOTH_ACTIONS
def test_rows_before_the_first_visual_row_are_untouched(family, action):
    batch = inputs(family, LAYOUT)
    routed, unrouted = (run(net(family), batch, s) for s in (pyramid(family, action), zoo.UNROUTED))
    torch.testing.assert_close(routed.logits[0, :3], unrouted.logits[0, :3], rtol=1e-4, atol=1e-4)


def test_decode_continues_at_the_unrouted_position(family):
    batch = inputs(family, LAYOUT)
    output, unrouted = (run(net(family), batch, s) for s in (pyramid(family), zoo.UNROUTED))
    cache, length = output.cache[0], batch["input_ids"].shape[1]
    after = unrouted.cache[0].next_position
    assert (cache.length, cache.next_position) == (length, after)
    before = [cache.rows(layer) for layer in range(zoo.LAYERS)]
    forced_logits(net(family), cache, torch.tensor([5, 6]))
    assert [cache.rows(layer) for layer in range(zoo.LAYERS)] == [rows and rows + 2 for rows in before]
    assert (cache.length, cache.next_position) == (length + 2, after + 2)


@BOTH_ACTIONS
def test_one_chunk_of_text_equals_token_by_token(family, action):
    tokens = torch.tensor([7, 8, 9, 10])
    single, chunk = (
        forced_logits(
            net(family),
            run(net(family), inputs(family, LAYOUT), pyramid(family, action)).cache[0],
            tokens,
            chunk=chunk,
        )
        for chunk in (False, True)
    )
    torch.testing.assert_close(single, chunk, rtol=3e-4, atol=3e-4)


def test_unrouted_generation_is_the_models_own(family):
    batch = inputs(family, LAYOUT)
    theirs = net(family).generate(**batch, max_new_tokens=6, do_sample=False)
    if family[0] != "llava":
        net(family).model.rope_deltas = None
    assert torch.equal(generate(net(family), batch, zoo.UNROUTED, 6), theirs)


def test_generate_returns_prompt_and_exactly_the_new_tokens(family):
    batch = inputs(family, LAYOUT, ("t", PICTURE, "t", SMALL, "tt"), pads=(1, 0))
    tokens = generate(net(family), batch, pyramid(family), 3)
    assert tokens.shape == (2, batch["input_ids"].shape[1] + 3)
    assert torch.equal(tokens[:, :-3], batch["input_ids"])


def test_generate_goes_on_from_replayed_decisions(family):
    batch, layers = inputs(family, LAYOUT), zoo.DECIDING[family[0]]
    routing, given = zoo.schedule((layers[0], 3), (layers[1], 2)), [[[0, 1, 2], [34, 35]]]
    output = run(net(family), batch, routing, decisions=given)
    tokens = [output.logits[0, -1].argmax().reshape(1)]
    tokens.append(forced_logits(net(family), output.cache[0], tokens[0]).argmax(dim=-1))
    said = generate(net(family), batch, routing, 2, decisions=given)
    assert torch.equal(said[0, -2:], torch.cat(tokens))


def test_replayed_decisions_run_and_the_scores_own_are_recorded(family):
    batch, layers = inputs(family, LAYOUT), zoo.DECIDING[family[0]]
    routing = zoo.schedule((layers[0], 3), (layers[1], 2))
    own = run(net(family), batch, routing)
    given = run(net(family), batch, routing, decisions=[[[0, 1, 2], [34, 35]]])
    first, second = given.traces[0].decisions
    assert first.would_select == own.traces[0].decisions[0].selected
    assert first.scores == own.traces[0].decisions[0].scores
    assert (first.selected, second.selected, second.reentered) == ((0, 1, 2), (34, 35), (34, 35))
    selections = [record.selected for record in own.traces[0].decisions]
    again = run(net(family), batch, routing, decisions=[selections])
    assert torch.equal(again.logits, own.logits)


@pytest.mark.parametrize(
    "decisions",
    [[], [[[0, 1, 2]]], [[[0, 1, 2], [1]]], [[[0, 1, 2], [2, 1]]], [[[0, 1, 2], [1, 36]]], [[[0]], [[1]]]],
)
def test_impossible_replays_are_refused(decisions):
    batch = zoo.inputs("llava", LAYOUT)
    with pytest.raises(RerouteError, match="decisions"):
        run(zoo.model("llava"), batch, zoo.schedule((2, 3), (5, 2)), decisions=decisions)


def test_traces_survive_json(family):
    output = run(net(family), inputs(family, LAYOUT, ("ttt",)), pyramid(family))
    for trace in output.traces:
        assert RoutingTrace.from_dict(json.loads(json.dumps(trace.to_dict()))) == trace
    assert all(0 <= record.margin < 1 for record in output.traces[0].decisions)


def test_reroute_has_logits_and_loss_for_every_row(family):
    batch = inputs(family, LAYOUT)
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][:, 2:40] = -100
    with torch.no_grad():
        dense = net(family)(**batch)
    unrouted = run(net(family), batch, zoo.UNROUTED)
    torch.testing.assert_close(unrouted.loss, dense.loss)
    if family[0] != "llava":
        net(family).model.rope_deltas = None
    routed = run(net(family), batch, pyramid(family))
    assert routed.logits.shape == dense.logits.shape
    assert routed.hidden_states.isfinite().all()
    deferred = [routed.traces[0].visual_rows[i] for i in routed.traces[0].decisions[-1].deferred]
    one = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    one["labels"][0, deferred[0] + 1] = 11
    expected = -routed.logits[0, deferred[0]].log_softmax(-1)[11]
    torch.testing.assert_close(run(net(family), one, pyramid(family)).loss, expected)


def test_padding_takes_no_part_in_the_loss(family):
    layouts = (LAYOUT, ("tttttt",))
    padded = inputs(family, *layouts, pads=(2, 0))
    padded["labels"] = padded["input_ids"].clone()
    output, logits, targets = run(net(family), padded, pyramid(family)), [], []
    for b in range(2):
        real = padded["attention_mask"][b].bool()
        logits.append(output.logits[b, real][:-1])
        targets.append(padded["labels"][b, real][1:])
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(targets))
    torch.testing.assert_close(output.loss, expected)


def test_delete_holds_the_survivors_in_prompt_order(family):
    batch = inputs(family, LAYOUT, ("ttt",))
    output = run(net(family), batch, pyramid(family, "delete"))
    survivors = output.logits.shape[1]
    assert survivors == len(output.traces[0].decisions[-1].selected) + (
        batch["input_ids"].shape[1] - len(output.traces[0].visual_rows)
    )
    assert output.logits[1, : survivors - 3].isnan().all()
    assert output.logits[1, survivors - 3 :].isfinite().all()


def test_a_saved_checkpoint_runs_like_the_model_in_memory(tmp_path, family):
    model, batch = net(family), inputs(family, LAYOUT)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation=family[1]).eval()
    ours, theirs = (run(m, batch, pyramid(family)) for m in (model, loaded))
    assert torch.equal(ours.logits, theirs.logits)
    assert ours.traces == theirs.traces


@pytest.mark.parametrize("shape", ["2-D", "3-D", "4-D"])
def test_position_ids_of_the_caller_are_taken(family, shape):
    batch = inputs(family, LAYOUT, ("tt", PICTURE, "tt"))
    columns = torch.arange(batch["input_ids"].shape[1])[None] + 3
    mine = {"2-D": columns, "3-D": columns.expand(3, 1, -1), "4-D": columns.expand(4, 2, -1)}[shape]
    if family[0] == "llava" and shape != "2-D":
        with pytest.raises(RerouteError, match="position_ids"):
            run(net(family), {**batch, "position_ids": mine}, pyramid(family))
        return
    spelled = columns.expand(2, -1)
    ours, theirs = (
        run(net(family), {**batch, "position_ids": ids}, pyramid(family)) for ids in (mine, spelled)
    )
    assert torch.equal(ours.logits[ours.logits.isfinite()], theirs.logits[theirs.logits.isfinite()])
    assert [cache.next_position for cache in ours.cache] == [int(columns.max()) + 1] * 2
