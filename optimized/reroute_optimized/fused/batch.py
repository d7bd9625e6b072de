"""What a prefill on packed rows is given, what it makes, and what may be seen of it on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..turn.records import Decided


@dataclass(frozen=True)
class Given:
    """What differs between prompts of one layout.

    Attributes:
        hidden_states: [B, S, d] embeddings.
        cos, sin: [B, S, W].
        places: [B, S] row of ``features`` of every column, one past the last where it has none; None without features.
        features: [n, d] for each of the first blocks, added to those rows after it.
        tables: per group of blocks with pages of their own, pages of every request [B, width] int32; empty where nothing is kept.
        prefix: [P, d] rows that every request begins with, after the blocks before the first decision and, where scores are of
            the block before, before the last of them; empty where no prefix is reused.
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
    """What a prefill makes.

    Attributes:
        hidden_states: [B, W, d] of the rows alive, before the final norm.
        real: [B, W] which of them are rows; None: all.
        decided: in order.
        nan: [B] per decision, requests whose scores hold a NaN.
    """

    hidden_states: Tensor
    real: Tensor | None
    decided: list[Decided]
    nan: list[tuple[int, int, Tensor]]

    def copied(self) -> Made:
        """In tensors that no replay overwrites."""
        return Made(
            self.hidden_states.clone(),
            None if self.real is None else self.real.clone(),
            [decided.copied() for decided in self.decided],
            [(index, layer, flags.clone()) for index, layer, flags in self.nan],
        )


@dataclass(frozen=True)
class Watch:
    """What somebody wants to see on the way; absent in ordinary use.

    Attributes:
        replayed: [B, K] selections to run, one per decision; with ``blind``, nothing is scored.
        blind: whether nothing is scored.
        residual: called with the block that decides and the stream [B, W, d] at its input.
        after_block: called with what every block leaves, [B, W, d].
        nan: called with every decision's NaN flags, before its block runs.
    """

    replayed: Sequence[Tensor] | None = None
    blind: bool = False
    residual: Callable[[int, Tensor, Tensor | None], None] | None = None
    after_block: Callable[[Tensor], None] | None = None
    nan: Callable[[int, int, Tensor], None] | None = None
