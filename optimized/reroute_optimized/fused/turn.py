"""Runs the first turn of a batch on packed rows, as the router asks for it.

Where nothing has to be seen on the way, a captured graph may run it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from reroute_spec import Schedule
from torch import Tensor

from ..model.decoder import Decoder
from ..stages.engine import Rows, Turn
from ..stages.opening import Opening
from ..turn.cache import RoutedCache
from ..turn.pages import PagedRows, PagePool
from ..turn.probe import replayed_tables
from ..turn.records import reads_at_once, refuse_nan
from ..turn.upload import uploaded
from .batch import Given, Made, Watch
from .engine import Fused, released_on_failure
from .modules import ModulePrefill
from .plan import PackedPlan
from .prefill import PackedPrefill


@dataclass(frozen=True)
class PackedRows(Rows):
    """The new rows of a turn, and how the fused engine packs them.

    Attributes:
        plan: the packed form of ``layout``.
    """

    plan: PackedPlan = field(kw_only=True)


class FusedTurn(Turn):
    """A first turn on packed rows. A later turn is not for this engine.

    Arguments are those of :class:`reroute_optimized.stages.engine.Turn`, and the fused engine.
    """

    def __init__(
        self,
        decoder: Decoder,
        schedule: Schedule,
        rows: PackedRows,
        cache: Any,
        *,
        fused: Fused,
        **options: Any,
    ) -> None:
        super().__init__(decoder, schedule, rows, cache, **options)
        self._plan, self._fused = rows.plan, fused

    @torch.no_grad()
    def run(self) -> Tensor:
        """As :meth:`Turn.run`, without a gradient: :func:`check_no_gradient` was asked before."""
        fused, plan, hidden = self._fused, self._plan, self._rows.hidden_states
        opening = self._opening if self._opening is not None and self._opening.layers else None
        cache = self._cache
        if cache is None and opening is not None:
            # the prefix is in pages, so the rows after it are too, for as long as the turn lasts
            cache = RoutedCache()
        fused.check()
        held = [] if cache is None or fused.as_modules else fused.open(cache, plan, hidden, opening)
        with released_on_failure(held):
            return self._run(plan, held, opening)

    def _run(self, plan: PackedPlan, held: Sequence[PagedRows], opening: Opening | None) -> Tensor:
        fused, hidden = self._fused, self._rows.hidden_states
        pools = [rows.pool for rows in held]
        tables = [
            uploaded(rows.tables[:, : plan.stage_of(first).width], hidden.device)
            for first, rows in zip(fused.groups, held, strict=False)
        ]
        features = self._rows.features
        given = Given(
            hidden,
            *self._rows.rotary,
            None if features is None else features.places[:, :-1],
            () if features is None else tuple(features.features),
            tuple(tables),
            ()
            if opening is None
            else tuple(x for x in (opening.hidden_states, opening.before) if x is not None),
        )
        made = self._made(plan, pools, given)
        self.done.decided.extend(made.decided)
        return self._finish(made.hidden_states, made.real)

    def _made(self, plan: PackedPlan, pools: Sequence[PagePool], given: Given) -> Made:
        fused, watch = self._fused, self._watch()
        decoder, schedule, layout, groups = self._decoder, self._schedule, self._layout, fused.groups
        prefill: Callable[..., PackedPrefill] = PackedPrefill
        if fused.as_modules:
            prefill = partial(ModulePrefill, cache=self._cache)
        opened = None
        if given.prefix:
            opened = fused.opened_plan(plan, len(given.prefix[0]), given.hidden_states.device)

        def work(tensors: Sequence[Tensor]) -> Made:  # knows nothing of the turn: a graph outlives it
            own = given.like(tensors)
            return prefill(decoder, schedule, layout, plan, groups, pools, own, watch, opened).run()

        if watch is not None:
            return work(given.tensors())
        key = plan, opened, len(given.features), tuple(pools)
        made = fused.graphs.run(key, fused.read(pools), given.tensors(), work, Made.copied)
        for index, layer, flags in made.nan:
            self._nan(index, layer, flags)
        return made

    def _watch(self) -> Watch | None:
        """What has to be seen while blocks run; None where a graph may run them."""
        probe, device = self._probe, self._rows.hidden_states.device
        wanted = probe is not None or self.hidden_states is not None or self._tables is not None
        if not wanted and self._fused.graphs.executor is not None:
            return None
        replay = None if probe is None else probe.replay
        given = self._tables
        if replay is not None:
            given = replayed_tables(self._schedule, self._layout, replay, device)
        return Watch(
            replayed=given,
            blind=self._tables is not None,
            residual=None if probe is None else self._note_residual,
            after_block=None if self.hidden_states is None else self.hidden_states.append,
            nan=self._nan,
        )

    def _note_residual(self, layer: int, hidden: Tensor, real: Tensor | None) -> None:
        assert self._probe is not None
        self._probe.residuals[layer] = hidden, real

    def _nan(self, index: int, layer: int, flags: Tensor) -> None:
        if reads_at_once(flags.device):
            refuse_nan(index, layer, flags)
        else:
            self.done.guard.note(index, layer, flags)
