"""Makes the vectors of a trained model, from the scores of its decisions and the first blocks of its decoder on two pictures.

``shared/trained.safetensors`` is given, not made: ``benchmarks/grounding/export_scores.py`` wrote it from one of the
models that are trained there. What follows from it is made again, in the fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from reroute_spec import SPEC_VERSION, DecoderShape, RerouteError
from reroute_spec.canonical import CanonicalConfig
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ..files import SHARED, V1, Vector
from .decoders import config_data
from .expected import exact_trace, expecting, routed, score_pairs, with_expected
from .fixed_order import FixedOrder

TRAINED = f"{SHARED}/trained.safetensors"
"""Holds ``scores.ID`` [n] float32 and ``k.ID`` [1], ``embeddings.B`` [S, 128] float32, and weights below ``decoder.``."""

DECODER = CanonicalConfig(DecoderShape(4, 128, 256, 4, 4, 32), vocab_size=49)
VISUAL = [False] + [True] * 144 + [False] * 4

_ROUTES = (
    ("trained-fastv", 0, "delete", ((1, "0.2"),), "RR-SCORE-002"),
    ("trained-flat", 0, "reroute", ((1, "0.2"), (3, "0.2")), "RR-SCORE-008 RR-BLOCK-001"),
    ("trained-few-rows", 1, "reroute", ((1, "0.03"), (2, "0.03"), (3, "0.03")), "RR-SCORE-008 RR-BLOCK-001"),
    ("trained-pyramid", 1, "reroute", ((1, "0.4"), (2, "0.2"), (3, "0.1")), "RR-POOL-005 RR-BLOCK-001"),
)
"""Id, picture, action, decisions as layer and ratio, and the rules it is about beside RR-SCORE-001."""


def trained_vectors(root: Path = V1) -> Iterator[Vector]:
    """All vectors of this module, from the file that is given.

    Raises:
        RerouteError: it is missing or damaged.
    """
    try:
        given = load((root / TRAINED).read_bytes())
    except (OSError, SafetensorError) as error:
        raise RerouteError(TRAINED, f"cannot be read ({error})", "take v1's files unchanged") from None
    for name in sorted(given):
        if name.startswith("scores."):
            id_ = name.removeprefix("scores.")
            yield _selection(id_, given[name], int(given[f"k.{id_}"]))
    for id_, picture, action, pairs, rules in _ROUTES:
        decisions = [{"layer": layer, "keep": keep} for layer, keep in pairs]
        yield _routed(id_, picture, {"action": action, "decisions": decisions}, rules, given)


def _selection(id_: str, found: Tensor, k: int) -> Vector:
    inputs = {"scores": {"float32_bits": found.view(torch.int32).tolist()}, "k": k}
    note = "the scores of a trained model's decision"
    return with_expected(Vector(_about(id_, "select", ["RR-SEL-001", "RR-SEL-004"], note, inputs)))


def _routed(
    id_: str, picture: int, schedule: dict[str, Any], rules: str, given: Mapping[str, Tensor]
) -> Vector:
    """A vector of one route, which holds scores and last logits only.

    The residuals of 149 rows of 128 channels would take a megabyte per vector.
    """
    place = f"../../{TRAINED}:"
    inputs = {
        "schedule": schedule,
        "decoder": {"config": config_data(DECODER), "weights": f"{place}decoder."},
        "requests": [{"embeddings": {"tensor": f"{place}embeddings.{picture}"}, "visual": VISUAL}],
    }
    note = "the first four blocks of a trained decoder, on a picture"
    data = _about(id_, "trace", ["RR-SCORE-001", *rules.split()], note, inputs)
    vector = Vector(data, shared={TRAINED: given})
    (plain, _), (oracle, _) = routed(vector, FixedOrder())
    values = score_pairs(plain, oracle)
    values["requests.0.last_logits"] = plain.logits[0][-1], oracle.logits[0][-1]
    return expecting(vector, exact={"traces": [exact_trace(trace) for trace in oracle.traces]}, close=values)


def _about(id_: str, kind: str, rules: list[str], note: str, inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": id_,
        "kind": kind,
        "rules": rules,
        "spec_version": SPEC_VERSION,
        "oracle": "reference",
        "note": note,
        "inputs": inputs,
    }
