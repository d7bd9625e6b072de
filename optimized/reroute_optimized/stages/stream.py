"""Holds the residual stream between stages: all rows in one flat buffer under ``reroute``, the survivors alone under ``delete``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..model.decoder import PositionEmbeddings
from ..model.deepstack import DeepStack
from ..turn.compaction import compaction
from ..turn.layout import Layout
from .score import Universe


@dataclass(frozen=True)
class ActiveRows:
    """The rows that a stage runs, packed to the right, so that the last prompt row is always the last place.

    Attributes:
        columns: [B, R] prompt column of every place, S where a place is padding.
        places: [B, S + 1] place of every column that is active; meaningless for others.
        pads: [B] empty places per request, or None where there are none.
    """

    columns: Tensor
    places: Tensor
    pads: Tensor | None

    @classmethod
    def of(cls, active: Tensor, width: int, pads: Tensor | None) -> ActiveRows:
        """The rows flagged in ``active`` [B, S + 1]."""
        columns, places = compaction(active, width, pads)
        return cls(columns, places, pads)

    @property
    def real(self) -> Tensor | None:
        """[B, R], False for padding; None where there is none."""
        if self.pads is None:
            return None
        return torch.arange(self.columns.shape[1], device=self.columns.device) >= self.pads[:, None]


class Stream(Protocol):
    """The protocol of a residual stream, from which a stage gathers its rows and to which it writes them back."""

    def universe(self) -> Universe:
        """The rows that the next decision scores against."""

    def columns_in_universe(self, columns: Tensor) -> Tensor:
        """Where prompt columns [B, n] stand in the universe; anything for the sentinel."""

    def gather(self, rows: ActiveRows) -> tuple[Tensor, PositionEmbeddings]:
        """Hidden states [B, R, d] of the active rows, padding zero, and their cos and sin."""

    def scatter(self, rows: ActiveRows, hidden_states: Tensor, rotary: PositionEmbeddings) -> None:
        """Take the stage's output back."""

    def bypass(self, layer: int, features: DeepStack) -> None:
        """Give rows that do not run what is added after block ``layer``."""

    def snapshot(self, rows: ActiveRows, hidden_states: Tensor) -> Tensor:
        """All rows there are, a copy, with the active ones as they stand: [B, S, d], or the survivors with NaN
        before them.
        """

    def result(self) -> tuple[Tensor, Tensor | None]:
        """Final states before the norm, and which rows of them are real (None: all)."""


def open_stream(action: str, layout: Layout, hidden_states: Tensor, rotary: PositionEmbeddings) -> Stream:
    """A stream over ``hidden_states`` [B, S, d], which is never written to."""
    return (Bypass if action == "reroute" else Survivors)(layout, hidden_states, rotary)


class Bypass:
    """The stream under ``reroute``: a flat buffer of B * S rows and one spare row, zero, that padding reads and writes.

    The buffer is a copy, because the input belongs to the caller or, as a block's output, to whoever hooked that block.
    """

    def __init__(self, layout: Layout, hidden_states: Tensor, rotary: PositionEmbeddings) -> None:
        self._layout = layout
        self._shape = hidden_states.shape
        self._rows = _with_spare_row(hidden_states)
        self._rotary = rotary
        self._cos, self._sin = _with_spare_row(rotary[0]), _with_spare_row(rotary[1])

    def universe(self) -> Universe:
        """All S columns."""
        layout = self._layout
        return Universe(self._all(), self._rotary, layout.real, layout.queries, layout.asked)

    def columns_in_universe(self, columns: Tensor) -> Tensor:
        """Prompt columns are their own places."""
        return columns.clamp(max=self._shape[1] - 1)

    def gather(self, rows: ActiveRows) -> tuple[Tensor, PositionEmbeddings]:
        """Copies of the active rows."""
        flat, shape = self._flat(rows), (*rows.columns.shape, -1)
        cos, sin = (table.index_select(0, flat).view(shape) for table in (self._cos, self._sin))
        return self._rows.index_select(0, flat).view(shape), (cos, sin)

    def scatter(self, rows: ActiveRows, hidden_states: Tensor, rotary: PositionEmbeddings) -> None:
        """Writes the active rows back in place; deferred rows are never copied."""
        self._rows.index_copy_(0, self._flat(rows), hidden_states.flatten(0, 1))
        if rows.pads is not None:
            self._rows[-1].zero_()  # padding of one request must not reach another, not even as 0 * NaN

    def bypass(self, layer: int, features: DeepStack) -> None:
        """Every visual row gets its features: active ones are overwritten when their stage ends."""
        features.add_in_place(layer, self._rows)

    def snapshot(self, rows: ActiveRows, hidden_states: Tensor) -> Tensor:
        """[B, S, d]."""
        active = hidden_states.flatten(0, 1).to(self._rows.device)
        copied = self._rows.index_copy(0, self._flat(rows), active)
        return copied[:-1].view(self._shape)

    def result(self) -> tuple[Tensor, Tensor | None]:
        """All rows, [B, S, d]."""
        return self._all(), self._layout.real

    def _all(self) -> Tensor:
        return self._rows[:-1].view(self._shape)

    def _flat(self, rows: ActiveRows) -> Tensor:
        batch, columns = self._shape[:2]
        base = torch.arange(batch, device=rows.columns.device)[:, None] * columns
        flat = rows.columns + base
        if rows.pads is not None:
            flat = flat.masked_fill(rows.columns == columns, batch * columns)
        return flat.flatten()


class Survivors:
    """The stream under ``delete``, which holds the last stage's output and nothing else."""

    def __init__(self, layout: Layout, hidden_states: Tensor, rotary: PositionEmbeddings) -> None:
        self._layout = layout
        self._hidden = hidden_states  # [B, W, d]
        self._rotary = rotary
        self._rows: ActiveRows | None = None  # until a stage has run, the prompt's own columns

    def universe(self) -> Universe:
        """The rows alive."""
        layout, rows = self._layout, self._rows
        if rows is None:
            return Universe(self._hidden, self._rotary, layout.real, layout.queries, layout.asked)
        batch, width = rows.columns.shape
        asking = min(layout.queries.shape[1], width)
        queries = torch.arange(width - asking, width, device=rows.columns.device).expand(batch, -1)
        real = rows.real
        asked = real[:, width - asking :] if real is not None and asking > 1 else None
        return Universe(self._hidden, self._rotary, real, queries, asked)

    def columns_in_universe(self, columns: Tensor) -> Tensor:
        """Places in the last stage's output."""
        if self._rows is None:
            return columns.clamp(max=self._hidden.shape[1] - 1)
        return self._rows.places.gather(1, columns)

    def gather(self, rows: ActiveRows) -> tuple[Tensor, PositionEmbeddings]:
        """Copies of the rows that stay, taken from the survivors so far."""
        batch, width = self._hidden.shape[:2]
        base = torch.arange(batch, device=rows.columns.device)[:, None] * width
        flat, shape = (self.columns_in_universe(rows.columns) + base).flatten(), (*rows.columns.shape, -1)
        tables = (table.reshape(batch * width, -1) for table in (self._hidden, *self._rotary))
        hidden, cos, sin = (table.index_select(0, flat).view(shape) for table in tables)
        real = rows.real
        if real is not None:
            hidden = hidden.masked_fill(~real[..., None], 0)
        return hidden, (cos, sin)

    def scatter(self, rows: ActiveRows, hidden_states: Tensor, rotary: PositionEmbeddings) -> None:
        """Keep the last stage's rows as all that is left."""
        self._rows, self._hidden, self._rotary = rows, hidden_states, rotary

    def bypass(self, layer: int, features: DeepStack) -> None:
        """Do nothing, because under ``delete`` no row bypasses a block."""

    def snapshot(self, rows: ActiveRows, hidden_states: Tensor) -> Tensor:
        """[B, R, d]."""
        real = rows.real
        return hidden_states if real is None else hidden_states.masked_fill(~real[..., None], torch.nan)

    def result(self) -> tuple[Tensor, Tensor | None]:
        """The survivors, [B, R, d]."""
        return self._hidden, self._layout.real if self._rows is None else self._rows.real


def _with_spare_row(table: Tensor) -> Tensor:
    """[B, S, x] as [B * S + 1, x], the last row zero."""
    flat = table.reshape(-1, table.shape[-1])
    return torch.cat([flat, flat.new_zeros(1, flat.shape[1])])
