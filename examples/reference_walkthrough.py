"""One visual token's way through a routed Qwen2.5-VL, from embedding to cache, with the rule at every step.

Run it from the repository: ``python examples/reference_walkthrough.py``. The model is tiny and its weights are random.
Each rule in brackets is explained by ``spec/`` and marked at the line of ``reference/`` that follows it.
"""

import torch
from reroute_conformance.tiny.qwen import qwen_inputs, tiny_qwen
from reroute_reference import run
from reroute_reference.inputs import read_prompts
from reroute_reference.model import as_decoder
from reroute_spec import Schedule, plan

SCHEDULE = Schedule.from_dict(
    {"action": "reroute", "decisions": [{"layer": layer, "keep": "0.25"} for layer in (1, 3, 6)]}
)


def say(rule: str, text: str) -> None:
    print(f"  {text}  [{rule}]")


def returning(trace) -> int:
    """A token that is deferred, and selected again later."""
    return next(ordinal for record in trace.decisions for ordinal in record.reentered)


def describe_prompt(prompt, request, token: int) -> None:
    row = request.visual_rows[token]
    time, height, width = prompt.positions[:, row].tolist()
    last = prompt.positions[:, -1].tolist()
    print(f"\nIn the prompt: visual ordinal {token} of {request.num_visual}, row {row} of {request.num_rows}")
    say("RR-POOL-002", "its id is an image placeholder, so it is visual")
    say("RR-POOL-001", f"it is not row {request.num_rows - 1}, which asks: it is routable")
    say("RR-BLOCK-012", f"its position is time {time}, height {height}, width {width}; it keeps it")
    say("RR-BLOCK-002", f"the last row stands at {last}, whatever is deferred before it")


def describe_decision(record, token: int, kept: int, deferred: bool) -> None:
    best_first = sorted(record.pool, key=lambda v: (-record.scores[record.pool.index(v)], v))
    score, rank = record.scores[record.pool.index(token)], best_first.index(token) + 1
    print(f"\nDecision {record.stage}, at the input of block {record.layer}")
    say("RR-POOL-003", f"all {len(record.pool)} visual rows are candidates, deferred ones too")
    say("RR-SCORE-001", f"the last row gives it {score:.5f} of its attention, the mean over heads")
    if deferred:
        say("RR-SCORE-008", "it was deferred: its key comes from the state that it was left with")
    say("RR-BUD-001", f"floor(1/4 of {len(record.pool)}) = {kept} rows are kept")
    verdict = "selected" if token in record.selected else "deferred"
    again = ", and re-enters" if token in record.reentered else ""
    say("RR-SEL-001", f"it is number {rank} of {len(record.pool)}: {verdict}{again}")


def describe_stage(stage, output, request, token: int, selected: bool) -> None:
    row, states = request.visual_rows[token], output.residuals[0]
    blocks = f"block {stage.first}" if stage.first == stage.last else f"blocks {stage.first} to {stage.last}"
    cached = output.traces[0].kv_rows[stage.first]
    if stage.index == 0:
        print(f"\nStage 0, {blocks}: every row runs")
        say("RR-KV-001", f"its keys and values are row {row} of the {cached} that are cached")
        return
    print(f"\nStage {stage.index}, {blocks}: {cached} rows run, all text and {stage.kept} visual ones")
    before, after = states[stage.first][row], states[stage.last + 1][row]
    change = (after - before).abs().max().item()
    if selected:
        text = request.num_rows - request.num_visual
        say(
            "RR-BLOCK-003",
            f"it runs, one causal sequence with the others; its state changes by up to {change:.3f}",
        )
        say("RR-KV-001", f"it is one of the {text} + {stage.kept} rows in the cache of each of them")
    else:
        say("RR-BLOCK-001", f"it bypasses attention and MLP: its state changes by {change:.1f}, bit for bit")
        say("RR-KV-001", "it leaves no key and no value there")


def main() -> None:
    torch.manual_seed(0)
    model = tiny_qwen("qwen2_5_vl", seed=1)
    inputs = qwen_inputs("qwen2_5_vl", [("ttt", (1, 12, 12), "ttttt")])
    output = run(model, inputs, SCHEDULE)
    (prompt,) = read_prompts(as_decoder(model, None), inputs)
    request = plan(SCHEDULE, 8, prompt.visual, prompt.images)
    trace, token = output.traces[0], returning(output.traces[0])
    print(f"A Qwen2.5-VL of 8 blocks, a prompt of {request.num_rows} rows, decisions at blocks 1, 3 and 6.")
    describe_prompt(prompt, request, token)
    selected = True
    for stage in request.stages:
        if stage.index > 0:
            record = trace.decisions[stage.index - 1]
            describe_decision(record, token, stage.kept, deferred=not selected)
            selected = token in record.selected
        describe_stage(stage, output, request, token, selected)
    print("\nAfter the last block")
    say("RR-BLOCK-008", f"every row passes the final norm: logits {list(output.logits.shape[1:])}")
    cache = output.cache[0]
    say("RR-KV-003", f"the caches hold {trace.kv_rows} rows, the logical length is {cache.length}")
    say("RR-KV-008", "the states of the rows that are deferred at the end are dropped with the prefill")
    first = output.logits[:, -1:].argmax(-1)
    later = run(model, {"input_ids": first}, SCHEDULE, cache=output.cache)
    print(f"\nA token is generated: {first.item()}")
    say("RR-KV-004", f"it stands at {cache.next_position}, after the largest coordinate so far")
    say("RR-KV-002", f"it runs every block and joins every cache: {later.kv_lengths}")


if __name__ == "__main__":
    main()
