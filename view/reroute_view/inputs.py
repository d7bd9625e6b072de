"""From what a processor returns to the images of a request: their grids, and their pictures as the model is given them.

Tensors are only handed through and read by their own methods, so that nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reroute_spec import RerouteError
from reroute_spec.grids import Grid, in_prompt_order
from reroute_spec.view import ShownImage

from .pictures import address


@dataclass(frozen=True)
class Given:
    """An image or video among the inputs of a batch.

    Attributes:
        grid: of its decoder rows.
        medium: the description of its kind (``reroute_reference.families.Medium``).
        index: among all of that kind.
    """

    grid: Grid
    medium: Any
    index: int

    @property
    def size(self) -> int:
        """Its decoder rows."""
        return self.grid.size


def images_of(
    media: Sequence[Any], config: Any, ids: Sequence[Sequence[int]], inputs: Mapping[str, Any]
) -> list[list[Given]] | None:
    """Per request its images and videos in prompt order; None where the inputs do not say them.

    Args:
        media: of the model's family.
        config: of the model.
        ids: tokens of every request, placeholders among them.
        inputs: what the processor returns. Where images are all of one size, their pixels may be missing.
    """
    found: dict[int, list[Given]] = {}
    for medium in media:
        token = int(getattr(config, medium.placeholder))
        held = sum(row.count(token) for row in map(list, ids))
        if not held:
            continue
        given = dict(inputs)
        if not medium.companions and not medium.tiled and given.get(medium.pixels) is None:
            one = medium.grids(config, {**given, medium.pixels: [None]})[0]
            given[medium.pixels] = [None] * (held // one.size)
        try:
            grids = medium.grids(config, given)
        except (KeyError, AttributeError, TypeError):  # its grid is not among the inputs
            return None
        found[token] = [Given(grid, medium, index) for index, grid in enumerate(grids)]
    return in_prompt_order(ids, found)


def with_pictures(
    images: Sequence[Given], config: Any, inputs: Mapping[str, Any], processor: Any
) -> tuple[ShownImage, ...]:
    """The images with what the model is given to see: resized, cropped, in its own patches.

    Args:
        images: of one request, see :func:`images_of`.
        config: of the model.
        inputs: of the whole batch.
        processor: that made them; its mean and deviation say which colours the numbers are.

    Raises:
        RerouteError: the processor does not say them, or pixels are missing.
    """
    return tuple(
        ShownImage(image.grid, tuple(map(address, _frames(image, config, inputs, processor))))
        for image in images
    )


def _frames(image: Given, config: Any, inputs: Mapping[str, Any], processor: Any) -> list[Any]:
    """[height, width, 3] per frame, 0 to 255."""
    medium = image.medium
    pixels = inputs.get(medium.pixels)
    if pixels is None:
        raise RerouteError(medium.pixels, "are missing", "give all that the processor returned")
    mean, deviation = _colours(processor, image.grid.kind)
    if not medium.companions:
        if medium.tiled:  # a request with fewer images than another is filled with zeros
            pixels = [tile for request in pixels for tile in request if tile.any()]
        channels = _numbers(pixels[image.index])  # [3, height, width]
        return [_restored(channels.transpose(1, 2, 0), mean, deviation)]
    vision = config.vision_config
    grids = inputs[medium.companions[0]].tolist()
    t, height, width = grids[image.index]
    start = sum(a * b * c for a, b, c in grids[: image.index])
    merge, patch, times = (
        int(getattr(vision, name)) for name in ("spatial_merge_size", "patch_size", "temporal_patch_size")
    )
    # the processor lays patches block by block, so that those of one decoder row are neighbours
    shape = (t, height // merge, width // merge, merge, merge, -1, times, patch, patch)
    blocks = _numbers(pixels[start : start + t * height * width]).reshape(shape)
    first = blocks[:, :, :, :, :, :, 0]  # of the frames that one patch holds
    frames = first.transpose(0, 1, 3, 6, 2, 4, 7, 5).reshape(t, height * patch, width * patch, -1)
    return [_restored(frame, mean, deviation) for frame in frames]


def _colours(processor: Any, kind: str) -> tuple[Sequence[float], Sequence[float]]:
    own = getattr(processor, f"{kind}_processor", None) or getattr(processor, "image_processor", processor)
    mean, deviation = getattr(own, "image_mean", None), getattr(own, "image_std", None)
    if mean is None or deviation is None:
        problem = f"{type(own).__name__} has no image_mean and image_std"
        raise RerouteError("processor", problem, "give the processor that made the inputs")
    return mean, deviation


def _numbers(tensor: Any) -> Any:
    return tensor.detach().float().cpu().numpy()


def _restored(frame: Any, mean: Sequence[float], deviation: Sequence[float]) -> Any:
    values = (frame * list(deviation) + list(mean)) * 255
    return values.round().clip(0, 255).astype("uint8")
