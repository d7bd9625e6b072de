"""One of two processes: everything that the tests ask of tensor parallelism, in one start. Results go to a file.

Run by ``launch``; the folder holds a model of every family and, in ``inputs.pt``, what it is asked.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from reroute_optimized import apply, routed
from reroute_spec import Decision, RerouteError, Schedule, ScoreRule
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.distributed import DistributedConfig

FOLDER, RANK = Path(sys.argv[1]), int(os.environ["RANK"])
TWO = (Decision(3, "0.5"), Decision(7, "0.25"))
SCHEDULES = {
    "mean": Schedule("reroute", TWO),
    "max": Schedule("reroute", TWO, score=ScoreRule(query="last_n", n=3, heads="max")),
    "delete": Schedule("delete", TWO, score=ScoreRule(heads="max")),
    "previous": Schedule("delete", (Decision(4, "0.5"), Decision(8, "0.25")), score=ScoreRule("previous")),
}
QWEN3_VL = {
    f"model.language_model.layers.*.self_attn.{name}_proj": "rowwise" if name == "o" else "colwise"
    for name in "qkvo"
}


def load(name, plan=None, make=AutoModelForImageTextToText, **sizes):
    """A model of the folder: whole, or with ``tp_size`` or ``fsdp_size`` as transformers shards it."""
    config = DistributedConfig(tp_plan=plan, **sizes) if sizes else None
    model = make.from_pretrained(FOLDER / name, distributed_config=config)
    return model.eval().requires_grad_(False)


def decided(result):
    return [[(d.layer, d.selected, d.scores) for d in trace.decisions] for trace in result.traces]


def asked(model, given, schedule):
    """A batch, three tokens after it, new images on its cache, and a token after those; then what generate makes of the batch."""
    with routed(model, schedule) as result:
        out = model(**given["prefill"])
        seen = {"shards": result.shards, "prefill": decided(result), "rows": result.kv_lengths}
        tokens = torch.full((len(out.logits), 1), 7)
        logits = [out.logits, model(input_ids=tokens, past_key_values=out.past_key_values).logits]
        logits.append(model(**given["turn"], past_key_values=out.past_key_values).logits)
        seen["turn"] = decided(result)
        logits.append(model(input_ids=tokens, past_key_values=out.past_key_values).logits)
        seen["keys"] = [layer.keys.shape[1] for layer in out.past_key_values.layers if hasattr(layer, "keys")]
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        seen["tokens"] = model.generate(**given["prefill"], **options)
        seen["generate"] = decided(result)
    return {**seen, "logits": [rows.nan_to_num() for rows in logits]}


def after_a_prefix(model, given):
    """What a request without padding decides after its own beginning."""
    beginning = {name: rows if rows.ndim > 2 else rows[:, :-1] for name, rows in given.items()}
    with routed(model, SCHEDULES["mean"]) as result, result.prefix(beginning):
        model(**given)
        return decided(result)


def refused(call):
    try:
        call()
    except RerouteError as error:
        return error.field, str(error)
    return None


def routes(model, given, schedule):
    with routed(model, schedule):
        model(**given)


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=os.environ["RENDEZVOUS"],
        rank=RANK,
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=60),
    )
    inputs, seen = torch.load(FOLDER / "inputs.pt"), {}
    for family, given in inputs.items():
        whole, parts = load(family), load(family, tp_size=2)
        names = ["mean", "max", "delete"] + ["previous"] * (family == "llava")
        for name in names:
            seen[family, name] = [asked(model, given, SCHEDULES[name]) for model in (whole, parts)]
    given = inputs["llava"]["prefill"]
    seen["qwen3_vl", "planned"] = [
        asked(model, inputs["qwen3_vl"], SCHEDULES["mean"])
        for model in (load("qwen3_vl"), load("qwen3_vl", QWEN3_VL, tp_size=2))
    ]
    longest = {name: rows[1:] for name, rows in given.items()}  # all but the first request, and its picture
    seen["prefix"] = [after_a_prefix(model, longest) for model in (load("llava"), load("llava", tp_size=2))]
    seen["triton"] = refused(lambda: apply(load("llava", tp_size=2), SCHEDULES["mean"], backend="triton"))
    half = load("llava", tp_size=2).to(torch.bfloat16)
    with routed(half, SCHEDULES["mean"]) as result:
        half(**{**given, "pixel_values": given["pixel_values"].bfloat16()})
        seen["bfloat16"] = decided(result)
    for reduction in ("mean", "max"):
        seen["nan", reduction] = refused(
            lambda name=reduction: routes(load("nan", tp_size=2), given, SCHEDULES[name])
        )
    seen["uneven"] = refused(
        lambda: routes(load("uneven", make=AutoModelForCausalLM, tp_size=2), {}, SCHEDULES["mean"])
    )
    seen["fsdp"] = refused(lambda: routes(load("llava", fsdp_size=2), given, SCHEDULES["mean"]))
    # data parallel: every process its own requests, of different lengths, and nobody waits for the other
    model, mine = load("llava"), inputs["llava"]["prefill" if RANK == 0 else "turn"]
    with routed(model, SCHEDULES["mean"]) as result:
        for _ in range(1 + RANK):
            model(**mine)
        seen["data parallel"] = result.shards, decided(result)
    torch.save(seen, FOLDER / f"seen.{RANK}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
