"""Real scores for the vectors: ``python -m benchmarks.grounding.export_scores FOLDER``.

Writes, in the form of spec/FORMATS.md, ``select/ID`` (the scores of a trained model's decisions as float32 bits, and what is selected) and
``trace/ID`` (one of its prompts from embeddings to logits, the decoder's weights shared). Validation pictures, so no test item is in a
vector. Nothing is added to ``v1`` by this: its manifest is made by ``vlm-reroute vectors regenerate``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reroute_conformance.vectors.files import Vector, write_vector
from reroute_conformance.vectors.make import with_expected
from reroute_reference import run
from reroute_spec import SPEC_VERSION
from reroute_spec.canonical import CanonicalConfig
from safetensors.torch import save_file
from torch import Tensor

from .items import Item, inputs, items
from .model import load, shape_of
from .questions import VOCABULARY
from .routes import VISUAL, Route, routes

SHARED = "grounding"
_METHODS = ("fastv", "reroute-fastv", "pdrop", "reroute-pdrop")
_BUDGETS = (Fraction(20, 100), Fraction(6, 100))


def select_vectors(model: Any, asked: Sequence[Item], found: Sequence[Route]) -> Iterator[Vector]:
    """A vector per decision of every item and route."""
    for number, item in enumerate(asked):
        for route in found:
            trace = run(model, inputs([item.scene], [item.box]), route.schedule).traces[0]
            for record in trace.decisions:
                bits = np.array(record.scores, dtype=np.float32).view(np.int32).tolist()
                data = {
                    "id": f"{_slug(route)}-{number}-at-{record.layer}",
                    "kind": "select",
                    "rules": ["RR-SEL-001", "RR-SEL-002", "RR-SEL-003"],
                    "spec_version": SPEC_VERSION,
                    "oracle": "reference",
                    "note": f"scores of a trained model, {route.name}, block {record.layer}",
                    "inputs": {"scores": {"float32_bits": bits}, "k": len(record.selected)},
                }
                yield with_expected(Vector(data))


def trace_vectors(model: Any, asked: Sequence[Item], found: Sequence[Route]) -> Iterator[Vector]:
    """A vector per item and route, on the weights of :func:`decoder_weights`."""
    shared = {f"shared/{SHARED}.safetensors": decoder_weights(model)}
    for number, item in enumerate(asked):
        embeddings = _embeddings(model, item)
        for route in found:
            data = {
                "id": f"{_slug(route)}-{number}",
                "kind": "trace",
                "rules": ["RR-SCORE-001", "RR-SEL-002", "RR-BLOCK-001"],
                "spec_version": SPEC_VERSION,
                "oracle": "reference",
                "note": f"a trained model on a picture, {route.name}",
                "inputs": {
                    "schedule": route.schedule.to_dict(),
                    "decoder": {
                        "config": decoder_config(model).to_dict(),
                        "weights": f"../../shared/{SHARED}.safetensors:",
                    },
                    "requests": [{"embeddings": {"tensor": "requests.0.embeddings"}, "visual": VISUAL}],
                },
            }
            yield with_expected(Vector(data, {"requests.0.embeddings": embeddings}, shared), caches=False)


def decoder_config(model: Any) -> CanonicalConfig:
    """The decoder as a canonical one."""
    text = model.config.text_config
    return CanonicalConfig(
        shape=shape_of(model),
        vocab_size=len(VOCABULARY),
        rms_norm_eps=text.rms_norm_eps,
        rope_theta=text.rope_parameters["rope_theta"],
    )


def decoder_weights(model: Any) -> dict[str, Tensor]:
    """Its weights under their canonical names."""
    states = {
        name.removeprefix("model.language_model."): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(("model.language_model.", "lm_head."))
    }
    return {name: states[name].clone() for name in decoder_config(model).weight_shapes()}


@torch.no_grad()
def _embeddings(model: Any, item: Item) -> Tensor:
    """The prompt's rows with the picture in place, [S, d]."""
    given = inputs([item.scene], [item.box])
    rows = model.get_input_embeddings()(given["input_ids"])[0].clone()
    rows[torch.tensor(VISUAL)] = model.model.get_image_features(given["pixel_values"]).pooler_output[0]
    return rows


def _slug(route: Route) -> str:
    return f"grounding-{route.method}-{float(100 * route.budget):g}"


def main(arguments: list[str] | None = None) -> int:
    """Write both kinds of vectors, the decoder's weights beside them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", type=Path, default=Path(__file__).parent / "weights" / "seed-0")
    parser.add_argument("--items", type=int, default=2)
    options = parser.parse_args(arguments)
    model = load(options.weights)
    found = [route for route in routes(shape_of(model), _BUDGETS) if route.method in _METHODS]
    asked = items("validation", options.items)
    (options.folder / "shared").mkdir(parents=True, exist_ok=True)
    save_file(decoder_weights(model), options.folder / "shared" / f"{SHARED}.safetensors")
    for vectors in (select_vectors(model, asked, found), trace_vectors(model, asked, found)):
        for vector in vectors:
            write_vector(vector, options.folder / vector.data["kind"] / vector.data["id"])
    print(options.folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
