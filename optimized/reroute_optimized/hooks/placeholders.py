"""Reads from a prompt's placeholders which columns are visual, of which image they are, and at what positions a later turn goes on.

This can only be read before the features of images are merged into the embeddings. So the module that merges them (the
merger) becomes a subclass of its own class, which hands what was read down to the text decoder as keyword arguments. It
also hides from each request the state that an earlier one left on the merger.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from reroute_reference.families import Family, Medium, placeholder_mask
from reroute_spec import RerouteError, Schedule
from torch import Tensor, nn

from ..turn.cache import RoutedCache
from ..turn.source import Source, sizes_of
from .generate_call import CLAIM, GENERATION
from .refusals import check_attention_mask, check_prompt, check_requests
from .router import Router
from .swapped import Swapped


class Placeholders:
    """The reader of a family's prompts, which sees them before images are merged.

    Args:
        model: the model with its head.
        family: the description of its family, which names a merger.
        schedule: the schedule that is applied.
        router: the router of the model.
        first_stage: whether the vision tower marks rows to leave out.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        schedule: Schedule,
        router: Router,
        first_stage: bool = False,
    ) -> None:
        assert family.merger is not None
        self._first_stage, self._router = first_stage, router
        self._model, self._family, self._schedule = model, family, schedule
        self._merger: Any = model.get_submodule(family.merger)

    def register(self) -> list[Swapped]:
        """Give the merger its subclass; ``remove`` of what is returned gives its own class back."""
        return [Swapped(self._merger, _merging_class(type(self._merger), self))]

    @contextmanager
    def alone(self) -> Iterator[object]:
        """Hold the model for one forward, which sees nothing of an earlier request and leaves nothing for a later one.

        Yields:
            The object that lets the inner parts of this forward in.

        Raises:
            RerouteError: a forward of this model is running; nothing has been touched then.
        """
        with self._router.claimed() as claim:
            carried = {name: getattr(self._merger, name) for name in self._family.carried}
            try:
                for name in carried:
                    setattr(self._merger, name, None)
                yield claim
            finally:
                for name, value in carried.items():
                    setattr(self._merger, name, value)

    def merge(
        self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """The merger's ``forward`` of one request.

        Raises:
            RerouteError: a prompt that cannot be read, a forward that is running, a copy of the routed module.
        """
        if module is not self._merger:
            raise RerouteError(
                "model", "is a copy of a routed model", "remove routing, copy, then apply to the copy"
            )
        with self.alone() as claim:
            given = arguments(module, args, kwargs)
            return forward(module, **{**given, **self._read(given), CLAIM: claim})

    def _read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the text decoder must be told."""
        input_ids = given.get("input_ids")
        cache: Any = given.get("past_key_values")
        continues = isinstance(cache, RoutedCache) and cache.routing is not None
        check_companions(self._family, given, given.get("position_ids") is None)
        single = isinstance(input_ids, Tensor) and input_ids.shape[-1] == 1
        if input_ids is not None and not single:
            check_prompt(self._model, self._family, input_ids, given)
            if not continues:
                check_attention_mask(given.get("attention_mask"), *input_ids.shape)
        added: dict[str, Any] = {} if input_ids is None else {"prompt_ids": input_ids}
        if self._family.carried and isinstance(input_ids, Tensor):
            added["input_ids"] = input_ids.long()  # transformers counts three coordinates in no other type
        if isinstance(input_ids, Tensor) and not single:
            step = given.get(GENERATION)
            sizes = sizes_of(self._family, given, {} if step is None else step.sizes)
            added["prompt_source"] = Source(input_ids, sizes)
        # a single row is never routable; a decode step needs no mask
        if given.get("visual_mask") is None and input_ids is not None and not single:
            added["visual_mask"] = placeholder_mask(self._model, input_ids)
            pixels = [medium.pixels for medium in self._family.media]
            if self._first_stage and any(given.get(n) is not None for n in (*pixels, "mm_encoder_outputs")):
                added["first_stage"] = True
            if self._schedule.scope == "image" and given.get("visual_images") is None:
                images, step = self._images(input_ids, given), given.get(GENERATION)
                if images is None and step is not None:
                    images = step.images_for(len(input_ids))
                if images is not None:
                    added["visual_images"] = images
        moves = bool(self._family.carried) and given.get("position_ids") is None
        if moves and continues and not (single and given.get(GENERATION) is not None):
            added["position_ids"] = self._positions(cache, given)
        return added

    def images_to_generate(self, input_ids: Any, given: Mapping[str, Any]) -> list[list[int]] | None:
        """Per request the rows of its images, read before ``generate`` encodes them and lets their sizes go."""
        cache = given.get("past_key_values")
        later = isinstance(cache, RoutedCache) and cache.routing is not None
        if self._schedule.scope != "image" or later or not isinstance(input_ids, Tensor):
            return None
        return self._images(input_ids, given)

    def positions_to_generate(
        self, prepare: Callable[..., Any], inputs: Tensor, given: Mapping[str, Any]
    ) -> Any:
        """Positions of the new columns of one ``generate``, whatever earlier requests left on the merger.

        Args:
            prepare: how transformers counts them in a prompt.
            inputs: ids or embeddings, of the new columns or of all columns so far.
            given: the other inputs of the model.
        """
        ids, cache = given.get("input_ids"), given.get("past_key_values")
        if not self._family.carried:
            return prepare(inputs, given)
        with self.alone():
            if not isinstance(cache, RoutedCache) or cache.routing is None:
                return prepare(inputs if inputs.is_floating_point() else inputs.long(), given)
            rows = ids if isinstance(ids, Tensor) and ids.shape[1] > 0 else inputs
            mask = given.get("attention_mask")
            if (
                rows.ndim == 3 or mask is None or mask.shape[1] == rows.shape[1]
            ):  # transformers cuts them then
                past = cache.get_seq_length()
                rows = rows[:, past:] if rows.shape[1] > past else rows
            types = given.get("mm_token_type_ids")
            new = {
                **given,
                "input_ids": None if rows.ndim == 3 else rows,
                "inputs_embeds": rows if rows.ndim == 3 else None,
                "mm_token_type_ids": None if types is None else types[:, -rows.shape[1] :],
            }
            return self._positions(cache, new)

    def _positions(self, cache: RoutedCache, given: Mapping[str, Any]) -> Tensor:
        """[3, B, T] where a later turn goes on: after the largest position so far, new images as the model counts them."""
        assert cache.routing is not None
        rows: Tensor = given["input_ids"] if given.get("inputs_embeds") is None else given["inputs_embeds"]
        held = len(cache.routing.num_rows)
        if held % len(rows):  # beams are repeated after transformers has counted
            check_requests(cache.routing, len(rows))
        after = cache.routing.next_positions[:: held // len(rows), -1:]
        names = inspect.signature(self._merger.compute_3d_position_ids).parameters
        known = {name: given.get(name) for name in names}
        # the new rows by themselves, as if they were a prompt
        positions = self._merger.compute_3d_position_ids(
            **{**known, "past_key_values": None, "attention_mask": None, "inputs_embeds": rows}
        )
        for name in self._family.carried:
            setattr(self._merger, name, None)
        if positions is None:
            positions = torch.arange(rows.shape[1], device=rows.device).expand(3, len(rows), -1)
        moved: Tensor = positions.to(after.device) + after
        return moved

    def _images(self, input_ids: Tensor, given: Mapping[str, Any]) -> list[list[int]] | None:
        """Per request, the rows of every image and video in the order of the prompt; None where they are not known."""
        count = self._family.features_per_image
        if count is not None:
            return self._resized(input_ids, count(self._model.config), given)
        counts, config = [], self._model.config
        for medium in self._family.media:
            known = self._counts(medium, given)
            if known is None and bool((input_ids == getattr(config, medium.placeholder)).any()):
                return None
            counts.append(iter(known or ()))
        ids = [getattr(config, medium.placeholder) for medium in self._family.media]
        images = []
        for row in input_ids.tolist():
            own, left = list[int](), [0] * len(ids)
            for token in row:
                for kind, placeholder in enumerate(ids):
                    if token != placeholder:
                        continue
                    if not left[kind]:
                        own.append(next(counts[kind], 0))
                        left[kind] = own[-1]
                    left[kind] -= 1
            images.append(own)
        return images

    def _resized(self, input_ids: Tensor, count: int, given: Mapping[str, Any]) -> list[list[int]] | None:
        """The same where images are all of one size; None where it is ``count``, as configured."""
        present = [medium for medium in self._family.media if given.get(medium.pixels) is not None]
        sizes = {own for medium in present for own in self._counts(medium, given) or ()}
        if sizes <= {count}:
            return None
        size = sizes.pop()
        return [[size] * (held // size) for held in placeholder_mask(self._model, input_ids).sum(1).tolist()]

    def _counts(self, medium: Medium, given: Mapping[str, Any]) -> list[int] | None:
        try:
            return medium.features(self._model.config, given)
        except (KeyError, AttributeError):  # its grid is not among the inputs
            return None


def _merging_class(base: Any, placeholders: Placeholders) -> type[nn.Module]:
    """A subclass of the merger's class, of the same name, whose forward tells the text decoder what is visual."""

    @functools.wraps(base.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return placeholders.merge(self, base.forward, args, kwargs)

    namespace = {"forward": forward, "__module__": base.__module__, "__doc__": base.__doc__}
    return type(base.__name__, (base,), namespace)


def check_companions(family: Family, given: Mapping[str, Any], all_of_them: bool = True) -> None:
    """Refuse pixels that the model cannot place.

    Args:
        family: of the model.
        given: its inputs.
        all_of_them: whether none may be missing.

    Raises:
        RerouteError: naming the input that is missing, is no tensor, or disagrees with the pixels.
    """
    remedy = f"give what {family.name}'s processor returns"
    for medium in family.media:
        if given.get(medium.pixels) is None or given.get("input_ids") is None:
            continue
        for name in medium.companions:
            value = given.get(name)
            if value is None and all_of_them:
                raise RerouteError(name, f"is missing where {medium.pixels} are given", remedy)
            if value is not None and not isinstance(value, Tensor):
                raise RerouteError(name, f"is a {type(value).__name__}", remedy)
        if medium.companions and isinstance(given.get(medium.companions[0]), Tensor):
            pixels, patches = given[medium.pixels], int(given[medium.companions[0]].prod(-1).sum())
            if isinstance(pixels, Tensor) and len(pixels) != patches:
                problem = f"hold {len(pixels)} patches, {medium.companions[0]} says {patches}"
                raise RerouteError(medium.pixels, problem, remedy)


def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name."""
    if not args:
        return dict(kwargs)
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    return {**bound.pop("kwargs", {}), **bound}
