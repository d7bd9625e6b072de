"""Real scores for the vectors: ``python -m benchmarks.grounding.export_scores``, then ``vlm-reroute vectors regenerate``.

Writes the one file that the vectors of a trained model are made of: the scores of its decisions, what two pictures give its decoder,
and the first blocks of the decoder. Validation pictures, so no test item is in a vector. v1 is append-only: once a release has these
vectors, another file takes another name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from reroute_conformance.vectors.files import V1, write_tensors
from reroute_conformance.vectors.making.trained import DECODER, TRAINED
from reroute_reference import run
from reroute_spec.canonical import CanonicalConfig
from torch import Tensor

from .items import Item, box_inputs, items
from .model import load, shape_of
from .options import whole
from .questions import VOCABULARY
from .routes import VISUAL, Route, routes

_METHODS = ("reroute-fastv", "pdrop")  # every candidate at every depth, and those that survived
_BUDGETS = (Fraction(20, 100),)
_PROMPTS = 2  # that trace vectors are made of


def scores_of(model: Any, asked: Sequence[Item], found: Sequence[Route]) -> dict[str, Tensor]:
    """The scores of every decision and how many it selects, by names that are ids of vectors.

    Args:
        model: a trained one.
        asked, found: items, and routes to ask them under.
    """
    made = {}
    for number, item in enumerate(asked):
        for route in found:
            trace = run(model, box_inputs([item]), route.schedule).traces[0]
            for record in trace.decisions:
                name = f"trained-{route.method}-{number}-block-{record.layer}"
                made[f"scores.{name}"] = torch.tensor(record.scores, dtype=torch.float32)
                made[f"k.{name}"] = torch.tensor([len(record.selected)], dtype=torch.int32)
    return made


def decoder_config(model: Any) -> CanonicalConfig:
    """The decoder as a canonical one, cut off after the blocks that vectors run."""
    text = model.config.text_config
    return CanonicalConfig(
        shape=replace(shape_of(model), num_layers=DECODER.shape.num_layers),
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
    return {name: states[name] for name in decoder_config(model).weight_shapes()}


@torch.no_grad()
def embeddings_of(model: Any, item: Item) -> Tensor:
    """The prompt's rows with the picture in place, [S, d]."""
    given = box_inputs([item])
    rows = model.get_input_embeddings()(given["input_ids"])[0].clone()
    rows[torch.tensor(VISUAL)] = model.model.get_image_features(given["pixel_values"]).pooler_output[0]
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vectors", type=Path, default=V1, help="folder of vectors")
    parser.add_argument("--weights", type=Path, default=Path(__file__).parent / "weights" / "seed-0")
    parser.add_argument("--items", type=whole(_PROMPTS), default=4, help="pictures whose scores are taken")
    options = parser.parse_args(arguments)
    try:
        model = load(options.weights)
    except OSError as error:
        sys.exit(f"--weights {options.weights}: cannot be read ({error})")
    if decoder_config(model) != DECODER:
        sys.exit(f"--weights {options.weights}: {decoder_config(model)}; vectors are of {DECODER}")
    found = [route for route in routes(shape_of(model), _BUDGETS) if route.method in _METHODS]
    asked = items("validation", options.items)
    made = scores_of(model, asked, found)
    made |= {
        f"embeddings.{number}": embeddings_of(model, item) for number, item in enumerate(asked[:_PROMPTS])
    }
    made |= {f"decoder.{name}": weight for name, weight in decoder_weights(model).items()}
    write_tensors(made, options.vectors / TRAINED)
    print(options.vectors / TRAINED)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
