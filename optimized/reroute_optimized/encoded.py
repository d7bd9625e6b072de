"""What the vision tower made of a prefix's images and videos, found again by their pixels."""

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
    """One image or video.

    Attributes:
        pixels: its part of the input.
        sizes: its rows of what the tower is given beside pixels, by name.
        features: [rows, d] as the tower's projection leaves them.
        levels: the same per boundary where features are added between blocks.
    """

    pixels: Tensor
    sizes: dict[str, Tensor]
    features: Tensor
    levels: tuple[Tensor, ...]


class Encoded:
    """Stands between a model and its vision tower: pictures that are known by their pixels are not encoded again.

    Args:
        model: with a head.
        family: of it, with a merger.
    """

    def __init__(self, model: nn.Module, family: Family) -> None:
        self._model, self._media = model, family.media
        self._merger = model.get_submodule(family.merger or "")
        self._known: dict[str, list[_Picture]] = {}
        self._form: Callable[[list[Tensor], list[Sequence[Tensor]]], Any] | None = None
        self._inside = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Whatever is encoded meanwhile is kept."""
        with self._replaced(self._record):
            yield

    @contextmanager
    def reused(self) -> Iterator[None]:
        """What was kept is taken where the same pixels come again."""
        with self._replaced(self._reuse):
            yield

    @contextmanager
    def _replaced(self, by: Callable[..., Any]) -> Iterator[None]:
        names = []
        for medium in self._media:
            name = f"get_{medium.placeholder.removesuffix('_token_id')}_features"
            original = getattr(self._merger, name, None)
            if original is not None:
                self._merger.__dict__[name] = functools.wraps(original)(
                    functools.partial(by, medium, original)
                )
                names.append(name)
        try:
            yield
        finally:
            for name in names:
                del self._merger.__dict__[name]

    def _record(self, medium: Medium, original: Any, *args: Any, **kwargs: Any) -> Any:
        pictures = None if self._inside else self._pictures(medium, original, args, kwargs)
        output = self._encode(original, *args, **kwargs)
        if pictures is not None and hasattr(output, "pooler_output"):
            made = _parts(output, len(pictures))
            self._known[medium.pixels] = [
                _Picture(pixels.clone(), sizes, features.clone(), tuple(level.clone() for level in levels))
                for (pixels, sizes), (features, levels) in zip(pictures, made, strict=True)
            ]
            self._form = _form(output)
        return output

    def _reuse(self, medium: Medium, original: Any, *args: Any, **kwargs: Any) -> Any:
        known = [] if self._inside else self._known.get(medium.pixels, [])
        pictures = self._pictures(medium, original, args, kwargs) if known else None
        if pictures is None:
            return original(*args, **kwargs)
        found = [next((k for k in known if _same(k, *picture)), None) for picture in pictures]
        unknown = [picture for picture, own in zip(pictures, found, strict=True) if own is None]
        if len(unknown) == len(pictures):
            return original(*args, **kwargs)
        fresh: Iterator[tuple[Tensor, Sequence[Tensor]]] = iter(())
        if unknown:
            rest = {medium.pixels: torch.cat([pixels for pixels, _ in unknown])}
            rest |= {name: torch.cat([sizes[name] for _, sizes in unknown]) for name in unknown[0][1]}
            fresh = iter(
                _parts(self._encode(original, **{**_named(original, args, kwargs), **rest}), len(unknown))
            )
        assert self._form is not None  # what is known was made
        parts = [next(fresh) if own is None else (own.features, own.levels) for own in found]
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
    ) -> list[tuple[Tensor, dict[str, Tensor]]] | None:
        """Pixels and sizes of every picture of a call; None where they cannot be told apart."""
        given = _named(original, args, kwargs)
        explicit = {
            name for name in inspect.signature(original).parameters if isinstance(given.get(name), Tensor)
        }
        sized = [name for name in medium.companions if name in explicit]
        if given.get("return_dict") is False or explicit != {medium.pixels, *sized}:
            return None
        counts = medium.features(self._model.config, given)
        pixels: Tensor = given[medium.pixels]
        share = [len(pixels) * count // max(sum(counts), 1) for count in counts]  # as many as it has rows
        if sum(share) != len(pixels):
            return None
        return [
            (own, {name: given[name][i : i + 1] for name in sized})
            for i, own in enumerate(torch.split(pixels, share))
        ]


def _named(original: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    names = list(inspect.signature(original).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _same(known: _Picture, pixels: Tensor, sizes: Mapping[str, Tensor]) -> bool:
    pairs = [(known.pixels, pixels), *((known.sizes[name], size) for name, size in sizes.items())]
    return all(
        own.shape == other.shape and own.dtype == other.dtype and torch.equal(own, other.to(own.device))
        for own, other in pairs
    )


def _parts(output: Any, pictures: int) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
    """Per picture its features, and those of every level."""
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
