"""Defines the decoders, weights and embeddings of the vectors, with numbers that every machine and every version draws alike.

The numbers are whole 1024ths of a gain. They are drawn by Python's own Mersenne twister, whose ``random()`` is promised
never to change.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from random import Random
from typing import Any

import torch
from reroute_spec import DecoderShape
from reroute_spec.canonical import CanonicalConfig
from torch import Tensor

from ..files import SHARED

_ULPS = 1024


def drawn(seed: str, size: tuple[int, ...], gain: float = 1.0) -> Tensor:
    """Numbers from −gain to gain, whole 1024ths of it, [size] float32."""
    random = Random(seed)
    values = [int(random.random() * 2 * _ULPS) - _ULPS for _ in range(prod(size))]
    return torch.tensor(values, dtype=torch.float32).view(size) * (gain / _ULPS)


def _decoder(heads: int, kv_heads: int, head_dim: int = 4, **rest: Any) -> CanonicalConfig:
    # heads of 4 or 16 channels: the scale of the logits is then a power of two, exact everywhere
    return CanonicalConfig(DecoderShape(4, 16, 24, heads, kv_heads, head_dim), vocab_size=16, **rest)


DECODERS: Mapping[str, CanonicalConfig] = {
    "plain": _decoder(2, 2),
    "biased": _decoder(4, 2, attention_bias=True),
    "normed": _decoder(4, 1, qk_norm=True),
    "biased-normed": _decoder(4, 2, attention_bias=True, qk_norm=True),
    "sections": _decoder(2, 2, 16, mrope_section=(2, 3, 3)),
    "interleaved": _decoder(2, 2, 16, mrope_section=(4, 2, 2), mrope_interleaved=True),
    "near": _decoder(2, 2, rope_theta=1e30),
}


def weights(name: str) -> dict[str, Tensor]:
    """The weights of one of :data:`DECODERS`.

    Those of ``near`` ask by channels that no position turns: rows of the same direction score alike up to rounding.
    """
    config, made = DECODERS[name], {}
    for weight, size in config.weight_shapes().items():
        gain = 1.0 if weight.startswith("embed") or ".q_proj" in weight or ".k_proj" in weight else 0.5
        made[weight] = drawn(f"{name} {weight}", size, gain)
        if weight.endswith("norm.weight"):
            made[weight] = 1 + made[weight] / 2
        if name == "near" and ".q_proj" in weight:
            made[weight][[row for row in range(size[0]) if row % 2 == 0]] = (
                0  # channels 0 and 2 of every head
            )
    return made


def decoder(name: str) -> dict[str, Any]:
    """What a vector says of its decoder."""
    return {"config": config_data(DECODERS[name]), "weights": f"../../{SHARED}/{name}.safetensors:"}


def config_data(config: CanonicalConfig) -> dict[str, Any]:
    """A configuration as JSON has it."""
    data = config.to_dict()
    section = data["mrope_section"]
    return {**data, "mrope_section": None if section is None else list(section)}


def shared_weights() -> dict[str, dict[str, Tensor]]:
    """The files of weights that vectors of the reference share, by their path in ``v1``."""
    return {f"{SHARED}/{name}.safetensors": weights(name) for name in DECODERS}
