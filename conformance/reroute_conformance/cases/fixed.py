"""Lists cases that are fixed instead of drawn: the worked example, the counterexample, pictures, budgets, large selections.

The worked example is the one of ``spec/example.md``. In the counterexample the decisions of ``reroute`` and ``delete``
differ although no row re-enters (RR-EQV-006). The budgets are those that rounding or binary floats get wrong. Further
cases are unrouted runs, whose only errors are those of rounding.
"""

from __future__ import annotations

import math
import random
from itertools import product
from typing import Any

from reroute_spec import DecoderShape
from reroute_spec.canonical import CanonicalConfig

from .case import Row, SelectCase
from .decoder import DecoderCase, GivenCase, decoder_config
from .models import LlavaCase


def filled(config: CanonicalConfig, given: dict[str, Any]) -> dict[str, Any]:
    """All weights: norms that scale by 1, zero for what is not given."""
    return {
        name: given.get(name, _full(size, float(name.endswith("norm.weight"))))
        for name, size in config.weight_shapes().items()
    }


def _full(size: tuple[int, ...], value: float) -> Any:
    return value if not size else [_full(size[1:], value) for _ in range(size[0])]


def example() -> GivenCase:
    """Six rows, four blocks, two decisions; a row is deferred by the first and re-enters at the second."""
    config = CanonicalConfig(DecoderShape(4, 2, 1, 1, 1, 2), vocab_size=2, rms_norm_eps=0.0)
    one, turn = [[1.0, 0.0], [0.0, 1.0]], [[0.0, -1.0], [1.0, 0.0]]
    given: dict[str, Any] = {"embed_tokens.weight": one, "lm_head.weight": [[1.0, 1.0], [1.0, -1.0]]}
    for layer in range(4):
        for name in "qkvo":
            given[f"layers.{layer}.self_attn.{name}_proj.weight"] = turn if (name, layer) == ("q", 3) else one
        for name in ("gate", "up"):
            given[f"layers.{layer}.mlp.{name}_proj.weight"] = [[1.0, 0.0]]
        given[f"layers.{layer}.mlp.down_proj.weight"] = [[0.0], [1.0]]
    return GivenCase(
        schedule={
            "action": "reroute",
            "decisions": [{"layer": 1, "keep": "0.5"}, {"layer": 3, "keep": "0.5"}],
        },
        rows=[Row("tvvvvt")],
        config=config.to_dict(),
        embeddings=[[1, 1], [2, 1], [-1, 2], [1, -2], [-2, -1], [1, 2]],
        weights=filled(config, given),
    )


def counterexample(action: str) -> GivenCase:
    """Two decisions of two blocks that add nothing, where no row re-enters and yet the actions part (RR-EQV-006).

    Row u is the token 2·e_u, of mean square 1. Channel 1 of the keys of head h holds half the logarithm of its weight
    of row u, that of the queries 2, the scale is 1/2, and the rotary angle of that channel is position · 10^-15.
    """
    weights = ((1, 2, 3, 1), (3, 2, 1, 2))
    rows, heads, head_dim = 4, 2, 4
    config = CanonicalConfig(
        DecoderShape(2, rows, 1, heads, heads, head_dim), vocab_size=1, rms_norm_eps=0.0, rope_theta=1e30
    )
    given: dict[str, Any] = {}
    for layer, name in product(range(2), "qk"):
        matrix = _full((heads * head_dim, rows), 0.0)
        for head in range(heads):
            logs = [math.log(weight) / 2 for weight in weights[head]]
            matrix[head * head_dim + 1] = [1.0] * rows if name == "q" else logs
        given[f"layers.{layer}.self_attn.{name}_proj.weight"] = matrix
    return GivenCase(
        schedule={"action": action, "decisions": [{"layer": 0, "keep": 2}, {"layer": 1, "keep": 1}]},
        rows=[Row("vvvt")],
        config=config.to_dict(),
        embeddings=[[2.0 * (u == row) for u in range(rows)] for row in range(rows)],
        weights=filled(config, given),
    )


def pictures() -> tuple[LlavaCase, ...]:
    """One and two pictures through the real processor, both actions, both attention implementations."""
    question = "user : <image> where is the red ball ? assistant :"
    two = "user : <image> <image> what colour is the box ? assistant :"
    schedule = {
        "reroute": [
            {"layer": 1, "keep": "0.2644"},
            {"layer": 3, "keep": "0.2644"},
            {"layer": 6, "keep": "0.1"},
        ],
        "delete": [{"layer": 1, "keep": "0.5965"}, {"layer": 4, "keep": "0.1266"}],
    }
    return tuple(
        LlavaCase(
            schedule={"action": action, "decisions": decisions},
            rows=[Row("t")],
            new_tokens=2,
            attention=attention,
            text=text,
        )
        for action, decisions in schedule.items()
        for text in (question, two)
        for attention in ("sdpa", "eager")
    )


def budgets() -> tuple[DecoderCase, ...]:
    """Ratios whose product with N a binary float gets wrong (0.29 of 100), and halves that rounding gets wrong."""
    config = decoder_config(2, heads=2, kv_heads=2)
    pairs = (
        ("0.29", 100),
        ("0.57", 100),
        ("0.58", 50),
        ("0.5", 7),
        ("0.35", 10),
        ("1", 9),
        ("0.001", 9),
        ("1/3", 9),
        ("1/3", 1),
        ("0.289999999999", 100),
        ("0.28999999999999999", 100),
    )
    unrouted = DecoderCase({"action": "reroute", "decisions": []}, [Row("tvvt")], config=config)
    routed = [
        DecoderCase(
            {"action": action, "decisions": [{"layer": 1, "keep": keep}]},
            [Row(f"t{'v' * n}t")],
            config=config,
        )
        for keep, n in pairs
        for action in ("reroute", "delete")
    ]
    return (*routed, unrouted)


def precise() -> tuple[DecoderCase, ...]:
    """Unrouted runs of a hundred rows, whose only errors are those of rounding."""
    config = decoder_config(3, heads=2, kv_heads=2)
    return tuple(
        DecoderCase(
            {"action": "reroute", "decisions": []},
            [Row("t" + "v" * 98 + "t", seed)],
            config=config,
            seed=seed,
        )
        for seed in range(4)
    )


def large_selections() -> tuple[SelectCase, ...]:
    """As many scores as an image has rows, softmax-like: small, close together, many of them equal."""
    cases = []
    for seed, n in enumerate((129, 576, 4096)):
        draw = random.Random(seed)
        bits = [0x3C000000 + draw.randrange(n // 2) for _ in range(n)]  # from 2^-7 upwards, a few ulps apart
        cases += [SelectCase(bits=bits, k=k) for k in (1, n // 9, n - 1)]
    return tuple(cases)
