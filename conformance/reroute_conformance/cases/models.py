"""Defines cases that run a batch through a tiny transformers model of any family, and those of LLaVA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..tiny.llava import PATCHES_PER_IMAGE, picture_inputs, tiny_processor
from ..tiny.zoo import judge_model, target_model
from .case import KINDS, RoutedCase, Row, generator_of, place_of, tokens_of

_PER_ROW = ("input_ids", "attention_mask", "mm_token_type_ids")  # of what a processor returns; padded with 0


@dataclass(frozen=True)
class ModelCase(RoutedCase):
    """A batch through a tiny transformers model, with noise for images.

    Subclasses say of which family the model is, and what a processor returns for a request.

    Attributes:
        seed: seed of the model's weights.
        attention: the attention implementation of transformers, ``sdpa`` or ``eager``.
    """

    seed: int = 0
    attention: str = "sdpa"

    def model_family(self) -> str:
        """One of :data:`~reroute_conformance.protocol.FAMILIES`."""
        raise TypeError(f"{type(self).__name__} describes no family")

    def request(self, row: Row) -> dict[str, Tensor]:
        """What a processor returns for one request alone, without padding."""
        raise TypeError(f"{type(self).__name__} describes no requests")

    def model(self) -> nn.Module:
        """A transformers model; the target's own, the same for every case of one seed, as a server would keep it."""
        return target_model(self.model_family(), self.seed, self.attention)

    def reference_model(self, dtype: torch.dtype) -> nn.Module:
        """The model in ``dtype``, of objects that no target ever holds."""
        return judge_model(self.model_family(), self.seed, self.attention, dtype)

    def inputs(self) -> dict[str, Any]:
        """What a processor returns for the batch."""
        requests = [self.request(row) for row in self.rows]
        sizes = [request["input_ids"].shape[1] for request in requests]
        length = max(row.pad_left + size + row.pad_right for row, size in zip(self.rows, sizes, strict=True))
        batch: dict[str, Any] = {}
        for name in dict.fromkeys(name for request in requests for name in request):
            if name not in _PER_ROW:
                batch[name] = torch.cat([request[name] for request in requests if name in request])
                continue
            batch[name] = torch.zeros(len(requests), length, dtype=torch.long)
            for b, (row, request) in enumerate(zip(self.rows, requests, strict=True)):
                batch[name][b, place_of(row, length, sizes[b])] = request[name][0]
        return batch


@dataclass(frozen=True)
class LlavaCase(ModelCase):
    """A batch through the tiny LLaVA, with noise for images, or with the drawn picture through the real processor.

    Attributes:
        text: the question about the drawn picture. Where it is given, the rows of the batch are those that the
            processor makes of it; where it is empty, ``rows`` describes the batch.
    """

    kind: ClassVar[str] = "llava"
    text: str = ""  # of the picture's question; rows are then what the processor makes of it

    def model_family(self) -> str:
        """LLaVA."""
        return "llava"

    def size(self, row: Row) -> int:
        """Real rows of a request: an image is many."""
        return len(row.layout) + row.layout.count("I") * (PATCHES_PER_IMAGE - 1)

    def vocabulary(self) -> int:
        """Words only, no special tokens."""
        return len(tiny_processor().tokenizer)

    def inputs(self) -> dict[str, Any]:
        """What a processor returns."""
        if self.text:
            return picture_inputs(self.text, images=self.text.count("<image>"))
        return super().inputs()

    def request(self, row: Row) -> dict[str, Tensor]:
        """Seeded words and images of noise."""
        words = iter(tokens_of(row.seed, self.vocabulary()).tolist())
        image = [tiny_processor().image_token_id] * PATCHES_PER_IMAGE
        ids = torch.tensor(
            [[token for letter in row.layout for token in (image if letter == "I" else [next(words)])]]
        )
        request = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        noise = torch.randn(4, 3, 84, 84, generator=generator_of(row.seed))
        images = {"pixel_values": noise[: row.layout.count("I")]} if "I" in row.layout else {}
        return {**request, **images}


KINDS[LlavaCase.kind] = LlavaCase
