"""Defines what a prefill on packed rows takes (``Given``), what it makes (``Made``) and what may be seen on the way (``Watch``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..turn.records import Decided


@dataclass(frozen=True)
class Given:
    """The tensors that differ between prompts of one layout.

    Attributes:
        hidden_states: [B, S, d] embeddings.
        cos, sin: [B, S, W] of all columns.
        places: [B, S] for every column the row of ``features`` that belongs to it, one past the last where it has none;
            None without features.
        features: [n, d] for each of the first blocks, added to those rows after it.
        tables: [B, width] int32 for each group of blocks with pages of its own, the pages of every request; empty where
            nothing is kept.
        prefix: [P, d] rows that every request begins with, as they are after the blocks before the first decision.
            Where scores are of the block before, a second tensor holds them as they are before the last of those
            blocks. Empty where no prefix is reused.
    """

    hidden_states: Tensor
    cos: Tensor
    sin: Tensor
    places: Tensor | None
    features: tuple[Tensor, ...]
    tables: tuple[Tensor, ...]
    prefix: tuple[Tensor, ...] = ()

    def tensors(self) -> list[Tensor]:
        """All of them, in order."""
        many = *self.features, *self.tables, *self.prefix
        return [
            self.hidden_states,
            self.cos,
            self.sin,
            *(() if self.places is None else (self.places,)),
            *many,
        ]

    def like(self, tensors: Sequence[Tensor]) -> Given:
        """The same with other tensors, in the order of :meth:`tensors`."""
        rest = iter(tensors)
        hidden, cos, sin = next(rest), next(rest), next(rest)
        places = None if self.places is None else next(rest)
        many = (tuple(next(rest) for _ in own) for own in (self.features, self.tables, self.prefix))
        return Given(hidden, cos, sin, places, *many)


@dataclass
class Made:
    """The results of a prefill.

    Attributes:
        hidden_states: [B, W, d] of the rows alive, before the final norm.
        real: [B, W] which of them are rows; None where all are.
        decided: the decisions, in order.
        nan: per decision its index, its block, and [B] which requests have scores that hold a NaN.
    """

    hidden_states: Tensor
    real: Tensor | None
    decided: list[Decided]
    nan: list[tuple[int, int, Tensor]]

    def copied(self) -> Made:
        """The same in tensors that no replay of a graph overwrites."""
        return Made(
            self.hidden_states.clone(),
            None if self.real is None else self.real.clone(),
            [decided.copied() for decided in self.decided],
            [(index, layer, flags.clone()) for index, layer, flags in self.nan],
        )


@dataclass(frozen=True)
class Watch:
    """The selections that a prefill replays and the functions that observe it; in ordinary use there are none.

    Attributes:
        replayed: [B, K] selections to run instead of those that the scores give, one per decision.
        blind: whether nothing is scored where selections are replayed.
        residual: called at every decision with its block, the stream [B, W, d] at the block's input, and which of it
            are rows.
        after_block: called with the output [B, W, d] of every block.
        nan: called with every decision's index, block and NaN flags, before the block runs.
    """

    replayed: Sequence[Tensor] | None = None
    blind: bool = False
    residual: Callable[[int, Tensor, Tensor | None], None] | None = None
    after_block: Callable[[Tensor], None] | None = None
    nan: Callable[[int, int, Tensor], None] | None = None
