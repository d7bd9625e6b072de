"""Runs every forward of a routed text decoder, as a prefill or as a later turn, and remembers what was decided.

It refuses what routing does not define, chooses the engine and fills the cache. A forward that fails leaves the
caller's cache as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from reroute_reference.families import Family, features_per_image
from reroute_spec import RerouteError, Schedule
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..fused.blocks import check_no_gradient
from ..fused.decode import is_paged, note_padding, run_row
from ..fused.engine import Fused
from ..fused.opened import kept
from ..fused.turn import FusedTurn, PackedRows
from ..model.decoder import Decoder, counted
from ..model.deepstack import DeepStack
from ..nuwa.vision_tower import FirstStage, Shortened
from ..stages.engine import Rows, Turn
from ..stages.later_text import decode
from ..stages.opening import Opening, begin
from ..turn.after_turn import first_state, later_state
from ..turn.cache import RoutedCache, Snapshot, adopt, check_cache, make_cache
from ..turn.layout import Flags, build_layout, flags, read_masks
from ..turn.past import Past
from ..turn.probe import Probe
from ..turn.records import Prefill
from . import refusals
from .generate_call import CLAIM, GENERATION, Generation, Prompt
from .prefix_in_use import PrefixInUse, PrefixRun
from .request import Request, read_request


class Router:
    """The routing of one model: what it is to do, and what its last prefill decided.

    Attributes:
        model: the model with its head.
        family: the description of its family.
        decoder: the text decoder.
        schedule: the schedule that is applied.
        fused: the engine that runs first turns and single rows on packed rows. If it is None, everything runs on
            rectangles.
        last: the last prefill, or later turn with visual rows, that finished; or None.
        probe: what a conformance run replays and observes; None otherwise.
        prefix: the prefix after which prefills start. If it is None, they start at their own first row.
    """

    def __init__(
        self,
        model: nn.Module,
        decoder: Decoder,
        family: Family,
        schedule: Schedule,
        stage: FirstStage | None = None,
        fused: Fused | None = None,
    ) -> None:
        self.model, self.family = model, family
        self.decoder = decoder
        self.schedule = schedule
        self.fused = fused
        self.last: Prefill | None = None
        self.probe: Probe | None = None
        self.prefix: PrefixInUse | None = None
        self._recorded: list[PrefixRun] | None = None
        self._stage = stage
        self._has_placeholders = family.merger is not None
        self._features_per_image = features_per_image(model)
        self._busy = threading.Lock()
        self._claim: object | None = None

    @contextmanager
    def claimed(self, own: object | None = None) -> Iterator[object]:
        """Hold the model for one forward.

        The object that is yielded lets the inner parts of that forward in, and nobody else.

        Args:
            own: the object that an outer part of the same forward was given.

        Raises:
            RerouteError: a forward of this model is running; nothing has been touched then.
        """
        if own is not None and own is self._claim:
            yield own
            return
        if not self._busy.acquire(blocking=False):
            raise RerouteError(
                "model", "a forward of this routed model is running", "run one forward at a time"
            )
        claim = self._claim = object()
        try:
            yield claim
        finally:
            self._claim = None
            self._busy.release()

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
        keywords: Mapping[str, Any],
    ) -> Any:
        """Run a forward for the swapped class.

        Arguments are transformers', plus ``visual_mask`` [B, S] bool and, for ``scope = image``, ``visual_images``,
        which holds per request the rows of its images.
        """
        keywords = dict(keywords)
        generation: Generation | None = keywords.pop(GENERATION, None)
        with self.claimed(keywords.pop(CLAIM, None)):
            refusals.check_mode(self.decoder)
            refusals.check_keywords(self.decoder, keywords)
            filled = check_cache(cache, self.decoder)
            if generation is not None and generation.visual_mask is not None and not filled:
                rows = input_ids if inputs_embeds is None else inputs_embeds
                if rows is not None:
                    visual_mask = generation.mask_for(len(rows), rows.shape[1])
                    keywords["visual_images"] = generation.images_for(len(rows))
            request = read_request(
                self.decoder, input_ids, inputs_embeds, attention_mask, position_ids, visual_mask, keywords
            )
            if filled:
                final, hidden = self._later(cache, request, generation)
            else:
                wanted = cache is not None or (
                    self.decoder.config.use_cache if use_cache is None else use_cache
                )
                final, hidden, cache = self._prefill(cache, wanted, request, generation)
        output = BaseModelOutputWithPast(
            last_hidden_state=final,
            past_key_values=cache,
            hidden_states=None if hidden is None else tuple(hidden),
        )
        as_dict = keywords.get("return_dict", getattr(self.decoder.config, "return_dict", True))
        return output.to_tuple() if as_dict is False else output

    def _later(
        self, cache: RoutedCache, request: Request, generation: Generation | None
    ) -> tuple[Tensor, list[Tensor] | None]:
        """A turn on top of a filled cache, which is left as it was if a block raises."""
        state = cache.routing
        assert state is not None  # check_cache saw it filled
        shape = request.shape
        refusals.check_later_turn(state, *shape, request.attention_mask)
        visual, featured = None, None
        if shape[1] > 1:  # a single row is never routable
            mask = None if request.features is None else request.features[0]
            visual, featured = read_masks(request.visual_mask, mask)
        if self.fused is not None and shape[1] == 1:
            check_no_gradient(self.decoder, request.embeddings)
        state.guard.check()
        state.guard.seen.clear()
        before = Snapshot.of(cache)
        state.open = True
        try:
            if visual is not None and any(map(any, visual)):
                return self._routed_turn(cache, request, visual, featured)
            # generate may count on from the last row, which need not have the largest coordinate
            positions = request.positions if generation is None else None
            hidden = [request.embeddings]
            watched = request.keep_hidden_states or self.probe is not None
            observe = hidden.append if watched else None
            row = None
            if self.fused is not None and shape[1] == 1 and is_paged(cache):
                row = partial(run_row, self.decoder, self.fused, cache)
            final = decode(self.decoder, cache, state, request.embeddings, positions, observe, run_row=row)
        except BaseException:
            before.restore(cache)
            raise
        finally:
            state.open = False
        if self.probe is not None:
            self.probe.residuals = {self.decoder.num_layers: (hidden[-1], None)}
        return final, [*hidden[:-1], final] if request.keep_hidden_states else None

    def _routed_turn(
        self, cache: RoutedCache, request: Request, visual: Flags, featured: Flags | None
    ) -> tuple[Tensor, list[Tensor] | None]:
        past, state, real = Past.of(cache), cache.routing, flags(request.shape, True)
        assert state is not None
        positions = request.positions
        if positions is None:
            steps = counted(None, request.shape[1], request.embeddings.device)
            positions = state.next_positions[:, -1:] + steps
        rows, positions, short = self._rows(request, positions, real, visual, featured)
        turn = self._turn(rows, request, cache, past)
        final = turn.run()
        dropped = None if short is None else short.dropped
        for stage in rows.layout.stages:
            if stage.pads is not None:
                note_padding(cache, range(stage.first, stage.last + 1))
        cache.routing = later_state(
            self.decoder, self.schedule, state, past, turn.done, positions, dropped, request.shape[1]
        )
        self._remember(turn, request, short)
        return final, turn.hidden_states

    def _prefill(
        self, cache: Any, wanted: bool, request: Request, generation: Generation | None
    ) -> tuple[Tensor, list[Tensor] | None, RoutedCache | None]:
        """Routes a batch of prompts. The caller's cache is touched only when everything has succeeded."""
        shape, device = request.shape, request.embeddings.device
        refusals.check_attention_mask(request.attention_mask, *shape)
        if self._has_placeholders and request.visual_mask is None and shape[1] > 1:
            raise RerouteError(
                "visual_mask",
                "is missing where only inputs_embeds are given",
                "give input_ids, or visual_mask [B, S] bool",
            )
        mask = None if request.features is None else request.features[0]
        real, visual, featured = read_masks(request.attention_mask, request.visual_mask, mask)
        real, visual = real or flags(shape, True), visual or flags(shape, False)
        prompt = None if generation is None else generation.prompt
        if generation is not None and not all(row[-1] for row in real):
            raise RerouteError(
                "attention_mask",
                "pads on the right, where generate would go on from a column of padding",
                "pad on the left: padding_side='left'",
            )
        positions = request.positions if prompt is None else prompt.continued(shape[1])
        if positions is None:
            present = None if all(map(all, real)) else torch.tensor(real, device=device)
            positions = counted(present, shape[1], device)
        given = positions
        if self._recorded is not None:
            return self._record(self._recorded, request, given, real, visual, featured), None, None
        rows, positions, short = self._rows(request, given, real, visual, featured, prompt)
        dropped = None if short is None else short.dropped
        opening = None
        if self.prefix is not None:
            opening = self.prefix.opening_of(request, real, given, rows.features)
        filled = make_cache(self.decoder) if wanted else None
        turn = self._turn(rows, request, filled, None, prompt, opening)
        final = turn.run()
        if prompt is not None:
            return final, turn.hidden_states, None
        if self.prefix is not None:
            self.prefix.served += shape[0]
        if generation is not None and not generation.cached and filled is None:
            generation.prompt = Prompt.of(turn.done, given, real)
        if filled is not None:
            filled.routing = first_state(self.decoder, self.schedule, turn.done, positions, dropped, shape[1])
        self._remember(turn, request, short)
        return final, turn.hidden_states, filled if cache is None or filled is None else adopt(cache, filled)

    def _remember(self, turn: Turn, request: Request, short: Shortened | None) -> None:
        self.last = turn.done
        if request.source is not None:
            self.last.source = request.source.without(None if short is None else short.columns)

    @contextmanager
    def recording(self) -> Iterator[list[PrefixRun]]:
        """Take the next prefill for that of a prefix.

        It decides nothing, and what it leaves is put into the list that is yielded.
        """
        self._recorded = []
        try:
            yield self._recorded
        finally:
            self._recorded = None

    def _record(
        self,
        recorded: list[PrefixRun],
        request: Request,
        positions: Tensor,
        real: Flags,
        visual: Flags,
        featured: Flags | None,
    ) -> Tensor:
        """Runs the blocks before the first decision on a prefix; returns its rows there."""
        if request.shape[0] != 1:
            name = "inputs_embeds" if request.ids is None else "input_ids"
            raise RerouteError(
                name, f"hold {request.shape[0]} requests", "give the beginning that they share"
            )
        if not all(map(all, real)):
            raise RerouteError("attention_mask", "hides columns of a prefix", "give a prefix without padding")
        rows, _, _ = self._rows(request, positions, real, visual, featured, routable=False)
        previous = self.schedule.score.source == "previous"
        layers = self.schedule.dense_layers(self.decoder.num_layers)
        opening = begin(self.decoder, layers, rows.hidden_states, rows.rotary, rows.features, previous)
        if self.fused is not None and not self.fused.as_modules and opening.layers:
            opening = kept(opening, self.fused.pool(0, request.embeddings))
        recorded.append(PrefixRun(opening, request, positions, rows.features))
        return opening.hidden_states[None]

    def _rows(
        self,
        request: Request,
        positions: Tensor,
        real: Flags,
        visual: Flags,
        featured: Flags | None,
        prompt: Prompt | None = None,
        routable: bool = True,
    ) -> tuple[Rows, Tensor, Shortened | None]:
        """The rows that the blocks are given, their positions, and what a first stage has left of the batch."""
        embeddings, schedules, short = request.embeddings, None, None
        if self._stage is not None and request.marked:
            short, real, visual = self._stage.leave_out(embeddings, positions, real, visual)
            embeddings, positions = short.embeddings, short.positions
            schedules = [self._stage.schedule_for(self.schedule, count) for count in short.images]
        images = self._features_per_image if request.images is None else request.images
        if prompt is not None:
            visual, images = prompt.routable(real, visual), prompt.images
        if not routable:
            visual, images = [[False] * len(row) for row in visual], None
        build = partial(
            build_layout,
            self.schedule,
            self.decoder.num_layers,
            real,
            visual,
            images,
            embeddings.device,
            schedules,
        )
        rows: Callable[..., Rows] = Rows
        if self.fused is None:
            layout = build()
        else:
            layout, plan = self.fused.layout((real, visual, images, schedules), build, embeddings.device)
            rows = partial(PackedRows, plan=plan)
        features = None
        if featured is not None and request.features is not None:
            features = DeepStack.of(request.features[1], featured, embeddings)
        rotary = self.decoder.position_embeddings(embeddings, positions)
        return rows(layout, embeddings, rotary, features), positions, short

    def _turn(
        self,
        rows: Rows,
        request: Request,
        cache: RoutedCache | None,
        past: Past | None,
        prompt: Prompt | None = None,
        opening: Opening | None = None,
    ) -> Turn:
        options: dict[str, Any] = {
            "past": past,
            "probe": self.probe,
            "tables": None if prompt is None else prompt.tables,
            "keep_hidden_states": request.keep_hidden_states,
            "opening": opening,
        }
        fused = self.fused
        # later turns run on rectangles, and so do modules on what follows a prefix
        if fused is None or past is not None or (fused.as_modules and opening is not None):
            return Turn(self.decoder, self.schedule, rows, cache, **options)
        assert isinstance(rows, PackedRows)  # made above, since there is a fused engine
        check_no_gradient(self.decoder, rows.hidden_states)
        return FusedTurn(self.decoder, self.schedule, rows, cache, fused=fused, **options)
