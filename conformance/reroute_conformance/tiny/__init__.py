"""Builds real transformers models that are small enough to make in code, with their processors and prompts.

This room may import ``protocol`` and, outside the suite, the specification and the reference. It must not import any
room that stands after it: it knows neither cases nor targets. To add a model, write the function that builds it in a
module here and export it from this file. If cases are to run it, build it in ``zoo.py`` too.
"""

from .llava import (
    IMAGE_TOKEN,
    NARROW_IMAGE,
    NARROW_PATCHES,
    PATCHES_PER_IMAGE,
    WORDS,
    narrow_llava,
    picture,
    picture_inputs,
    tiny_llava,
    tiny_processor,
)
from .qwen import qwen_inputs, tiny_qwen

__all__ = [
    "IMAGE_TOKEN",
    "NARROW_IMAGE",
    "NARROW_PATCHES",
    "PATCHES_PER_IMAGE",
    "WORDS",
    "narrow_llava",
    "picture",
    "picture_inputs",
    "qwen_inputs",
    "tiny_llava",
    "tiny_processor",
    "tiny_qwen",
]
