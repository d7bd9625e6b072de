"""The reference against an independent dense oracle, the unrouted model, and itself in another layout."""

from itertools import pairwise

import pytest
import torch
from reroute_conformance.cases import DecoderCase, LlavaCase, Row, decoder_config
from reroute_conformance.tiny import PATCHES_PER_IMAGE, picture_inputs, tiny_llava
from reroute_reference import CanonicalDecoder, forced_logits, generate, run
from reroute_spec import RerouteError, Schedule, plan

from . import oracle

UNROUTED = Schedule("reroute", ())


def schedule(*pairs, action="reroute", **rest):
    return Schedule.from_dict(
        {"action": action, "decisions": [{"layer": layer, "keep": k} for layer, k in pairs], **rest}
    )


def llava_inputs(*layouts, pads=None, seeds=None):
    rows = [
        Row(layout, (seeds or range(len(layouts)))[i], *(pads[i] if pads else (0, 0)))
        for i, layout in enumerate(layouts)
    ]
    return LlavaCase(schedule=UNROUTED.to_dict(), rows=rows).inputs()


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def llava(request):
    return tiny_llava(1, attention=request.param)


PYRAMID = ((1, "0.5"), (3, "0.25"), (6, "0.1"))
FLAT = ((0, "0.3"), (4, "0.3"), (7, "0.3"))


def embeddings_of(model, inputs):
    embeds = model.get_input_embeddings()(inputs["input_ids"])[0]
    features = torch.cat(model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output)
    embeds = embeds.clone()
    embeds[inputs["input_ids"][0] == model.config.image_token_id] = features
    return embeds


@pytest.mark.parametrize("action", ["reroute", "delete"])
@pytest.mark.parametrize("pairs", [PYRAMID, FLAT, ((2, 5),), ((0, 1), (1, 1), (2, 1))])
@pytest.mark.parametrize("layout", ["ttItt", "tItItt", "It"])
def test_llava_agrees_with_a_dense_masked_forward(llava, action, pairs, layout):
    inputs = llava_inputs(layout)
    routing = schedule(*pairs, action=action)
    output = run(llava, inputs, routing)
    with torch.no_grad():
        embeds = embeddings_of(llava, inputs)
    visual = (inputs["input_ids"][0] == llava.config.image_token_id).tolist()
    counts = [stage.kept for stage in plan(routing, 8, visual).stages if stage.index]
    decoder = llava.model.language_model
    states, selected, ran, alive = oracle.routed(
        decoder, embeds, visual, [p[0] for p in pairs], counts, action
    )
    assert {record.layer: list(record.selected) for record in output.traces[0].decisions} == selected
    assert list(output.kv_lengths) == list(output.traces[0].kv_rows) == ran
    torch.testing.assert_close(output.residuals[0][8], states[alive], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        logits = llava.lm_head(oracle.rms_norm(decoder.norm, states[alive]))
    torch.testing.assert_close(output.logits[0], logits, rtol=1e-4, atol=1e-4)


def test_keep_1_is_the_unrouted_model_bit_for_bit(llava):
    inputs = llava_inputs("ttItItt")
    with torch.no_grad():
        dense = llava(**inputs)
    for routing in (UNROUTED, schedule((0, "1"), (3, "1")), schedule((2, "1"), action="delete")):
        output = run(llava, inputs, routing)
        assert torch.equal(output.logits, dense.logits)
        assert set(output.kv_lengths) == {inputs["input_ids"].shape[1]}
    for layer, cached in enumerate(dense.past_key_values.layers):
        assert torch.equal(output.cache[0].keys_values(layer)[0], cached.keys[0])


def test_text_only_is_unrouted_and_untouched_by_the_request_before(llava):
    inputs = llava_inputs("ttttt")
    with torch.no_grad():
        dense = llava(**inputs).logits
    run(llava, llava_inputs("ttItt"), schedule(*PYRAMID))
    output = run(llava, inputs, schedule(*PYRAMID))
    assert torch.equal(output.logits, dense)
    assert output.traces[0].decisions == ()


def test_deferred_rows_are_bitwise_unchanged(llava):
    output = run(llava, llava_inputs("ttItt"), schedule((2, "0.3"), (5, "0.2")))
    trace = output.traces[0]
    for record, end in zip(trace.decisions, (5, 8), strict=True):
        rows = [trace.visual_rows[ordinal] for ordinal in record.deferred]
        assert rows
        assert torch.equal(output.residuals[0][record.layer][rows], output.residuals[0][end][rows])


def test_deferred_rows_come_back(llava):
    records = run(llava, llava_inputs("ttItt"), schedule(*FLAT)).traces[0].decisions
    assert records[0].reentered == ()
    assert any(record.reentered for record in records[1:])
    for before, after in pairwise(records):
        assert after.pool == tuple(range(PATCHES_PER_IMAGE))
        assert set(after.reentered) == set(after.selected) - set(before.selected)


def test_one_decision_reroute_equals_delete_on_active_rows(llava):
    inputs = llava_inputs("ttItt")
    deferred, removed = (
        run(llava, inputs, schedule((3, "0.25"), action=action)) for action in ("reroute", "delete")
    )
    record = deferred.traces[0].decisions[0]
    assert record.selected == removed.traces[0].decisions[0].selected
    gone = {deferred.traces[0].visual_rows[ordinal] for ordinal in record.deferred}
    kept = [row for row in range(inputs["input_ids"].shape[1]) if row not in gone]
    assert torch.equal(deferred.logits[0, kept], removed.logits[0])


@pytest.mark.parametrize("action", ["reroute", "delete"])
def test_a_batch_is_its_requests_alone_whatever_the_padding(llava, action):
    layouts, seeds = ("tItt", "ttt", "tIItttt", "ttItt"), (3, 4, 5, 6)
    pads = ((2, 0), (0, 1), (0, 0), (0, 3))
    routing = schedule(*PYRAMID, action=action)
    batch = run(llava, llava_inputs(*layouts, pads=pads, seeds=seeds), routing)
    for b, (layout, seed) in enumerate(zip(layouts, seeds, strict=True)):
        alone = run(llava, llava_inputs(layout, seeds=[seed]), routing)
        assert [r.selected for r in batch.traces[b].decisions] == [
            r.selected for r in alone.traces[0].decisions
        ]
        assert batch.traces[b].kv_rows == alone.traces[0].kv_rows
        real = ~batch.logits[b].isnan().all(-1)
        torch.testing.assert_close(batch.logits[b][real], alone.logits[0], rtol=1e-4, atol=1e-4)
        assert batch.cache[b].next_position == alone.cache[0].next_position == alone.cache[0].length
        if action == "delete":
            torch.testing.assert_close(batch.logits[b, -1], alone.logits[0, -1], rtol=1e-4, atol=1e-4)


def test_decode_continues_at_the_unrouted_position(llava):
    inputs = llava_inputs("ttItt")
    output = run(llava, inputs, schedule(*PYRAMID))
    length = inputs["input_ids"].shape[1]
    assert (output.cache[0].length, output.cache[0].next_position) == (length, length)
    before = [output.cache[0].rows(layer) for layer in range(8)]
    forced_logits(llava, output.cache[0], torch.tensor([5, 6]))
    assert [output.cache[0].rows(layer) for layer in range(8)] == [rows + 2 for rows in before]
    assert (output.cache[0].length, output.cache[0].next_position) == (length + 2, length + 2)


def test_one_chunk_of_text_equals_token_by_token(llava):
    tokens = torch.tensor([7, 8, 9, 10])
    single, chunk = (
        forced_logits(
            llava, run(llava, llava_inputs("ttItt"), schedule(*PYRAMID)).cache[0], tokens, chunk=chunk
        )
        for chunk in (False, True)
    )
    torch.testing.assert_close(single, chunk, rtol=1e-4, atol=1e-4)


def test_unrouted_generation_is_the_models_own(llava):
    inputs = llava_inputs("ttItt")
    ours = generate(llava, inputs, UNROUTED, 6)
    theirs = llava.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert torch.equal(ours, theirs)


def test_generate_returns_prompt_and_exactly_the_new_tokens(llava):
    inputs = llava_inputs("ttItt", "tItItt", pads=((1, 0), (0, 0)))
    tokens = generate(llava, inputs, schedule(*PYRAMID), 3)
    assert tokens.shape == (2, inputs["input_ids"].shape[1] + 3)
    assert torch.equal(tokens[:, :-3], inputs["input_ids"])


def test_scope_image_keeps_rows_of_every_touching_image(llava):
    output = run(llava, llava_inputs("tIItt"), schedule((2, "0.1"), (5, "0.2"), scope="image"))
    for record, count in zip(output.traces[0].decisions, (3, 7), strict=True):
        first = [ordinal for ordinal in record.selected if ordinal < PATCHES_PER_IMAGE]
        assert len(first) == len(record.selected) - len(first) == count


def test_replayed_decisions_run_and_the_scores_own_are_recorded(llava):
    inputs = llava_inputs("ttItt")
    own = run(llava, inputs, schedule((2, 3), (5, 2)))
    given = run(llava, inputs, schedule((2, 3), (5, 2)), decisions=[[[0, 1, 2], [34, 35]]])
    first, second = given.traces[0].decisions
    assert first.would_select == own.traces[0].decisions[0].selected
    assert (first.selected, second.selected, second.reentered) == ((0, 1, 2), (34, 35), (34, 35))
    again = run(
        llava, inputs, schedule((2, 3), (5, 2)), decisions=[[r.selected for r in own.traces[0].decisions]]
    )
    assert torch.equal(again.logits, own.logits)


@pytest.mark.parametrize(
    "decisions",
    [[], [[[0, 1, 2]]], [[[0, 1, 2], [1]]], [[[0, 1, 2], [2, 1]]], [[[0, 1, 2], [1, 36]]], [[[0]], [[1]]]],
)
def test_impossible_replays_are_refused(llava, decisions):
    with pytest.raises(RerouteError, match="decisions"):
        run(llava, llava_inputs("ttItt"), schedule((2, 3), (5, 2)), decisions=decisions)


def test_float64_is_the_same_method_more_exactly(llava):
    inputs = picture_inputs()
    narrow = run(llava, inputs, schedule(*PYRAMID))
    wide = run(
        llava,
        inputs,
        schedule(*PYRAMID),
        dtype=torch.float64,
        decisions=[[r.selected for r in narrow.traces[0].decisions]],
    )
    assert wide.logits.dtype == torch.float64
    assert next(llava.parameters()).dtype == torch.float32
    error = (wide.logits - narrow.logits).abs().max()
    assert 0 < error < 1e-4
    for exact, rounded in zip(wide.traces[0].decisions, narrow.traces[0].decisions, strict=True):
        assert exact.scores == pytest.approx(rounded.scores, rel=1e-4)


def test_the_oracles_own_precision_is_float64(llava):
    """Perturbing an input at 1e-12 is seen: nothing inside rounds to float32."""
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in picture_inputs().items()}
    exact = run(llava, inputs, UNROUTED, dtype=torch.float64).logits
    inputs["pixel_values"] = inputs["pixel_values"] * (1 + 1e-12)
    change = (run(llava, inputs, UNROUTED, dtype=torch.float64).logits - exact).abs().max()
    assert 0 < change < 1e-8


@pytest.mark.parametrize(
    "rule", [{"query": "last_n", "n": 3}, {"heads": "max"}, {"query": "last_n", "n": 99, "heads": "max"}]
)
def test_other_score_rules_run(llava, rule):
    own = run(llava, llava_inputs("ttItt"), schedule((2, 3)))
    other = run(llava, llava_inputs("ttItt"), schedule((2, 3), score=rule))
    assert own.traces[0].decisions[0].scores != other.traces[0].decisions[0].scores


def test_canonical_decoder_equals_transformers_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    case = DecoderCase(
        UNROUTED.to_dict(), [Row("tvvvt", 3)], 0, None, None, decoder_config(4, 4, 2, head_dim=4), 2
    )
    config, weights = case.model()
    shape = config.shape
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_key_value_heads,
            head_dim=shape.head_dim,
            rms_norm_eps=config.rms_norm_eps,
        )
    ).eval()
    prefix = {name if name.startswith("lm_head") else f"model.{name}": w for name, w in weights.items()}
    llama.load_state_dict(prefix)
    routing = schedule((1, 2), (3, 1))
    ours, theirs = (
        run(model, case.inputs(), routing) for model in (CanonicalDecoder(config, weights), llama)
    )
    assert [r.selected for r in ours.traces[0].decisions] == [r.selected for r in theirs.traces[0].decisions]
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-5)


def test_a_saved_checkpoint_runs_like_the_model_in_memory(tmp_path):
    from transformers import LlavaForConditionalGeneration

    model = tiny_llava(2)
    model.save_pretrained(tmp_path)
    loaded = LlavaForConditionalGeneration.from_pretrained(tmp_path).eval()
    inputs = picture_inputs()
    assert torch.equal(
        run(model, inputs, schedule(*PYRAMID)).logits, run(loaded, inputs, schedule(*PYRAMID)).logits
    )


def test_one_row_of_position_ids_serves_the_whole_batch(llava):
    inputs = llava_inputs("ttItt", "tIttt")
    columns = torch.arange(inputs["input_ids"].shape[1])[None] + 3
    shared, spelled = (
        run(llava, {**inputs, "position_ids": ids}, schedule(*PYRAMID))
        for ids in (columns, columns.expand(2, -1))
    )
    assert torch.equal(shared.logits, spelled.logits)
    assert [cache.next_position for cache in shared.cache] == [int(columns.max()) + 1] * 2
