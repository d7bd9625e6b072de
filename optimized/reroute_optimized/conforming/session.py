"""Runs one operation after another on a routed model and its cache, and reports what the conformance suite may see.

An operation is a prefill, a later turn, a decode step, or a change of the cache: crop, reorder, select or repeat. The
report of a request has its logical length and all keys and values that it has cached. After a prefill or a turn it also
has the trace, the residual streams and the logits, and after a decode step the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from reroute_spec import RerouteError, RoutingTrace
from torch import Tensor

from ..api import Routed
from ..turn.cache import RoutedCache
from ..turn.probe import Probe
from ..turn.records import Prefill
from .ranks import all_heads


class Session:
    """A routed model with the cache of its last prefill, which every operation moves on.

    Args:
        network: the model with its head.
        result: the handle of its routing.
    """

    def __init__(self, network: Any, result: Routed) -> None:
        self._network, self._router, self._shards = network, result._router, result._shards
        self._cache: RoutedCache | None = None

    def step(self, operation: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Do one operation, see :meth:`TorchTarget.session`; a refused one changes nothing.

        Raises:
            RerouteError: it is refused.
        """
        kind = operation["op"]
        if kind == "prefill":
            return self.forward(operation["inputs"], None, Probe())
        cache = self._cache
        if cache is None:
            raise RerouteError("op", f"{kind!r} without a prefill", "begin with a prefill")
        if kind == "turn":
            return self.forward(operation["inputs"], cache, Probe())
        if kind == "decode":
            return self.decode(operation["tokens"])
        if kind == "crop":
            cache.crop(-operation["rows"])
        elif kind == "reorder":
            cache.reorder_cache(torch.tensor(operation["order"]))
        elif kind == "select":
            cache.batch_select_indices(torch.tensor(operation["order"]))
        elif kind == "repeat":
            cache.batch_repeat_interleave(operation["times"])
        else:
            raise RerouteError("op", f"{kind!r} is not known", "see TorchTarget.session")
        return self._held()

    def forward(
        self, inputs: Mapping[str, Any], cache: RoutedCache | None, probe: Probe
    ) -> list[dict[str, Any]]:
        """Run a prefill, or a turn on top of ``cache``; per request trace, residuals, logits, and what is cached."""
        before = self._router.last
        self._router.probe = probe
        try:
            out = self._network(**{"past_key_values": cache, **inputs, "use_cache": True})
        finally:
            self._router.probe = None
        self._cache = out.past_key_values
        held = self._held()
        last = self._router.last
        if last is not None and last is not before:
            delete = self._router.schedule.action == "delete"
            observed = [_observed(last, probe, out.logits, b, delete) for b in range(len(held))]
        else:  # a turn of text
            ((layer, (hidden, _)),) = probe.residuals.items()
            observed = [
                {
                    "trace": RoutingTrace(
                        hidden.shape[1], (), tuple(keys.shape[1] for keys in entry["keys"]), ()
                    ),
                    "residuals": {layer: hidden[b]},
                    "logits": out.logits[b],
                }
                for b, entry in enumerate(held)
            ]
        return [{**seen, **entry} for seen, entry in zip(observed, held, strict=True)]

    def decode(self, tokens: Tensor) -> list[dict[str, Any]]:
        """Feed a token [B] to every request; returns per request logits [1, vocab], and what is cached."""
        out = self._network(input_ids=tokens[:, None], past_key_values=self._cache, use_cache=True)
        return [{"logits": out.logits[b], **entry} for b, entry in enumerate(self._held())]

    def _held(self) -> list[dict[str, Any]]:
        """Per request its logical length and, per block, keys and values [Hkv, rows, head_dim]."""
        cache = self._cache
        assert cache is not None
        assert cache.routing is not None
        decoder, state = self._router.decoder, cache.routing
        held = []
        for request, length in enumerate(state.num_rows.tolist()):
            keys, values = [], []
            for part in state.held:
                for layer in range(part.first, part.last + 1):
                    stored = cache.layers[layer]
                    if not decoder.attends[layer]:
                        keys.append(torch.empty(0, 0, 0))
                        values.append(torch.empty(0, 0, 0))
                        continue
                    valid = part.valid_of(stored.keys.shape[2])
                    own = slice(None) if valid is None else valid[request]
                    keys.append(all_heads(stored.keys[request][:, own], self._shards))
                    values.append(all_heads(stored.values[request][:, own], self._shards))
            held.append({"length": length, "keys": keys, "values": values})
        return held


def _observed(done: Prefill, probe: Probe, logits: Tensor, request: int, delete: bool) -> dict[str, Any]:
    plan, columns = done.layout.plans[request], done.layout.columns[request]
    decided = {stage.first for stage in plan.stages if stage.index} | {plan.num_layers}
    alive = plan.kv_rows[-1]
    return {
        "trace": done.traces()[request],
        "residuals": {
            layer: hidden[request] if real is None else hidden[request][real[request]]
            for layer, (hidden, real) in probe.residuals.items()
            if layer in decided
        },
        "logits": logits[request, logits.shape[1] - alive :] if delete else logits[request, list(columns)],
    }
