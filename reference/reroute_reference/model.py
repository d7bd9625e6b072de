"""Runs a batch under a schedule (``run``) and generates greedily (``generate``); this is the entry of the reference.

A batch is a loop over its requests, which are independent (RR-EQV-004).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from reroute_spec import RerouteError, RoutingTrace, Schedule
from torch import Tensor, nn

from .cache import RowCache
from .check_cache import check_cache, check_one, check_tokens
from .check_request import Decoder, check_decisions, check_dtype, check_inputs, check_schedule
from .decoder import CanonicalDecoder
from .huggingface import HuggingFaceDecoder
from .inputs import Prompt, read_prompts
from .precision import in_precision
from .prefix import Prefix
from .routing import Replay, RoutedRow, extend, route, shared_prefix


@dataclass(frozen=True)
class RoutedOutput:
    """The output of a routed prefill or of a later turn.

    In a later turn its rows are the new ones. Only caches and row counts then include what was there before.

    Attributes:
        logits: [B, S, V]. Under ``reroute`` row i of the padded input stands at i. Under ``delete`` [B, R, V] holds
            the survivors, left-padded. Padding is NaN.
        hidden_states: final hidden states after the last norm, laid out alike, [B, S, d] or [B, R, d].
        kv_lengths: for every block the rows that its cache holds, the largest number over the batch.
        traces: one per request.
        cache: one per request.
        residuals: for every request, the residual stream at every decision layer's input and after the last block.
        loss: mean cross-entropy of every row's next label over the batch, where ``labels`` are given; None elsewhere.
    """

    logits: Float[Tensor, "B S V"]
    hidden_states: Float[Tensor, "B S d"]
    kv_lengths: tuple[int, ...]
    traces: tuple[RoutingTrace, ...]
    cache: tuple[RowCache, ...]
    residuals: tuple[dict[int, Tensor], ...]
    loss: Float[Tensor, ""] | None = None


@torch.no_grad()
def run(
    model: nn.Module | CanonicalDecoder,
    inputs: Mapping[str, Any],
    schedule: Schedule,
    *,
    decisions: Sequence[Replay] | None = None,
    dtype: torch.dtype | None = None,
    cache: Sequence[RowCache] | None = None,
    prefix: Prefix | None = None,
) -> RoutedOutput:
    """Prefill of a batch, or a later turn of it.

    Args:
        model: a described transformers model in eval mode, or a canonical decoder.
        inputs: what the model's processor returns (see :func:`reroute_reference.inputs.read_prompts`).
        schedule: what to decide where.
        decisions: per request, the selection of every decision; they are run instead of the scores' own, and the
            traces say what the scores would have selected.
        dtype: compute in this precision on a copy of the model; ``torch.float64`` makes the oracle.
        cache: what an earlier run returned, one per request. The inputs then hold the new rows only, text or images;
            the given cache stays as it is, the output has the one that goes on.
        prefix: what :func:`prefix_of` made of the rows that every request of the batch begins with.

    Raises:
        RerouteError: what the schedule, the model, the cache or the inputs cannot mean, naming the field.
    """
    check_dtype(dtype)
    decoder = as_decoder(model, None)
    check_schedule(decoder, schedule)
    decoder = decoder if dtype is None else as_decoder(model, dtype)
    prompts, routed = _route_batch(decoder, inputs, schedule, decisions, cache, prefix)
    hidden_states = [_padded(prompt, row, schedule) for prompt, row in zip(prompts, routed, strict=True)]
    if schedule.action == "delete":
        longest = max(len(states) for states in hidden_states)
        hidden_states = [
            _nan_rows(states, longest, range(longest - len(states), longest)) for states in hidden_states
        ]
    stacked = torch.stack(hidden_states)
    logits = decoder.head(stacked)
    labels = inputs.get("labels")
    # every request is answered: logits, a trace and a cache of its own, routed or not  RR-ERR-003
    return RoutedOutput(
        logits=logits,
        loss=None if labels is None else _loss(prompts, logits, labels),
        hidden_states=stacked,
        kv_lengths=tuple(max(rows) for rows in zip(*(row.trace.kv_rows for row in routed), strict=True)),
        traces=tuple(row.trace for row in routed),
        cache=tuple(row.cache for row in routed),
        residuals=tuple(row.residuals for row in routed),
    )


@torch.no_grad()
def prefix_of(
    model: nn.Module | CanonicalDecoder, inputs: Mapping[str, Any], schedule: Schedule, rows: int
) -> Prefix:
    """What the blocks before the first decision make of the first ``rows`` rows of a prompt (RR-EQV-009).

    Give it to :func:`run` with any prompt that begins with them: a system prompt and an image, asked many questions.

    Raises:
        RerouteError: as :func:`run`; more than one request; no row left to ask.
    """
    decoder = as_decoder(model, None)
    check_schedule(decoder, schedule)
    prompts = read_prompts(decoder, inputs)
    if len(prompts) != 1:
        raise RerouteError("inputs", f"hold {len(prompts)} requests", "make a prefix of one")
    return shared_prefix(decoder, prompts[0], schedule, rows)


@torch.no_grad()
def generate(
    model: nn.Module | CanonicalDecoder,
    inputs: Mapping[str, Any],
    schedule: Schedule,
    max_new_tokens: int,
    *,
    decisions: Sequence[Replay] | None = None,
) -> Int[Tensor, "B S+new"]:
    """Greedy decoding: exactly ``max_new_tokens`` per request, end-of-sequence ignored, prompt and new tokens returned.

    ``decisions`` are run instead of the scores' own, as in :func:`run`.
    """
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise RerouteError("max_new_tokens", f"{max_new_tokens!r}", "give an integer >= 1")
    if not isinstance(inputs, Mapping):
        raise RerouteError(
            "inputs", f"is a {type(inputs).__name__}", "give what the model's processor returns"
        )
    if not isinstance(inputs.get("input_ids"), Tensor):
        raise RerouteError("input_ids", "is missing", "generate returns the prompt's tokens and needs them")
    decoder = as_decoder(model, None)
    check_schedule(decoder, schedule)
    _, routed = _route_batch(decoder, inputs, schedule, decisions, None)
    new_tokens = []
    for row in routed:
        last = row.hidden_states[-1:]
        tokens: list[Tensor] = []
        for _ in range(max_new_tokens):
            if tokens:
                last = extend(
                    decoder, row.cache, decoder.embed(tokens[-1])
                )  # no decision in decode  RR-KV-002
            tokens.append(decoder.head(last).argmax(dim=-1))
        new_tokens.append(torch.cat(tokens))
    return torch.cat([inputs["input_ids"], torch.stack(new_tokens)], dim=1)


@torch.no_grad()
def forced_logits(
    model: nn.Module | CanonicalDecoder, cache: RowCache, tokens: Int[Tensor, " n"], *, chunk: bool = False
) -> Float[Tensor, "n V"]:
    """Logits after each of ``tokens``, appended to a request's cache one by one, or at once with ``chunk`` (RR-KV-005).

    Raises:
        RerouteError: a cache that this model has not filled, or tokens it has no embedding of; the cache stays as it is.
    """
    decoder = as_decoder(model, None)
    check_one(decoder, cache, "cache")
    check_tokens(decoder, tokens)
    parts = [tokens] if chunk else [tokens[i : i + 1] for i in range(len(tokens))]
    return torch.cat([decoder.head(extend(decoder, cache, decoder.embed(part))) for part in parts])


def as_decoder(model: nn.Module | CanonicalDecoder, dtype: torch.dtype | None) -> Decoder:
    """A model as the reference sees it, in ``dtype`` where one is given."""
    if isinstance(model, CanonicalDecoder):
        if dtype is None:
            return model
        return CanonicalDecoder(model.config, model.weights, dtype, shards=model.shards)
    if not isinstance(model, nn.Module):
        raise RerouteError(
            "model", f"is a {type(model).__name__}", "give a transformers model or a CanonicalDecoder"
        )
    return HuggingFaceDecoder(model if dtype is None else in_precision(model, dtype))


def _route_batch(
    decoder: Decoder,
    inputs: Mapping[str, Any],
    schedule: Schedule,
    decisions: Sequence[Replay] | None,
    cache: Sequence[RowCache] | None,
    prefix: Prefix | None = None,
) -> tuple[list[Prompt], list[RoutedRow]]:
    batch = check_inputs(decoder, inputs)
    if prefix is not None and cache is not None:
        raise RerouteError("prefix", "is given with a cache", "a prefix begins a prompt, not a later turn")
    check_decisions(decisions, batch)
    if schedule.action == "delete" and inputs.get("labels") is not None:  # RR-ERR-004
        raise RerouteError("labels", "removed rows have no logits under action 'delete'", "leave labels out")
    if schedule.positions == "renumber" and inputs.get("position_ids") is not None:
        raise RerouteError(
            "position_ids", "given with positions 'renumber', which counts rows itself", "leave out"
        )
    caches = None if cache is None else check_cache(decoder, cache, batch, schedule)
    prompts = read_prompts(decoder, inputs, caches)
    replays = [None] * len(prompts) if decisions is None else decisions
    earlier = [None] * len(prompts) if caches is None else caches
    turns = zip(prompts, replays, earlier, strict=True)
    # one request after the other: they are independent  RR-EQV-004
    return prompts, [
        route(decoder, prompt, schedule, replay, cached, prefix) for prompt, replay, cached in turns
    ]


def _loss(prompts: Sequence[Prompt], logits: Float[Tensor, "B S V"], labels: Int[Tensor, "B S"]) -> Tensor:
    """Row i of a request foretells the label of its next real row; labels of -100 are left out."""
    foretold = [logits[b, prompt.rows[:-1]] for b, prompt in enumerate(prompts)]
    targets = [labels[b, prompt.rows[1:]] for b, prompt in enumerate(prompts)]
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(torch.cat(foretold).to(wide), torch.cat(targets).long())


def _padded(prompt: Prompt, row: RoutedRow, schedule: Schedule) -> Tensor:
    if schedule.action == "delete":
        return row.hidden_states
    return _nan_rows(row.hidden_states, prompt.padded_length, prompt.rows)


def _nan_rows(states: Float[Tensor, "n d"], length: int, places: Any) -> Float[Tensor, "length d"]:
    """``states`` at ``places`` of ``length`` rows; the rest is NaN, which nobody can mistake for an output."""
    padded = states.new_full((length, states.shape[-1]), torch.nan)
    padded[torch.as_tensor(places, device=states.device)] = states
    return padded
