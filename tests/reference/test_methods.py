"""The original methods beside the paper's: scores of the block before, renumbered positions, their presets."""

import pytest
import torch
from reroute_conformance.tiny.qwen import tiny_qwen
from reroute_reference import forced_logits, run
from reroute_spec import RerouteError, Schedule, plan

from . import oracle, zoo
from .test_families import agree
from .zoo import PICTURE, SMALL

LAYOUT = ("ttt", PICTURE, "tt", SMALL, "ttttt")
PLAIN = [family for family in zoo.FAMILIES if family != "qwen3_5"]
PREVIOUS = {
    "one decision": ({"action": "delete"}, 1),
    "last 3, max": ({"action": "delete", "query": "last_n", "n": 3, "heads": "max"}, 1),
    "one decision of reroute": ({"action": "reroute"}, 1),
    "survivors": ({"action": "reroute", "pool": "survivors"}, 3),
    "three decisions": ({"action": "delete"}, 3),
}


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PREVIOUS)
def test_source_previous_reads_the_probabilities_of_the_block_before(family, attention, name):
    rest, count = PREVIOUS[name]
    rule = {key: rest[key] for key in ("query", "n", "heads") if key in rest}
    schedule = {key: rest[key] for key in ("action", "pool") if key in rest}
    pairs = list(zip(zoo.DECIDING[family], zoo.PYRAMID, strict=True))[-count:]
    routing = zoo.schedule(*pairs, score={"source": "previous", **rule}, **schedule)
    output = agree(family, attention, zoo.inputs(family, LAYOUT), routing)
    own = run(zoo.model(family, attention), zoo.inputs(family, LAYOUT), zoo.schedule(*pairs, **schedule))
    assert output.traces[0].decisions[0].scores != own.traces[0].decisions[0].scores


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("source", ["own", "previous"])
def test_renumbered_rows_close_their_gaps(attention, source):
    routing = zoo.pyramid("llava", "delete", positions="renumber", score={"source": source})
    output = agree("llava", attention, zoo.inputs("llava", LAYOUT), routing)
    kept = zoo.pyramid("llava", "delete", score={"source": source})
    preserved = run(zoo.model("llava", attention), zoo.inputs("llava", LAYOUT), kept)
    assert (
        output.traces[0].decisions[0] == preserved.traces[0].decisions[0]
    )  # at the positions of the stage that ends
    assert (output.logits - preserved.logits).abs().max() > 1e-2


def test_a_generated_token_counts_on_from_what_each_block_holds():
    """As one prompt with the same decisions: behind the active rows of every block."""
    batch, tokens = zoo.inputs("llava", LAYOUT), torch.tensor([7, 8, 9])
    routing = zoo.pyramid("llava", "delete", positions="renumber")
    output = run(zoo.model("llava"), batch, routing)
    trace = output.traces[0]
    for chunk in (False, True):
        mine = forced_logits(zoo.model("llava"), output.cache[0].copy(), tokens, chunk=chunk)
        whole = {**batch, "input_ids": torch.cat([batch["input_ids"], tokens[None]], 1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        right = zoo.oracle_run(
            "llava", whole, routing, given={record.layer: record.selected for record in trace.decisions}
        )
        expected = zoo.logits("llava", right.states[-3:])
        torch.testing.assert_close(mine.double(), expected, rtol=5e-4, atol=5e-4)


def test_renumbered_sessions_count_on_in_every_block():
    """Two turns with an image each, as one prompt that keeps what both kept."""
    one, two = (
        zoo.inputs("llava", layout, seed=s) for s, layout in enumerate((LAYOUT, ("t", PICTURE, "tt")))
    )
    model = zoo.model("llava")
    routing = zoo.schedule((1, 9), (3, 6), action="delete", positions="renumber")
    first = run(model, one, routing)
    later = run(model, two, routing, cache=first.cache)
    pairs = zip(first.traces[0].decisions, later.traces[0].decisions, strict=True)
    given = {a.layer: [*a.selected, *(72 + ordinal for ordinal in b.selected)] for a, b in pairs}
    whole = {name: torch.cat([one[name], two[name]], 0 if name == "pixel_values" else 1) for name in one}
    right = zoo.oracle_run("llava", whole, routing, given=given)
    expected = zoo.logits("llava", right.states[-2:])
    torch.testing.assert_close(later.logits[0, -2:].double(), expected, rtol=5e-4, atol=5e-4)

    layer, old, new = 3, first.traces[0].decisions[1], later.traces[0].decisions[1]
    before = [first.residuals[0][layer], later.residuals[0][layer]]  # of the rows alive at the decision
    held = _rows(first.traces[0], first.traces[0].decisions[0].selected)
    kept = [held.index(row) for row in _rows(first.traces[0], old.selected)]
    states = torch.cat([before[0][kept], before[1]]).double()
    everything = torch.arange(len(states))  # cached rows from 0, then the rows that are alive, without gaps
    with torch.no_grad():
        full = oracle.own_scores(
            zoo.wide("llava").model.language_model.layers[layer],
            states,
            everything.expand(3, -1),
            everything,
            1,
        )[:, 0].mean(0)
    alive = _rows(later.traces[0], later.traces[0].decisions[0].selected)
    places = [len(kept) + alive.index(later.traces[0].visual_rows[ordinal]) for ordinal in new.pool]
    torch.testing.assert_close(torch.tensor(new.scores).double(), full[places], rtol=1e-3, atol=1e-6)


def _rows(trace, selected):
    """Prompt rows of a stage that runs ``selected``."""
    kept = {trace.visual_rows[ordinal] for ordinal in selected}
    return [row for row in range(trace.num_rows) if row in kept or row not in trace.visual_rows]


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_what_an_original_method_cannot_mean_is_refused(family):
    batch, model, layer = zoo.inputs(family, LAYOUT), zoo.model(family), zoo.DECIDING[family][0]
    renumber = zoo.schedule((layer, "0.5"), action="delete", positions="renumber")
    if family == "llava":
        position_ids = torch.arange(batch["input_ids"].shape[1])[None]
        with pytest.raises(RerouteError, match=r"^position_ids: given with positions 'renumber'"):
            run(model, {**batch, "position_ids": position_ids}, renumber)
    else:
        with pytest.raises(RerouteError, match="positions: 'renumber' with positions of three coordinates"):
            run(model, batch, renumber)
    if family == "qwen3_5":
        previous = zoo.schedule((layer, "0.5"), score={"source": "previous"})
        with pytest.raises(RerouteError, match=r"score.source.*block 2 is linear_attention"):
            run(model, batch, previous)


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("name", ["fastv-original", "pdrop-original"])
def test_the_original_presets_run(family, name):
    routing = Schedule.load(name, zoo.LAYERS)
    if name == "pdrop-original" and family != "llava":
        with pytest.raises(RerouteError, match="positions"):
            run(zoo.model(family), zoo.inputs(family, LAYOUT), routing)
        return
    agree(family, "sdpa", zoo.inputs(family, LAYOUT), routing)


def test_nuwas_second_stage_runs_alone_on_qwen2_5_vl():
    model, routing = tiny_qwen("qwen2_5_vl", 3, num_layers=28, std=0.1), Schedule.load("nuwa-64", 28)
    batch = zoo.inputs("qwen2_5_vl", LAYOUT)
    output = run(model, batch, routing)
    flags = zoo.visual_flags("qwen2_5_vl", batch)
    assert [record.layer for record in output.traces[0].decisions] == [15]
    counts = [stage.kept for stage in plan(routing, 28, flags).stages if stage.index]
    assert counts == [4]  # a tenth of 42
    embeds, _ = zoo.embeddings("qwen2_5_vl", batch, net=model)
    decoder = oracle.wide(model).model.language_model
    positions = zoo.positions("qwen2_5_vl", batch)
    right = oracle.routed(decoder, embeds, flags, routing, counts, positions=positions)
    assert {15: list(output.traces[0].decisions[0].selected)} == right.selected
    states = right.states[right.alive]
    torch.testing.assert_close(output.residuals[0][28].double(), states, rtol=1e-3, atol=1e-3)
