"""What is only known where placeholders still stand: which columns are visual, of which image, and at what positions.

Hooks on the module that merges image features hand it down as keyword arguments, and keep one request's state from the next.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from reroute_reference.families import Family, Medium, placeholder_mask
from reroute_spec import RerouteError, Schedule
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .cache import RoutedCache
from .checks import check_attention_mask, check_prompt


class Placeholders:
    """Reads a family's prompts before they are merged.

    Args:
        model: with a head.
        family: of it, with a merger.
        schedule: that is applied.
        first_stage: whether the vision tower marks rows to leave out.
    """

    def __init__(
        self, model: nn.Module, family: Family, schedule: Schedule, first_stage: bool = False
    ) -> None:
        assert family.merger is not None
        self._first_stage = first_stage
        self._model, self._family, self._schedule = model, family, schedule
        self._merger: Any = model.get_submodule(family.merger)
        self._carried: dict[str, Any] = {}

    def register(self) -> list[RemovableHandle]:
        """The hooks."""
        return [
            self._merger.register_forward_pre_hook(self._before, with_kwargs=True),
            self._merger.register_forward_hook(self._after, always_call=True),
        ]

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Whatever a request leaves on the merger is as before at the end."""
        carried = {name: getattr(self._merger, name) for name in self._family.carried}
        try:
            yield
        finally:
            for name, value in carried.items():
                setattr(self._merger, name, value)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = arguments(module, args, kwargs)
        input_ids, cache = given.get("input_ids"), given.get("past_key_values")
        self._carried = {}
        if given.get("position_ids") is None:
            check_companions(self._family, given)
        if input_ids is not None and not (isinstance(input_ids, Tensor) and input_ids.shape[-1] == 1):
            check_prompt(self._model, self._family, input_ids, given)
            if not isinstance(cache, RoutedCache) or cache.routing is None:
                check_attention_mask(given.get("attention_mask"), *input_ids.shape)
        self._carried = {name: getattr(module, name) for name in self._family.carried}
        for name in self._carried:  # one request's state is no other's
            setattr(module, name, None)
        added: dict[str, Any] = {} if input_ids is None else {"prompt_ids": input_ids}
        # a single row is never routable; a decode step needs no mask
        if given.get("visual_mask") is None and input_ids is not None and input_ids.shape[-1] > 1:
            added["visual_mask"] = placeholder_mask(self._model, input_ids)
            pixels = [medium.pixels for medium in self._family.media]
            if self._first_stage and any(given.get(n) is not None for n in (*pixels, "mm_encoder_outputs")):
                added["first_stage"] = True
            if self._schedule.scope == "image" and given.get("visual_images") is None:
                images = self._images(input_ids, given)
                if images is not None:
                    added["visual_images"] = images
        moves = bool(self._family.carried) and given.get("position_ids") is None
        if moves and isinstance(cache, RoutedCache) and cache.routing is not None:
            added["position_ids"] = self._positions(cache, given)
        return args, {**kwargs, **added}

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        for name, value in self._carried.items():
            setattr(module, name, value)
        self._carried = {}

    def _positions(self, cache: RoutedCache, given: Mapping[str, Any]) -> Tensor:
        """[3, B, T] where a later turn goes on: after the largest position so far, new images as the model counts them."""
        assert cache.routing is not None
        rows: Tensor = given["input_ids"] if given.get("inputs_embeds") is None else given["inputs_embeds"]
        after = cache.routing.next_positions[:, -1:]
        names = inspect.signature(self._merger.compute_3d_position_ids).parameters
        known = {name: given.get(name) for name in names}
        # the new rows by themselves, as if they were a prompt
        positions = self._merger.compute_3d_position_ids(
            **{**known, "past_key_values": None, "attention_mask": None, "inputs_embeds": rows}
        )
        for name in self._family.carried:
            setattr(self._merger, name, None)
        if positions is None:
            positions = torch.arange(rows.shape[1], device=rows.device).expand(3, len(after), -1)
        moved: Tensor = positions.to(after.device) + after
        return moved

    def _images(self, input_ids: Tensor, given: Mapping[str, Any]) -> list[list[int]] | None:
        """Per request, the rows of every image and video in the order of the prompt; None where they are not known."""
        if self._family.features_per_image is not None:
            return None  # all of one size
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

    def _counts(self, medium: Medium, given: Mapping[str, Any]) -> list[int] | None:
        try:
            return medium.features(self._model.config, given)
        except (KeyError, AttributeError):  # its grid is not among the inputs
            return None


def check_companions(family: Family, given: Mapping[str, Any]) -> None:
    """Refuse pixels that the model cannot place.

    Raises:
        RerouteError: naming the input that is missing.
    """
    for medium in family.media:
        if given.get(medium.pixels) is None or given.get("input_ids") is None:
            continue
        for name in medium.companions:
            if given.get(name) is None:
                raise RerouteError(
                    name,
                    f"is missing where {medium.pixels} are given",
                    f"give what {family.name}'s processor returns",
                )


def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name."""
    if not args:
        return dict(kwargs)
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    return {**bound.pop("kwargs", {}), **bound}
