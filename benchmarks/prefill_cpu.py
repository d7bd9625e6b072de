"""What a routed prefill costs on a CPU, beside the unrouted one and beside the least that its plan can cost.

LLaVA's shape with narrow blocks: 32 blocks, hidden 512, MLP 1376, 8 heads, 576 visual and 65 text rows, float32, two threads.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from reroute_optimized import routed
from reroute_reference import run
from reroute_spec import Plan, Schedule, plan
from reroute_spec.plan import visual_flags
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS, HIDDEN, MLP, HEADS = 32, 512, 1376, 8
VISUAL, TEXT, BEFORE = 576, 65, 35
PRESETS = ("reroute-fastv-192", "reroute-fastv-64")
MOST_SPREAD, MOST_TRIES = 0.10, 3


def build() -> LlamaForCausalLM:
    """A decoder of LLaVA's kind with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def floor(model: Any, request: Plan, embeddings: Tensor) -> Tensor:
    """The plan's blocks called plainly: the first rows of the prompt stand for those that a decision selects.

    Per stage one call of the rotary embedding and no mask; per decision the norm and the keys of all rows.
    """
    decoder = model.model
    rotary = decoder.rotary_emb(embeddings, position_ids=torch.arange(request.num_rows)[None])
    hidden, rows = embeddings, request.num_rows
    for stage in request.stages:
        if stage.index > 0:
            block = decoder.layers[stage.first]
            block.self_attn.k_proj(block.input_layernorm(embeddings))
            rows = request.kv_rows[stage.first]
            hidden = hidden[:, :rows] if hidden.shape[1] >= rows else embeddings[:, :rows]
        own = rotary[0][:, :rows], rotary[1][:, :rows]
        for layer in range(stage.first, stage.last + 1):
            hidden = decoder.layers[layer](
                hidden, attention_mask=None, position_embeddings=own, position_ids=None, past_key_values=None
            )
    logits: Tensor = model.lm_head(decoder.norm(hidden)[:, -1:])
    return logits


def candidates(model: Any, schedule: Schedule) -> dict[str, Callable[[], object]]:
    """What is measured, by name."""
    flags = visual_flags(VISUAL, TEXT, before=BEFORE)
    embeddings = torch.randn(1, VISUAL + TEXT, HIDDEN, generator=torch.Generator().manual_seed(1))
    inputs = {"inputs_embeds": embeddings, "visual_mask": torch.tensor([flags])}
    request = plan(schedule, LAYERS, flags)

    def optimized() -> object:
        return model(**inputs, use_cache=False, logits_to_keep=1).logits

    def routed_once() -> object:
        with routed(model, schedule):
            return optimized()

    return {
        "unrouted": lambda: model(inputs_embeds=embeddings, use_cache=False, logits_to_keep=1).logits,
        "floor": lambda: floor(model, request, embeddings),
        "reference": lambda: run(model, inputs, schedule),
        "optimized": routed_once,
    }


def measure(measured: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every round; all of them run once before, and take turns."""
    times: dict[str, list[float]] = {name: [] for name in measured}
    with torch.no_grad():
        for call in measured.values():
            call()
        for _ in range(rounds):
            for name, call in measured.items():
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    return times


def spread(times: list[float]) -> float:
    """Distance of the quartiles relative to the median."""
    if len(times) < 4:
        return (max(times) - min(times)) / statistics.median(times)
    low, _, high = statistics.quantiles(times, n=4)
    return (high - low) / statistics.median(times)


def report(name: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """Least and median of each in milliseconds, and how many times faster than unrouted it is."""
    rows: dict[str, Any] = {}
    for what, own in times.items():
        least, median = min(own), statistics.median(own)
        rows[what] = {
            "min_ms": least * 1e3,
            "median_ms": median * 1e3,
            "speedup_min": min(times["unrouted"]) / least,
            "speedup_median": statistics.median(times["unrouted"]) / median,
        }
    of_floor = {
        "of_floor_min": min(times["floor"]) / min(times["optimized"]),
        "of_floor_median": statistics.median(times["floor"]) / statistics.median(times["optimized"]),
    }
    return {"preset": name, "spread": spread(times["unrouted"]), "measured": rows, **of_floor}


def show(result: dict[str, Any]) -> None:
    """A table."""
    print(f"\n{result['preset']}: unrouted times spread by {result['spread']:.1%}")
    print(f"{'':<12}{'min ms':>10}{'median ms':>12}{'x (min)':>10}{'x (median)':>12}")
    for what, row in result["measured"].items():
        print(
            f"{what:<12}{row['min_ms']:>10.1f}{row['median_ms']:>12.1f}{row['speedup_min']:>10.2f}"
            f"{row['speedup_median']:>12.2f}"
        )
    print(
        f"optimized runs at {result['of_floor_min']:.3f} (min), {result['of_floor_median']:.3f} (median)"
        " of the floor's speed"
    )


def main() -> None:
    """Measure every preset; a run that was disturbed is repeated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", action="append", help="any number of them")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, results = build(), []
    if not options.json:
        versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
        print(f"{platform.processor() or platform.machine()}, {options.threads} threads, {versions}")
    for name in options.preset or PRESETS:
        schedule = Schedule.load(name, LAYERS)
        for attempt in range(1, MOST_TRIES + 1):
            result = report(name, measure(candidates(model, schedule), options.rounds))
            result["attempt"] = attempt
            results.append(result)
            if not options.json:
                show(result)
            if result["spread"] <= MOST_SPREAD:
                break
            if not options.json:
                print(
                    f"more than {MOST_SPREAD:.0%}: the machine was not idle (attempt {attempt} of {MOST_TRIES})"
                )
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
