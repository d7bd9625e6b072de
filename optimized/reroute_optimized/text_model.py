"""The forward of a routed text decoder: tells a prefill from a later turn, refuses, runs, remembers."""

from __future__ import annotations

import threading
from typing import Any

import torch
from reroute_reference.families import Family, features_per_image
from reroute_spec import RerouteError, Schedule
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from . import checks
from .cache import RoutedCache, RoutingState, adopt, check_cache
from .decoder import Decoder
from .engine import Probe, prefill
from .later import decode
from .layout import Layout, build_layout, read_masks
from .records import Prefill


class Router:
    """Everything a routed model remembers: what to do, and what the last prefill decided.

    Attributes:
        decoder: the text decoder.
        schedule: what is decided.
        last: the last prefill that finished, or None.
        probe: for a conformance run; None otherwise.
        generating: whether the forward is a step of ``generate``, which reads the last column.
    """

    def __init__(self, model: nn.Module, decoder: Decoder, family: Family, schedule: Schedule) -> None:
        self.decoder = decoder
        self.schedule = schedule
        self.last: Prefill | None = None
        self.probe: Probe | None = None
        self.generating = False
        self._has_placeholders = family.merger is not None
        self._features_per_image = features_per_image(model)
        self._busy = threading.Lock()

    def hold(self) -> threading.Lock:
        """The lock of a forward, taken.

        Raises:
            RerouteError: a forward of this model is running.
        """
        if not self._busy.acquire(blocking=False):
            raise RerouteError(
                "model", "a forward of this routed model is running", "run one forward at a time"
            )
        return self._busy

    def check_module(self, module: nn.Module) -> None:
        """Refuse a copy of the routed module: it shares this router, which would run the original's weights.

        Raises:
            RerouteError: naming the model.
        """
        if module is not self.decoder.module:
            raise RerouteError(
                "model", "is a copy of a routed model", "remove routing, copy, then apply to the copy"
            )

    def forward(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Any,
        inputs_embeds: Tensor | None,
        use_cache: bool | None,
        visual_mask: Tensor | None,
        keywords: dict[str, Any],
    ) -> Any:
        """What the swapped class calls; arguments as transformers', plus ``visual_mask`` [B, S] bool."""
        lock = self.hold()
        try:
            checks.check_mode(self.decoder)
            checks.check_keywords(self.decoder, keywords)
            filled = check_cache(cache, self.decoder.num_layers)
            embeddings = self._embeddings(input_ids, inputs_embeds)
            batch, columns = embeddings.shape[:2]
            checks.check_position_ids(position_ids, batch, columns)
            checks.check_visual_mask(visual_mask, batch, columns)
            if filled:
                final = self._later(cache, embeddings, attention_mask, position_ids, visual_mask)
            else:
                wanted = cache is not None or (
                    self.decoder.config.use_cache if use_cache is None else use_cache
                )
                final, cache = self._prefill(
                    cache, wanted, embeddings, attention_mask, position_ids, visual_mask
                )
        finally:
            lock.release()
        output = BaseModelOutputWithPast(last_hidden_state=final, past_key_values=cache)
        as_dict = keywords.get("return_dict", getattr(self.decoder.config, "return_dict", True))
        return output.to_tuple() if as_dict is False else output

    def _embeddings(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise RerouteError(
                "inputs_embeds", "exactly one of input_ids and inputs_embeds is needed", "give one of them"
            )
        module: Any = self.decoder.module
        embeddings: Tensor = (
            module.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        )
        if embeddings.ndim != 3 or 0 in embeddings.shape:
            name = "input_ids" if inputs_embeds is None else "inputs_embeds"
            problem = f"make embeddings of shape {list(embeddings.shape)}"
            raise RerouteError(name, problem, "give ids [B, S] or embeddings [B, S, d], none of them empty")
        return embeddings

    def _later(
        self,
        cache: RoutedCache,
        embeddings: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        visual_mask: Tensor | None,
    ) -> Tensor:
        state = cache.routing
        assert state is not None  # check_cache saw it filled
        batch, columns = embeddings.shape[:2]
        checks.check_later_turn(state.num_rows, batch, columns, attention_mask, visual_mask)
        return decode(self.decoder, cache, state, embeddings, position_ids)

    def _prefill(
        self,
        cache: Any,
        wanted: bool,
        embeddings: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        visual_mask: Tensor | None,
    ) -> tuple[Tensor, RoutedCache | None]:
        """Routes a batch of prompts. The caller's cache is touched only when everything has succeeded."""
        batch, columns = embeddings.shape[:2]
        checks.check_attention_mask(attention_mask, batch, columns)
        if self._has_placeholders and visual_mask is None and columns > 1:
            raise RerouteError(
                "visual_mask",
                "is missing where only inputs_embeds are given",
                "give input_ids, or visual_mask [B, S] bool",
            )
        real, visual = read_masks((batch, columns), attention_mask, visual_mask)
        if self.generating and not all(row[-1] for row in real):
            raise RerouteError(
                "attention_mask",
                "pads on the right, where generate would go on from a column of padding",
                "pad on the left: padding_side='left'",
            )
        layout = build_layout(
            self.schedule, self.decoder.num_layers, real, visual, self._features_per_image, embeddings.device
        )
        positions = _positions(layout, embeddings.device) if position_ids is None else position_ids
        rotary = self.decoder.position_embeddings(embeddings, positions)
        filled = RoutedCache() if wanted else None
        final, done = prefill(self.decoder, self.schedule, layout, embeddings, rotary, filled, self.probe)
        if filled is not None:
            filled.routing = _routing_state(layout, done, positions.expand(batch, -1))
        self.last = done
        return final, filled if cache is None or filled is None else adopt(cache, filled)


def _positions(layout: Layout, device: torch.device) -> Tensor:
    """[B or 1, S] counts of real rows; padding is never a row, whatever the unrouted model counts."""
    if layout.real is None:
        return torch.arange(layout.num_columns, device=device)[None]
    return (layout.real.long().cumsum(1) - 1).clamp(min=0)


def _routing_state(layout: Layout, done: Prefill, positions: Tensor) -> RoutingState:
    if layout.real is not None:
        positions = positions.masked_fill(~layout.real, -1)
    return RoutingState(
        columns=layout.num_columns,
        groups=[(stage.first, stage.last, stage.pads) for stage in layout.stages],
        num_rows=torch.tensor([plan.num_rows for plan in layout.plans], device=positions.device),
        next_positions=positions.amax(1, keepdim=True) + 1,
        guard=done.guard,
    )


def routed_class(base: type[nn.Module], router: Router) -> type[nn.Module]:
    """A subclass of a text decoder's class whose forward is the router's; it adds nothing to the instance."""

    def forward(
        self: nn.Module,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        *,
        visual_mask: Tensor | None = None,
        **keywords: Any,
    ) -> Any:
        router.check_module(self)
        return router.forward(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            visual_mask,
            keywords,
        )

    namespace = {
        "forward": forward,
        "_reroute": router,
        "__module__": base.__module__,
        "__doc__": base.__doc__,
    }
    return type(f"Routed{base.__name__}", (base,), namespace)


def router_of(decoder: nn.Module) -> Router | None:
    """The router of a text decoder, or None where it is not routed."""
    router = getattr(type(decoder), "_reroute", None)
    return router if isinstance(router, Router) else None
