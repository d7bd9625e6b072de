"""Keeps what the vision tower made of a prefix's images and videos, and finds it again by their pixels.

So the tower does not encode the pictures of a prefix again for every prompt that begins with it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from reroute_reference.families import Family, Medium
from torch import Tensor, nn


@dataclass(frozen=True)
class _Picture:
    """One image or video as the caller gave it.

    Attributes:
        pixels: its part of the pixel input.
        sizes: its rows of the inputs beside the pixels, such as its grid, by the name of the input.
        options: everything else that the caller chose, such as the block of the tower that is read.
    """

    pixels: Tensor
    sizes: dict[str, Tensor]
    options: dict[str, Any]

    def is_that(self, other: _Picture) -> bool:
        """Whether both are the same, bit for bit."""
        pairs = [(self.pixels, other.pixels), *((self.sizes[name], own) for name, own in other.sizes.items())]
        return self.options == other.options and all(
            mine.shape == own.shape and mine.dtype == own.dtype and torch.equal(mine, own.to(mine.device))
            for mine, own in pairs
        )

    def kept(self) -> _Picture:
        """A copy that the caller cannot change."""
        sizes = {name: size.clone() for name, size in self.sizes.items()}
        return _Picture(self.pixels.clone(), sizes, self.options)


_Features = tuple[Tensor, tuple[Tensor, ...]]
"""[rows, d] as the tower's projection leaves them, and the same per boundary where they are added between blocks."""


class Encoded:
    """The features of a prefix's pictures, kept between a model and its vision tower.

    While it records, it keeps what the tower makes. While it is used, it returns what it kept for pictures of the same
    pixels, and the tower encodes only the others.

    Args:
        model: the model with its head.
        family: the description of its family, which names a merger.
    """

    def __init__(self, model: nn.Module, family: Family) -> None:
        self._model, self._media = model, family.media
        self._merger = model.get_submodule(family.merger or "")
        self._known: dict[str, list[tuple[_Picture, _Features]]] = {}
        self._form: Callable[[list[Tensor], list[Sequence[Tensor]]], Any] | None = None
        self._inside = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Keep whatever is encoded inside the ``with`` block."""
        with self._replaced(self._record):
            yield

    @contextmanager
    def reused(self) -> Iterator[None]:
        """Return what was kept where the same pixels come again inside the ``with`` block."""
        with self._replaced(self._reuse):
            yield

    @contextmanager
    def _replaced(self, by: Callable[..., Any]) -> Iterator[None]:
        own: dict[str, Any] = {}
        for medium in self._media:
            name = f"get_{medium.placeholder.removesuffix('_token_id')}_features"
            before, original = self._merger.__dict__.get(name), getattr(self._merger, name, None)
            if original is not None:
                self._merger.__dict__[name] = functools.wraps(original)(
                    functools.partial(by, medium, original)
                )
                own[name] = before
        try:
            yield
        finally:
            for name, before in own.items():  # somebody's own, or the class's
                self._merger.__dict__.pop(name, None)
                if before is not None:
                    self._merger.__dict__[name] = before

    def _record(self, medium: Medium, original: Any, *args: Any, **kwargs: Any) -> Any:
        pictures = None if self._inside else self._pictures(medium, original, args, kwargs)
        output = self._encode(original, *args, **kwargs)
        if pictures is not None and hasattr(output, "pooler_output"):
            made = _parts(output, len(pictures))
            self._known[medium.pixels] = [
                (picture.kept(), (features.clone(), tuple(level.clone() for level in levels)))
                for picture, (features, levels) in zip(pictures, made, strict=True)
            ]
            self._form = _form(output)
        return output

    def _reuse(self, medium: Medium, original: Any, *args: Any, **kwargs: Any) -> Any:
        known = [] if self._inside else self._known.get(medium.pixels, [])
        pictures = self._pictures(medium, original, args, kwargs) if known else None
        if pictures is None:
            return original(*args, **kwargs)
        found = [next((made for k, made in known if k.is_that(picture)), None) for picture in pictures]
        unknown = [picture for picture, own in zip(pictures, found, strict=True) if own is None]
        if len(unknown) == len(pictures):
            return original(*args, **kwargs)
        fresh: Iterator[_Features] = iter(())
        if unknown:
            rest = {medium.pixels: torch.cat([picture.pixels for picture in unknown])}
            for name in unknown[0].sizes:
                rest[name] = torch.cat([picture.sizes[name] for picture in unknown])
            fresh = iter(
                _parts(self._encode(original, **{**_named(original, args, kwargs), **rest}), len(unknown))
            )
        assert self._form is not None  # what is known was made
        parts = [next(fresh) if own is None else own for own in found]
        levels: list[Sequence[Tensor]] = list(zip(*(levels for _, levels in parts), strict=True))
        return self._form([features for features, _ in parts], levels)

    def _encode(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Videos may be encoded as images: only the outer call is looked at."""
        before, self._inside = self._inside, True
        try:
            return original(*args, **kwargs)
        finally:
            self._inside = before

    def _pictures(
        self, medium: Medium, original: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> list[_Picture] | None:
        """Every picture of a call; None where they cannot be told apart."""
        given, parameters = _named(original, args, kwargs), inspect.signature(original).parameters
        if kwargs.get("output_hidden_states") or kwargs.get("output_attentions"):
            return None  # what else is asked for was not kept
        explicit = {
            name: given[name] for name in parameters if given.get(name) is not None and name != "return_dict"
        }
        tensors = {name for name, value in explicit.items() if isinstance(value, Tensor)}
        sized = [name for name in medium.companions if name in tensors]
        if given.get("return_dict") is False or tensors != {medium.pixels, *sized}:
            return None
        options = {name: value for name, value in explicit.items() if name not in tensors}
        counts = medium.features(self._model.config, given)
        pixels: Tensor = given[medium.pixels]
        share = [len(pixels) * count // max(sum(counts), 1) for count in counts]  # as many as it has rows
        if sum(share) != len(pixels):
            return None
        return [
            _Picture(own, {name: given[name][i : i + 1] for name in sized}, options)
            for i, own in enumerate(torch.split(pixels, share))
        ]


def _named(original: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = list(inspect.signature(original).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _parts(output: Any, pictures: int) -> list[_Features]:
    """The features of each picture in an output of the tower."""
    features = list(output.pooler_output)
    rows = [len(own) for own in features]
    levels = []
    for level in getattr(output, "deepstack_features", None) or ():
        levels.append(torch.split(level, rows) if isinstance(level, Tensor) else level)  # whole before 5.23
    assert len(features) == pictures
    return [(own, tuple(level[i] for level in levels)) for i, own in enumerate(features)]


def _form(output: Any) -> Callable[[list[Tensor], list[Sequence[Tensor]]], Any]:
    """A function that makes an output like this one, which it does not keep, of features and of what every level adds."""
    kind = type(output)
    levels: Sequence[Any] = getattr(output, "deepstack_features", None) or ()
    whole = bool(levels) and isinstance(levels[0], Tensor)

    def make(features: list[Tensor], added: list[Sequence[Tensor]]) -> Any:
        if not added:
            return kind(pooler_output=features)
        joined = [torch.cat(list(level)) if whole else list(level) for level in added]
        return kind(pooler_output=features, deepstack_features=joined)

    return make
