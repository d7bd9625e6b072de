"""Runs the beginning of many prompts once, and lets prefills start after it inside a ``with`` block.

``make_prefix`` runs the blocks before the first decision, which every row runs, and returns a ``Prefix``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from reroute_spec import PrefixCost, RerouteError, prefix_cost, shape_from_config
from torch import Tensor

from ..hooks.decoder_class import router_of
from ..hooks.request import Request
from ..hooks.router import Router
from ..model.deepstack import DeepStack
from ..stages.opening import Opening
from ..turn.layout import Flags
from .encoded import Encoded
from .recorded import Recorded


class Prefix:
    """The beginning that prompts share, computed once: system text and images, or any other first rows.

    Inside ``with prefix:`` every prefill of its model starts after the prefix, in ``generate`` and in plain calls, for
    a batch or a single prompt, padded or not. Decisions, outputs and caches are those of the prompt by itself, up to
    rounding. A prompt that begins with other ids, pixels, embeddings or positions is found by comparison and refused.
    Turns on a filled cache go on as always. Outside the ``with`` block nothing is shared.

    A prefix keeps the keys, values and states of the blocks before the first decision, the hidden states of its rows
    after those blocks, the merged embeddings, and the pixels and features of its images. Its use adds nothing to that.
    It trusts that the weights are still those that it was made with, so make it anew after you load, train, merge or
    switch any of them. No gradient passes through it.

    Attributes:
        num_rows: rows that it holds.
        served: prompts that have started after it so far.
    """

    def __init__(self, router: Router, recorded: Recorded, encoded: Encoded | None) -> None:
        config: Any = router.model.config
        self._router, self._recorded, self._encoded = router, recorded, encoded
        self._pixels = {int(getattr(config, m.placeholder)): m.pixels for m in router.family.media}
        self._in_use = ExitStack()
        self.num_rows = len(recorded.opening.hidden_states)
        self.served = 0

    @property
    def saved(self) -> PrefixCost:
        """Rows and FLOPs of the decoder's blocks that each prompt saves, by the cost model (``reroute_spec.prefix_cost``).

        Where the first decision is at block 0 there are none: what is saved then is the vision tower, which does not run
        again for the prefix's images and is not counted.
        """
        shape = shape_from_config(self._router.decoder.config.to_dict())
        size = self._recorded.embeddings.element_size()
        return prefix_cost(self._router.schedule, shape, self.num_rows, size)

    def __enter__(self) -> Prefix:
        _check_free(self._router)
        self._router.prefix = self
        self._in_use.callback(setattr, self._router, "prefix", None)
        if self._encoded is not None:
            self._in_use.enter_context(self._encoded.reused())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._in_use.close()

    def opening_of(
        self, request: Request, real: Flags, positions: Tensor, features: DeepStack | None
    ) -> Opening:
        """The opening from which a batch starts, once its prompts have been compared with the prefix.

        Arguments and refusals are those of :meth:`Recorded.check`. Hidden states of all blocks and gradients are
        refused too.
        """
        if request.keep_hidden_states:
            raise RerouteError(
                "output_hidden_states",
                "blocks before the first decision do not run the prefix's rows again",
                "leave it False, or leave the prefix's with block",
            )
        if torch.is_grad_enabled() and request.embeddings.requires_grad:
            raise RerouteError(
                "prefix",
                "has no gradient, and this forward asks for one",
                "call under torch.no_grad(), or leave the prefix's with block",
            )
        self._recorded.check(request, real, positions, features, self._pixels)
        return self._recorded.opening


def make_prefix(router: Router, inputs: Mapping[str, Any]) -> Prefix:
    """Run the blocks before the first decision on ``inputs``; see :meth:`Routed.prefix`."""
    _check_free(router)
    if not isinstance(inputs, Mapping):
        raise RerouteError("inputs", f"are a {type(inputs).__name__}", "give what the processor returns")
    for name in ("past_key_values", "labels"):
        if inputs.get(name) is not None:
            raise RerouteError(name, "is given for a prefix, the beginning of a prompt", "leave it out")
    ids = inputs.get("input_ids")
    if ids is None and inputs.get("inputs_embeds") is None:
        raise RerouteError(
            "inputs", "hold neither input_ids nor inputs_embeds", "give what the processor returns"
        )
    if isinstance(ids, Tensor) and ids.ndim != 2:
        raise RerouteError("input_ids", f"have the shape {list(ids.shape)}", "give [1, P]")
    model, family = router.model, router.family
    encoded = None if family.merger is None else Encoded(model, family)
    given = {**inputs, "use_cache": False, "logits_to_keep": 1, "output_hidden_states": False}
    with ExitStack() as around:
        if encoded is not None:
            around.enter_context(encoded.recording())
        runs = around.enter_context(router.recording())
        model(**given)
    own = Recorded.of(runs[0])
    if own.embeddings.isnan().any():
        raise RerouteError(
            "inputs", "make NaN embeddings", "a NaN is never ordered; look at pixels and weights"
        )
    return Prefix(router, own, encoded)


def _check_free(router: Router) -> None:
    """Refuse to make or use a prefix where the routing was removed, or where another prefix is in use."""
    if router_of(router.decoder.module) is not router:
        remedy = "make it while the model is routed, and use it until the routing is removed"
        raise RerouteError("prefix", "its routing has been removed", remedy)
    if router.prefix is not None:
        raise RerouteError("prefix", "a prefix is in use", "leave its with block first")
