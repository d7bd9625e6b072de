"""Refuses models, schedules, arguments and options that routing does not define, before anything is changed.

Each ``check_…`` function raises a ``RerouteError`` that names what it refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from reroute_reference.families import Family, check_attention
from reroute_spec import RerouteError, Schedule
from torch import Tensor, nn

from ..model.decoder import Decoder
from ..stages.masks import check_implementation
from ..turn.cache import RoutingState, check_kind

_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
_DYNAMIC = ("dynamic", "dynamic_full")
_ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")


def check_decoder(decoder: Decoder) -> None:
    """Refuse a decoder with a block that its description does not cover.

    Raises:
        RerouteError: naming the model.
    """
    check_attention(decoder.module, decoder.names.kinds)


def check_applicable(decoder: Decoder, family: Family, schedule: Schedule) -> None:
    """Refuse a schedule or a decoder that this backend does not run.

    Raises:
        RerouteError: naming the field of the schedule, or the model.
    """
    if schedule.positions == "renumber" and decoder.names.mrope:
        raise RerouteError(
            "positions",
            f"'renumber' with {family.name}, whose positions have three coordinates",
            "use 'preserve'",
        )
    if "forward" in decoder.module.__dict__ and not is_hooked(decoder.module):
        raise RerouteError(
            "model",
            "its text decoder's forward was replaced on the instance",
            "apply before anything wraps forward",
        )
    check_implementation(decoder.config._attn_implementation)


def is_hooked(module: nn.Module) -> bool:
    """Whether accelerate wraps ``module``'s forward, as it does where a model lies on several devices."""
    return "_hf_hook" in module.__dict__ and "_old_forward" in module.__dict__


def check_mode(decoder: Decoder) -> None:
    """Refuse training mode, gradient checkpointing and unknown attention.

    Raises:
        RerouteError: naming the mode.
    """
    if decoder.module.training:
        raise RerouteError("model.training", "a routed model is in training mode", "call model.eval()")
    if any(getattr(block, "gradient_checkpointing", False) for block in decoder.blocks):
        raise RerouteError(
            "gradient_checkpointing", "is on in a routed model", "call model.gradient_checkpointing_disable()"
        )
    check_implementation(decoder.config._attn_implementation)


def check_keywords(decoder: Decoder, keywords: Mapping[str, Any]) -> None:
    """Refuse what routing would answer wrongly.

    Raises:
        RerouteError: attentions of all blocks, hidden states of some, packed sequences, attention that is not causal.
    """
    name = "output_attentions"
    if keywords.get(name, getattr(decoder.config, name, False)):
        raise RerouteError(name, "rows differ from block to block in a routed model", "leave it False")
    name = "output_hidden_states"
    if keywords.get(name, getattr(decoder.config, name, False)) not in (True, False, None):
        raise RerouteError(name, "selects blocks", "give True for all, and choose from them")
    for name in _PACKED:
        if keywords.get(name) is not None:
            raise RerouteError(name, "packed sequences are not routed", "give a batch with attention_mask")
    if keywords.get("is_causal") is False or getattr(decoder.config, "is_causal", None) is False:
        raise RerouteError("is_causal", "is False", "routing is defined for causal decoders")


def check_prompt(model: nn.Module, family: Family, input_ids: Any, given: Mapping[str, Any]) -> None:
    """Refuse a prompt that cannot be read, before the vision tower runs.

    Args:
        model: with a head.
        family: its description.
        input_ids: [B, S] of a prompt or a later turn.
        given: the other arguments of the forward that merges text and images.

    Raises:
        RerouteError: ids that are no integers, pixels that are no tensor, features that are not as many as placeholders.
    """
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.is_floating_point():
        found = input_ids.dtype if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise RerouteError("input_ids", f"are {found}", "give token ids [B, S], int64 or int32")
    if given.get("mm_encoder_outputs") is not None:
        return  # made beforehand, as generate does; transformers compares them
    for medium in family.media:
        pixels = given.get(medium.pixels)
        if pixels is not None and not isinstance(pixels, Tensor):
            problem = f"are a {type(pixels).__name__}"
            raise RerouteError(medium.pixels, problem, "give what the processor returns")
        rows = 0 if pixels is None else sum(medium.features(model.config, given))
        held = int((input_ids == getattr(model.config, medium.placeholder)).sum())
        if held != rows:
            raise RerouteError(
                medium.pixels,
                f"make {rows} rows, input_ids hold {held} placeholders",
                "give input_ids and pixels of one call of the processor",
            )


def check_attention_mask(mask: Any, batch: int, columns: int) -> None:
    """Refuse an attention mask that is not [B, S] of 0 and 1, or hides a whole request.

    Raises:
        RerouteError: naming ``attention_mask``.
    """
    if mask is None:
        return
    if not isinstance(mask, Tensor) or tuple(mask.shape) != (batch, columns):
        shape = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise RerouteError("attention_mask", f"is {shape}", f"give [{batch}, {columns}], 1 for real columns")
    strange, hidden = ((mask != 0) & (mask != 1)).any(dim=1), (mask == 0).all(dim=1)
    for index, (other, none) in enumerate(torch.stack([strange, hidden], dim=1).tolist()):
        if other:
            raise RerouteError(
                "attention_mask", "holds other values than 0 and 1", "give 1 for real columns, 0 for padding"
            )
        if none:
            raise RerouteError(
                f"attention_mask[{index}]", "has no real column", "give at least one token per request"
            )


def check_visual_mask(mask: Any, batch: int, columns: int) -> None:
    """Refuse a visual mask that is not bool [B, S].

    Raises:
        RerouteError: naming ``visual_mask``.
    """
    if mask is None:
        return
    if (
        not isinstance(mask, Tensor)
        or str(mask.dtype) != "torch.bool"
        or tuple(mask.shape) != (batch, columns)
    ):
        what = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask).__name__
        raise RerouteError(
            "visual_mask", f"is {what}", f"give a bool tensor [{batch}, {columns}], True for visual columns"
        )


def check_position_ids(position_ids: Any, batch: int, columns: int, mrope: bool) -> Tensor | None:
    """Positions [B or 1, S] or, with M-RoPE, also [3, B or 1, S]; anything else is refused.

    Of four coordinates, as ``generate`` gives them, the first counts text and is no position.

    Raises:
        RerouteError: naming ``position_ids``.
    """
    if position_ids is None:
        return None
    if not isinstance(position_ids, Tensor) or position_ids.is_floating_point():
        found = position_ids.dtype if isinstance(position_ids, Tensor) else type(position_ids).__name__
        raise RerouteError("position_ids", f"are {found}", "give an integer tensor, or none")
    rows = position_ids.shape[-2:]
    coordinates = position_ids.shape[:-2]
    if (
        position_ids.ndim not in ((2, 3) if mrope else (2,))
        or rows[0] not in (1, batch)
        or rows[1] != columns
        or tuple(coordinates) not in ((), (3,), (4,))
    ):
        wanted = f"[{batch}, {columns}]{f' or [3, {batch}, {columns}]' if mrope else ''}"
        raise RerouteError("position_ids", f"are {list(position_ids.shape)}", f"give {wanted}, or none")
    return position_ids[1:] if tuple(coordinates) == (4,) else position_ids


def check_requests(state: RoutingState, batch: int) -> None:
    """Refuse another number of requests than ``state``'s cache holds.

    Raises:
        RerouteError: naming ``past_key_values``.
    """
    held = len(state.num_rows)
    if held != batch:
        raise RerouteError(
            "past_key_values", f"holds {held} requests, {batch} are given", "give as many as were cached"
        )


def check_later_turn(state: RoutingState, batch: int, columns: int, attention_mask: Any) -> None:
    """Refuse what a turn after the prefill cannot hold. Reads the masks of chunks, never of a single row.

    Args:
        state: of the cache.
        batch, columns: shape of the new rows.
        attention_mask: of the new columns, or of all columns so far.

    Raises:
        RerouteError: another batch size, padding.
    """
    check_requests(state, batch)
    cached = state.num_rows + state.hidden_columns
    if attention_mask is None:
        return
    if (
        not isinstance(attention_mask, Tensor)
        or attention_mask.ndim != 2
        or attention_mask.shape[1] < columns
    ):
        raise RerouteError(
            "attention_mask", "is no [B, columns] mask of the new rows", "give a 2-D mask, or none"
        )
    seen = attention_mask[:, :-columns]
    if columns > 1 and seen.shape[1] and bool(((seen != 0).sum(1).to(cached.device) != cached).any()):
        raise RerouteError(
            "attention_mask",
            "hides rows that are in the cache, or shows others",
            "give the masks of the turns so far, then ones",
        )
    if columns > 1 and bool((attention_mask[:, -columns:] == 0).any()):
        raise RerouteError(
            "attention_mask", "padding inside a later turn is not routed", "give chunks of equal length"
        )


def check_generation(model: nn.Module, generation_config: Any, keywords: Mapping[str, Any]) -> bool:
    """Refuse ways of generating that cut or revise a prefill, and caches that are no dynamic one.

    Returns:
        Whether the steps go on with a cache.

    Raises:
        RerouteError: naming the option.
    """
    own: Any = getattr(model, "generation_config", None)

    def values(name: str) -> list[Any]:
        configured = (getattr(config, name, None) for config in (generation_config, own))
        return [value for value in (keywords.get(name), *configured) if value is not None]

    check_kind(keywords.get("past_key_values"))
    for kind in values("cache_implementation"):
        if kind not in _DYNAMIC:
            raise RerouteError(
                "cache_implementation", f"{kind!r} is not defined for routed models", "leave it out"
            )
    if any(values("prefill_chunk_size")):
        raise RerouteError("prefill_chunk_size", "a routed prefill is not cut into chunks", "leave it None")
    for name in _ASSISTED:
        if any(values(name)):
            raise RerouteError(name, "assisted generation is not defined for routed models", "leave it out")
    # transformers turns the cache on where embeddings are given: later steps know nothing of them
    return bool(next(iter(values("use_cache")), True)) or keywords.get("inputs_embeds") is not None
