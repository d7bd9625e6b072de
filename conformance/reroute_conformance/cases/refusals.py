"""Lists requests that a target must refuse: each is a right request to a model family with one thing wrong.

Every such fault has a name in :data:`FAULTS`, the rule that refuses it, and a pattern of the fields that the refusal
may name. One entry is no fault, and its request has to be answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    StaticCache,
)

from ..tiny.zoo import judge_model
from .case import KINDS, Case, Row
from .families import QwenCase
from .models import LlavaCase, ModelCase

_SMALL: dict[str, Any] = {
    "vocab_size": 200,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
_ONE_DECISION: dict[str, Any] = {"action": "reroute", "decisions": [{"layer": 3, "keep": "0.5"}]}
Inputs = dict[str, Any]
Put = Callable[[nn.Module, Inputs], Inputs]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a request.

    Attributes:
        rule: the rule that refuses it.
        fields: a pattern of the fields that the refusal may name (RR-ERR-001).
        given: the names and values that the rule's check needs to know.
        put: a function that makes the inputs wrong. It is given the model to read sizes from.
        call: the member of the target that is asked: ``run``, ``generate`` or ``plan``.
        schedule: the schedule that is asked for.
        model: makes a model to ask with in place of the family's own; None for the family's own.
        training: whether the model is in training mode.
        families: the model families that the fault is about; empty for all of them.
        answered: whether it is no fault after all, so that the request has to be answered as it is without it.
    """

    rule: str
    fields: str
    given: Mapping[str, Any]
    put: Put = lambda model, inputs: inputs
    call: str = "run"
    schedule: Mapping[str, Any] = field(default_factory=lambda: _ONE_DECISION)
    model: Callable[[], nn.Module] | None = None
    training: bool = False
    families: tuple[str, ...] = ()
    answered: bool = False

    def accepts(self, family: str) -> bool:
        """Whether it can be asked of a family."""
        return not self.families or family in self.families


@dataclass(frozen=True)
class RefusalCase(Case):
    """A right request to a model family, and the fault that makes it wrong.

    Attributes:
        family: the model family.
        fault: the name of the fault in :data:`FAULTS`.
    """

    kind: ClassVar[str] = "refusal"
    family: str = "llava"
    fault: str = ""

    def right(self) -> ModelCase:
        """The request without its fault."""
        case: ModelCase = LlavaCase() if self.family == "llava" else QwenCase(family=self.family)
        return replace(case, schedule=dict(_ONE_DECISION), rows=[Row("tIttt", 3)])


LAYOUT = [False, True, True, True, False], [2]
"""The flags of a request's rows, and a feature count that is too low for them. Faults that are asked of ``plan`` give both."""

KINDS[RefusalCase.kind] = RefusalCase


def _with(**changed: Callable[[Inputs], Any]) -> Put:
    def put(model: nn.Module, inputs: Inputs) -> Inputs:
        return {**inputs, **{name: value(inputs) for name, value in changed.items()}}

    return put


def _cached(make: Callable[[Any], Any]) -> Put:
    def put(model: Any, inputs: Inputs) -> Inputs:
        return {**inputs, "past_key_values": make(model.config.get_text_config())}

    return put


def _filled(config: Any) -> DynamicCache:
    """As a run of an unrouted model would leave it."""
    cache, heads = DynamicCache(), config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rows = torch.randn(1, heads, 5, width, generator=torch.Generator().manual_seed(0))
    for layer in range(config.num_hidden_layers):
        cache.update(rows.clone(), rows.clone(), layer)
    return cache


def _without(*names: str) -> Put:
    return lambda model, inputs: {name: value for name, value in inputs.items() if name not in names}


def _one_placeholder_less(model: Any, inputs: Inputs) -> Inputs:
    ids: Tensor = inputs["input_ids"].clone()
    places = (ids[0] == model.config.image_token_id).nonzero()[:, 0]
    ids[0, places[-1]] = 7
    changed = {"input_ids": ids}
    if "mm_token_type_ids" in inputs:
        kinds = inputs["mm_token_type_ids"].clone()
        kinds[0, places[-1]] = 0
        changed["mm_token_type_ids"] = kinds
    return {**inputs, **changed}


def _decided(layer: int, **rest: Any) -> dict[str, Any]:
    return {"action": "reroute", "decisions": [{"layer": layer, "keep": "0.5"}], **rest}


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


@cache
def another_class() -> nn.Module:
    """A model whose class nobody has described."""
    return _seeded(lambda: MistralForCausalLM(MistralConfig(**_SMALL)))


def _llava_over(text: Any) -> nn.Module:
    config: Any = judge_model("llava", 0, "sdpa", torch.float32).config
    return _seeded(
        lambda: LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=config.vision_config,
                text_config=text,
                image_token_index=config.image_token_id,
            )
        )
    )


@cache
def another_text_decoder() -> nn.Module:
    """A described class over a text decoder that nobody has described."""
    return _llava_over(MistralConfig(**_SMALL))


@cache
def sliding_llava() -> nn.Module:
    """A described class over a described text decoder, half of whose blocks attend a window."""
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    return _llava_over(Qwen2Config(**_SMALL, **window))


@cache
def sliding_qwen() -> nn.Module:
    """A Qwen2.5-VL, half of whose blocks attend a window."""
    own: Any = judge_model("qwen2_5_vl", 0, "sdpa", torch.float32).config
    config = own.to_dict()
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    config["text_config"].pop("layer_types", None)
    return _seeded(lambda: Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(config)))


_MASK = r"^attention_mask(\[0\])?$"
_FEATURES = r"^(pixel_values|input_ids)$"
_CACHE = r"^(past_key_values|cache_implementation)$"


def _ones(*shape: Callable[[Inputs], int]) -> Callable[[Inputs], Tensor]:
    return lambda inputs: torch.ones(*(size(inputs) for size in shape), dtype=torch.long)


def _rows(inputs: Inputs) -> int:
    return int(inputs["input_ids"].shape[1])


def _unreadable(fields: str, put: Put = lambda model, inputs: inputs, **rest: Any) -> Fault:
    return Fault("RR-ERR-005", fields, {"readable": False}, put, **rest)


def _undescribed(what: str, model: Callable[[], nn.Module], *families: str) -> Fault:
    return Fault("RR-ERR-002", r"^model$", {"family": what}, model=model, families=families)


def _mode(mode: str, put: Put, call: str = "generate", fields: str = _CACHE) -> Fault:
    return Fault("RR-KV-011", fields, {"mode": mode}, put, call)


def _labels(action: str, **rest: Any) -> Fault:
    given = {"action": action, "labels_given": True}
    return Fault(
        "RR-ERR-004", r"^labels$", given, _with(labels=lambda inputs: inputs["input_ids"].clone()), **rest
    )


FAULTS: dict[str, Fault] = {
    "mask-of-another-length": _unreadable(
        _MASK, _with(attention_mask=_ones(lambda _: 1, lambda inputs: _rows(inputs) + 1))
    ),
    "mask-of-four-axes": _unreadable(
        _MASK, _with(attention_mask=_ones(lambda _: 1, lambda _: 1, _rows, _rows))
    ),
    "mask-of-segments": _unreadable(
        _MASK, _with(attention_mask=lambda inputs: 1 + (torch.arange(_rows(inputs)) > 2).long()[None])
    ),
    "no-real-row": _unreadable(_MASK, _with(attention_mask=lambda inputs: 0 * inputs["attention_mask"])),
    "one-placeholder-less": _unreadable(_FEATURES, _one_placeholder_less),
    "placeholders-without-pixels": _unreadable(_FEATURES, _without("pixel_values", "image_grid_thw")),
    "ids-of-floats": _unreadable(r"^input_ids$", _with(input_ids=lambda inputs: inputs["input_ids"].float())),
    "pixels-in-a-list": _unreadable(
        r"^pixel_values$", _with(pixel_values=lambda inputs: inputs["pixel_values"].tolist())
    ),
    "images-that-do-not-add-up": _unreadable(
        r"^images(\[0\])?$", call="plan", schedule={**_ONE_DECISION, "scope": "image"}
    ),
    "training-mode": _unreadable(r"^model\.training$", training=True),
    "labels-under-delete": _labels("delete", schedule={**_ONE_DECISION, "action": "delete"}),
    "labels-under-reroute": _labels("reroute", answered=True),
    "another-class": _undescribed("MistralForCausalLM", another_class),
    "another-text-decoder": _undescribed("LLaVA over Mistral", another_text_decoder, "llava"),
    "sliding-window": _undescribed("LLaVA over Qwen2 that attends a window", sliding_llava, "llava"),
    "sliding-window-of-qwen": _undescribed("Qwen2.5-VL that attends a window", sliding_qwen, "qwen2_5_vl"),
    "static-cache": _mode(
        "static", _cached(lambda config: StaticCache(config=config, max_cache_len=64)), "run"
    ),
    "offloaded-cache": _mode(
        "offloaded", _cached(lambda config: DynamicCache(config=config, offloading=True)), "run"
    ),
    "cache-of-another-run": _mode("filled by another run", _cached(_filled), "run"),
    "quantized-cache": _mode("quantized", _with(cache_implementation=lambda _: "quantized")),
    "static-cache-by-name": _mode("static", _with(cache_implementation=lambda _: "static")),
    "prefill-in-chunks": _mode(
        "chunked prefill", _with(prefill_chunk_size=lambda _: 4), fields=r"^prefill_chunk_size$"
    ),
    "assistant": _mode(
        "assisted", lambda model, inputs: {**inputs, "assistant_model": model}, fields=r"^assistant_model$"
    ),
    "prompt-lookup": _mode(
        "assisted", _with(prompt_lookup_num_tokens=lambda _: 3), fields=r"^prompt_lookup_num_tokens$"
    ),
    "decision-of-linear-attention": Fault(
        "RR-SCORE-006",
        r"^decisions\[0\]\.layer$",
        {"layers": [4], "source": "own"},
        schedule=_decided(4),
        families=("qwen3_5",),
    ),
    "previous-of-linear-attention": Fault(
        "RR-SCORE-006",
        r"^(score\.source|decisions\[0\]\.layer)$",
        {"layers": [3], "source": "previous"},
        schedule=_decided(3, score={"source": "previous"}),
        families=("qwen3_5",),
    ),
}
"""Every fault by its name."""


def refusals(family: str) -> tuple[RefusalCase, ...]:
    """All cases of wrong requests that a family can be asked."""
    return tuple(RefusalCase(family, name) for name, fault in FAULTS.items() if fault.accepts(family))
