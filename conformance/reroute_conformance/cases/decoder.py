"""Defines cases that run embeddings through a canonical decoder, with seeded weights or with every number given."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import torch
from reroute_reference import CanonicalDecoder
from reroute_spec import DecoderShape
from reroute_spec.canonical import CanonicalConfig
from torch import Tensor

from ..protocol import Model
from .case import KINDS, NUM_SEEDED_ROWS, RoutedCase, generator_of, place_of


@dataclass(frozen=True)
class DecoderCase(RoutedCase):
    """A batch of embeddings through a canonical decoder with seeded weights.

    Attributes:
        config: the decoder's configuration as data.
        seed: seed of the weights.
        gain: factor on all queries. With 0 all rows score alike; a large factor makes attention peaked.
    """

    kind: ClassVar[str] = "decoder"
    network_rules: ClassVar[tuple[str, ...]] = ("RR-BLOCK-004", "RR-BLOCK-005", "RR-BLOCK-006")
    rotary_rule: ClassVar[str] = "RR-BLOCK-005"  # what the keys of the first block tell
    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    gain: float = 1.0  # of all queries: 0 scores all rows alike, much makes attention peaked

    def canonical(self) -> CanonicalConfig:
        """The decoder's configuration."""
        return CanonicalConfig.from_dict(self.config)

    def vocabulary(self) -> int:
        """All tokens."""
        return self.canonical().vocab_size

    def model(self) -> Model:
        """Configuration and weights, fresh tensors every time."""
        return self.canonical(), {name: weight.clone() for name, weight in self._weights().items()}

    def reference_model(self, dtype: torch.dtype) -> CanonicalDecoder:
        """The canonical decoder in ``dtype``."""
        return CanonicalDecoder(self.canonical(), self._weights(), dtype)

    def inputs(self) -> dict[str, Any]:
        """Embeddings, padded; padding holds large values, so that whoever reads it is found out."""
        length = max(row.pad_left + len(row.layout) + row.pad_right for row in self.rows)
        size = self.canonical().shape.hidden_size
        embeds = torch.full((len(self.rows), length, size), 50.0)
        visual, real = (torch.zeros(len(self.rows), length, dtype=torch.bool) for _ in range(2))
        for index, row in enumerate(self.rows):
            place = place_of(row, length)
            drawn = max(NUM_SEEDED_ROWS, len(row.layout))
            noise = torch.randn(drawn, size, generator=generator_of(row.seed))
            embeds[index, place] = noise[: len(row.layout)]
            visual[index, place] = torch.tensor([letter == "v" for letter in row.layout])
            real[index, place] = True
            if self.poison is not None and self.poison[0] == index:
                embeds[index, place.start + self.poison[1]] = torch.nan
        return {"inputs_embeds": embeds, "visual_mask": visual, "attention_mask": real.long()}

    def _weights(self) -> dict[str, Tensor]:
        weights = _canonical_weights(json.dumps(self.config, sort_keys=True), self.seed)
        return {name: x * self.gain if ".q_proj." in name else x for name, x in weights.items()}


@dataclass(frozen=True)
class GivenCase(DecoderCase):
    """One request through a canonical decoder whose numbers are all given, for cases that were worked out by hand.

    Attributes:
        embeddings: the embedding of every row.
        weights: the weights by name, as nested lists.
    """

    kind: ClassVar[str] = "given"
    embeddings: list[list[float]] = field(default_factory=list)
    weights: dict[str, Any] = field(default_factory=dict)  # nested lists by name

    def inputs(self) -> dict[str, Any]:
        """The embeddings, of which ``rows`` says which are visual."""
        visual = torch.tensor([[letter == "v" for letter in self.rows[0].layout]])
        embeds = torch.tensor([self.embeddings], dtype=torch.float32)
        return {"inputs_embeds": embeds, "visual_mask": visual, "attention_mask": visual.long() * 0 + 1}

    def _weights(self) -> dict[str, Tensor]:
        return {name: torch.tensor(values, dtype=torch.float32) for name, values in self.weights.items()}


KINDS.update({case.kind: case for case in (DecoderCase, GivenCase)})


@lru_cache(maxsize=64)
def _canonical_weights(config: str, seed: int) -> dict[str, Tensor]:
    canonical, generator = CanonicalConfig.from_dict(json.loads(config)), generator_of(seed)
    weights = {}
    for name, shape in canonical.weight_shapes().items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            weights[name] = 1 + 0.2 * noise
        elif name.endswith("bias"):
            weights[name] = 0.5 * noise
        else:  # wide queries and keys: attention far from uniform, so that selections have margins
            gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            weights[name] = noise * gain / shape[-1] ** 0.5
    return weights


def decoder_config(
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int = 8,
    **rest: Any,
) -> dict[str, Any]:
    """Data of a small canonical decoder; ``rest`` as for :class:`~reroute_spec.canonical.CanonicalConfig`."""
    shape = DecoderShape(layers, 16, 24, heads, kv_heads, head_dim)
    return CanonicalConfig(shape, vocab_size=23, **rest).to_dict()
