"""Provides a processor for the tiny Qwen models, made of the real image processor and a word-level tokenizer.

transformers' own processors of these families also need a video processor, which needs torchvision. This one does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessorPil

from .llava import IMAGE_TOKEN, WORDS
from .qwen import IMAGE, VISION_END, VISION_START

_FIRST_WORD = 3
_PIXELS = 28 * 28  # of one decoder row: 2 x 2 patches


class TinyQwenProcessor:
    """A processor of words and images for the tiny Qwen models.

    It has only the attributes that ``vlm-reroute trace`` reads of a processor, and is called as ``trace`` calls one.
    """

    chat_template = None
    image_token = IMAGE_TOKEN

    def __init__(self, rows: tuple[int, int] = (12, 48)) -> None:
        """Build the tokenizer and the image processor.

        Args:
            rows: the fewest and the most decoder rows that an image may become.
        """
        special = {"<pad>": 0, "<unk>": 1, IMAGE_TOKEN: IMAGE, "<start>": VISION_START, "<end>": VISION_END}
        words = {word: index for index, word in enumerate(WORDS, start=_FIRST_WORD)}
        core = Tokenizer(models.WordLevel({**special, **words}, unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=core,
            pad_token="<pad>",
            unk_token="<unk>",
            additional_special_tokens=[IMAGE_TOKEN, "<start>", "<end>"],
        )
        least, most = rows
        size = {"shortest_edge": least * _PIXELS, "longest_edge": most * _PIXELS}
        self.image_processor = Qwen2VLImageProcessorPil(size=size)

    def __call__(
        self, images: Sequence[Image.Image] | None, text: str, return_tensors: str = "pt"
    ) -> dict[str, Any]:
        """One prompt, in which ``<image>`` stands for each of ``images``."""
        made: dict[str, Any] = {}
        if images:
            made = dict(self.image_processor(images=list(images), return_tensors=return_tensors))
        parts = text.split(IMAGE_TOKEN)
        counts = [int(grid.prod()) // 4 for grid in made.get("image_grid_thw", ())]
        if len(parts) - 1 != len(counts):
            raise ValueError(f"{len(counts)} images for {len(parts) - 1} {IMAGE_TOKEN} in the text")
        filled = parts[0]
        for count, part in zip(counts, parts[1:], strict=True):
            filled += f" <start> {f'{IMAGE_TOKEN} ' * count}<end> {part}"
        ids = torch.tensor([self.tokenizer(filled)["input_ids"]])
        made |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return {**made, "mm_token_type_ids": (ids == IMAGE).int()}
