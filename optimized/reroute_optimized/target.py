"""The adapter by which a conformance suite drives this package; duck-typed, so that neither imports the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from reroute_spec import RerouteError, RoutingTrace, Schedule, plan
from reroute_spec.canonical import CanonicalConfig
from torch import Tensor, nn

from . import canonical
from .api import Routed, routed
from .engine import Probe, Replay
from .layout import Layout
from .selection import select_places

Model = nn.Module | tuple[CanonicalConfig, dict[str, Tensor]]
"""A described transformers model, or the canonical decoder as configuration and weights."""


class TorchTarget:
    """Backend ``torch`` behind the target protocol."""

    name = "optimized-torch"
    profiles = frozenset({"core", "stagewise", "batch", "cache", "gqa", "low-precision", "hf"})
    device = "cpu"  # where the suite's models are

    def select(self, scores: Tensor, k: int) -> list[int]:
        """The engine's own selection on ``scores`` [n]: k places, ascending.

        Raises:
            RerouteError: a NaN score, or ``k`` out of range.
        """
        if not 0 <= k <= len(scores):
            raise RerouteError(
                "k", f"{k} of {len(scores)} candidates", f"give an integer from 0 to {len(scores)}"
            )
        if bool(scores.isnan().any()):
            raise RerouteError("scores", "hold a NaN", "a NaN is never ordered; find the block that made it")
        slots = torch.arange(k, device=scores.device)[None]
        places: list[int] = select_places(scores[None], slots)[0].tolist()
        return places

    def plan(
        self, schedule: Mapping[str, Any], num_layers: int, visual: Sequence[bool], images: Sequence[int]
    ) -> tuple[int, ...]:
        """Rows that every block runs for a request of this layout, from the schedule as plain data.

        Raises:
            RerouteError: a schedule or layout that is refused.
        """
        return plan(Schedule.from_dict(schedule), num_layers, visual, images).kv_rows

    @torch.no_grad()
    def run(
        self,
        model: Model,
        inputs: Mapping[str, Tensor],
        schedule: Schedule,
        *,
        decisions: Replay | None = None,
        continuation: Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """One prefill and, with ``continuation`` [B, T], T teacher-forced decode steps.

        Args:
            model: see ``Model``.
            inputs: what the model's processor returns; for the canonical decoder ``inputs_embeds`` [B, S, d],
                ``visual_mask`` [B, S] bool, ``attention_mask`` [B, S].
            schedule: to run.
            decisions: per request, per decision, ascending ordinals to replay.
            continuation: token ids.

        Returns:
            Per request: ``trace``; ``residuals`` {layer: [rows, d]} at the input of the request's decision blocks and,
            under Λ, after the last block; ``logits`` [rows, vocab]; ``keys`` and ``values``, per block [Hkv, rows,
            head_dim] after prefill; ``decode_logits`` [T, vocab] with ``continuation``.
        """
        network: Any = _network(model)
        with routed(network, schedule, backend="torch") as result:
            probe = result._router.probe = Probe(decisions)
            out = network(**inputs, use_cache=True)
            cache = out.past_key_values
            stored = [(layer.keys, layer.values) for layer in cache.layers]
            steps = []
            for token in continuation.unbind(1) if continuation is not None else ():
                step = network(input_ids=token[:, None], past_key_values=cache, use_cache=True)
                steps.append(step.logits[:, -1])
        decoded = torch.stack(steps, dim=1) if steps else None
        return [_answer(result, probe, out.logits, stored, decoded, b) for b in range(len(out.logits))]

    @torch.no_grad()
    def generate(
        self, model: nn.Module, inputs: Mapping[str, Tensor], schedule: Schedule, max_new_tokens: int
    ) -> Tensor:
        """Greedy, exactly ``max_new_tokens`` per request, EOS ignored: prompt and new tokens, [B, S + new]."""
        network: Any = model
        config, ends = network.generation_config, network.generation_config.eos_token_id
        config.eos_token_id = None
        try:
            with routed(network, schedule, backend="torch"):
                tokens: Tensor = network.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        finally:
            config.eos_token_id = ends
        return tokens


def torch_target() -> TorchTarget:
    """The target of backend ``torch``."""
    return TorchTarget()


def triton_target() -> TorchTarget:
    """The target of backend ``triton``.

    Raises:
        RerouteError: always, until it is built.
    """
    raise RerouteError("backend", "'triton' is not built yet", "use 'torch'")


def _network(model: Model) -> nn.Module:
    return model if isinstance(model, nn.Module) else canonical.build(*model)


def _answer(
    result: Routed,
    probe: Probe,
    logits: Tensor,
    stored: Sequence[tuple[Tensor, Tensor]],
    decoded: Tensor | None,
    request: int,
) -> dict[str, Any]:
    layout = _layout(result)
    plan, trace = layout.plans[request], result.traces[request]
    decided = {stage.first for stage in plan.stages if stage.index} | {plan.num_layers}
    answer: dict[str, Any] = {
        "trace": trace,
        "residuals": {
            layer: hidden[request] if real is None else hidden[request][real[request]]
            for layer, (hidden, real) in probe.residuals.items()
            if layer in decided
        },
        "logits": _real_logits(layout, result, logits, request),
        "keys": _real_rows(trace, [keys for keys, _ in stored], request),
        "values": _real_rows(trace, [values for _, values in stored], request),
    }
    if decoded is not None:
        answer["decode_logits"] = decoded[request]
    return answer


def _layout(result: Routed) -> Layout:
    return result._last("traces").layout


def _real_logits(layout: Layout, result: Routed, logits: Tensor, request: int) -> Tensor:
    if result._router.schedule.action == "delete":
        return logits[request, logits.shape[1] - layout.plans[request].kv_rows[-1] :]
    return logits[request, list(layout.columns[request])]


def _real_rows(trace: RoutingTrace, tables: Sequence[Tensor], request: int) -> list[Tensor]:
    """Per block [Hkv, rows, head_dim]: caches are padded on the left."""
    return [
        table[request, :, table.shape[2] - rows :] for table, rows in zip(tables, trace.kv_rows, strict=True)
    ]
