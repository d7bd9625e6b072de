"""Real transformers models small enough to build in code, and their processors."""

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
