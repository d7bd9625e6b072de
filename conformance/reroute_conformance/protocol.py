"""What the suite asks of an implementation. A target is any object with these members; it need not import this module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from reroute_spec import Schedule
from reroute_spec.canonical import CanonicalConfig
from torch import Tensor, nn

PROFILES = ("core", "stagewise", "gqa", "batch", "cache", "hf")
"""What can be exercised today, in the order of the report."""

Model: TypeAlias = nn.Module | tuple[CanonicalConfig, dict[str, Tensor]]
"""A transformers model, or a canonical decoder as configuration and weights."""


class Target(Protocol):
    """An implementation under test.

    Attributes:
        name: shown in the report.
        profiles: the part of :data:`PROFILES` it claims; a check of another profile is not run.
    """

    name: str
    profiles: frozenset[str]

    def select(self, scores: Tensor, k: int) -> Sequence[int]:
        """Positions of the ``k`` selected of ``scores`` [n], ascending. A NaN score raises."""
        ...

    def plan(
        self, schedule: Mapping[str, Any], num_layers: int, visual: Sequence[bool], images: Sequence[int]
    ) -> Sequence[int]:
        """Rows that every block runs for a request, from the schedule as plain data (``schemas/schedule.json``).

        Args:
            schedule: right or wrong. A wrong one raises an error with the attributes ``field`` and ``remedy``.
            num_layers: blocks of the decoder.
            visual: a flag per real prompt row.
            images: feature count of every image, adding up to the flagged rows.
        """
        ...

    def run(
        self,
        model: Model,
        inputs: Mapping[str, Any],
        schedule: Schedule,
        *,
        decisions: Sequence[Sequence[Sequence[int]]] | None = None,
        continuation: Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """Prefill of a batch, then ``continuation`` [B, T] token by token. NaN in the inputs raises.

        Args:
            model: see :data:`Model`.
            inputs: what a processor returns; for a canonical decoder ``inputs_embeds`` [B, S, d], ``visual_mask``
                [B, S] and ``attention_mask`` [B, S].
            schedule: what to decide where.
            decisions: selections to run instead of the scores' own (profile ``stagewise``).
            continuation: tokens to feed after the prefill.

        Returns:
            Per request a dict with

            - ``trace``: a RoutingTrace;
            - ``residuals``: {layer: [rows, d]} at every decision's input, and at key L after the last block, before the
              final norm; real rows in prompt order, under ``delete`` those alive;
            - ``logits``: [rows, V], all real rows, under ``delete`` the survivors;
            - ``keys``, ``values``: per block [K, rows, h] as cached after the prefill;
            - ``decode_logits``: [T, V].
        """
        ...

    def generate(
        self, model: nn.Module, inputs: Mapping[str, Any], schedule: Schedule, max_new_tokens: int
    ) -> Tensor:
        """Greedy decoding, exactly ``max_new_tokens``; prompt and new tokens [B, S + new]."""
        ...
