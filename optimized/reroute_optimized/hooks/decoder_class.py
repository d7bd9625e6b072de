"""Makes the subclass that a routed text decoder becomes: its ``forward`` is the router's.

The subclass adds nothing to the instance. ``router_of`` finds the router of a decoder by its class.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .router import Router


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
