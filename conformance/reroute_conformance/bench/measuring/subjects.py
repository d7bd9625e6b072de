"""Prepares the calls that are timed: those of targets, through the protocol alone, and those of what stands beside them.

Beside the targets stand the unrouted transformers model, the plan's blocks called plainly, and scores that are taken
out of a whole attention map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from ...protocol import Target
from .timing import Call
from .works import MAP, PLAIN, UNROUTED, Work


class UnmeasuredError(Exception):
    """The exception of a subject that is not measured at a work. Its message says why."""


@dataclass(frozen=True)
class Subject:
    """One who is measured: a target, or something that stands beside the targets.

    Attributes:
        name: the name in every table.
        prepare: makes the call that is timed.
        routed: whether it does the routed work, so that its floor is that of the routed work.
    """

    name: str
    prepare: Callable[[Work], Call]
    routed: bool = True


def subject_of(target: Target, name: str) -> Subject:
    """A target under a name: by its own ``prepare``, or else by what ``select`` and ``run`` take."""

    def prepare(work: Work) -> Call:
        try:
            call = offered(work)
            with torch.no_grad():
                call()
        except UnmeasuredError:
            raise
        except Exception as error:  # the others are measured all the same
            raise UnmeasuredError(f"it raised {type(error).__name__}: {error}") from error
        return call

    def offered(work: Work) -> Call:
        given = work.given(module="hf" in target.profiles)
        hook = getattr(target, "prepare", None)
        if hook is not None:
            call: Call | None = hook(work.kind, given)
            if call is None:
                raise UnmeasuredError(f"its prepare offers no {work.kind}")
            return call
        if work.kind == "select":
            return lambda: target.select(given["scores"], given["k"])
        if work.kind == "prefill":
            return lambda: target.run(given["model"], given["inputs"], given["schedule"])
        raise UnmeasuredError(f"it has no prepare, and run does not do {work.kind} alone")

    return Subject(name, prepare)


def unrouted() -> Subject:
    """The transformers model as it is."""

    def prepare(work: Work) -> Call:
        if not work.unrouted_parts:
            raise UnmeasuredError(f"an unrouted model does no {work.kind}")
        given = work.given()
        model, embeddings = given["model"], given["inputs"]["inputs_embeds"]

        def prefill() -> Any:
            return model(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1).past_key_values

        if work.kind == "prefill":
            return prefill
        with torch.no_grad():
            cache = prefill()
        if work.kind == "reorder":
            return lambda: cache.reorder_cache(given["order"])
        tokens: Tensor = given["tokens"]

        def decode() -> None:
            for step in tokens.unbind(1):
                model(input_ids=step[:, None], past_key_values=cache, use_cache=True)
            cache.crop(-tokens.shape[1])

        return decode

    return Subject(UNROUTED, prepare, routed=False)


def plain() -> Subject:
    """The plan's blocks called plainly, at its row counts: the first rows of a prompt stand for those that a decision selects.

    There is one call of the rotary embedding per stage, and no mask. There are the norm and the keys of all rows per
    decision, and no gather and no selection. What routing adds to the blocks is what a target takes beyond this.
    """

    def prepare(work: Work) -> Call:
        if work.kind != "prefill" or work.plan is None:
            raise UnmeasuredError(f"{work.kind} is no sequence of blocks")
        given = work.given()
        model, embeddings, request = given["model"], given["inputs"]["inputs_embeds"], work.plan
        decoder = model.model

        def blocks() -> Tensor:
            cache = DynamicCache(config=decoder.config)
            positions = torch.arange(request.num_rows, device=embeddings.device)[None]
            rotary = decoder.rotary_emb(embeddings, position_ids=positions)
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
                        hidden,
                        attention_mask=None,
                        position_embeddings=own,
                        position_ids=None,
                        past_key_values=cache,
                    )
            logits: Tensor = model.lm_head(decoder.norm(hidden)[:, -1:])
            return logits

        return blocks

    return Subject(PLAIN, prepare)


def attention_map() -> Subject:
    """Scores as a pruning method takes them from eager attention: the whole map of a block, then its last row."""

    def prepare(work: Work) -> Call:
        if work.kind != "score":
            raise UnmeasuredError(f"{work.kind} needs no attention map")
        given = work.given()
        decoder, hidden = given["model"].model, given["inputs"]["inputs_embeds"]
        block = decoder.layers[0]
        attention = block.self_attn
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        cos, sin = decoder.rotary_emb(hidden, position_ids=positions)
        hidden_to = torch.full((hidden.shape[1],) * 2, -torch.inf, device=hidden.device).triu(1)

        def turned(states: Tensor) -> Tensor:
            heads = states.view(*states.shape[:-1], -1, attention.head_dim).transpose(1, 2)
            first, second = heads.chunk(2, dim=-1)
            rotated: Tensor = heads * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]
            return rotated

        def scores() -> Tensor:
            normed = block.input_layernorm(hidden)
            query, key = turned(attention.q_proj(normed)), turned(attention.k_proj(normed))
            key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
            logits = query @ key.transpose(-1, -2) * attention.scaling + hidden_to
            found: Tensor = logits.softmax(-1, dtype=torch.float32).mean(1)[:, -1]
            return found

        return scores

    return Subject(MAP, prepare)


BESIDE: tuple[Callable[[], Subject], ...] = (unrouted, plain, attention_map)
"""In the order of every table, before the targets."""
