"""The cases measured from the paper's published release, as fixtures for whoever claims to agree with them.

What was measured, and the text decoders that it was measured with, are vectors of the suite; here are the models around
them: vision towers, prompts and pixels.
"""

from functools import cache
from pathlib import Path

import torch
from reroute_conformance.vectors import read_vector
from reroute_conformance.vectors.files import V1
from reroute_conformance.vectors.manifest import entries
from reroute_spec import Schedule
from safetensors.torch import load_file
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

FOLDER = Path(__file__).parent / "data" / "release"
CLASSES = {
    "llava": (LlavaForConditionalGeneration, LlavaConfig),
    "qwen25vl": (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig),
}
TENSORS = {family: load_file(FOLDER / f"{family}.safetensors") for family in CLASSES}
CASES = [read_vector(V1 / entry.place) for entry in entries() if entry.oracle == "release"]
IDS = [case.data["id"] for case in CASES]


def family(case):
    return case.data["id"].split("-")[0]


def sample(case):
    return int(case.data["id"].split("-")[1])


@cache
def model(family):
    kind, config = CLASSES[family]
    made = kind(config.from_pretrained(FOLDER / family)).eval()
    made.generation_config = GenerationConfig.from_pretrained(FOLDER / family)
    text = next(case for case in CASES if case.data["id"].startswith(family)).weights()
    made.lm_head.load_state_dict({"weight": text.pop("lm_head.weight")})
    missing, _ = made.model.language_model.load_state_dict(text, strict=False)
    assert all(name.endswith("_proj.bias") for name in missing)
    own = load_file(FOLDER / family / "own.safetensors")
    for name, parameter in made.named_parameters():
        if name.endswith("_proj.bias") and "language_model" in name:
            torch.nn.init.zeros_(parameter)
        elif "language_model" not in name and not name.startswith("lm_head"):
            parameter.data.copy_(own.pop(name.removeprefix("model.")))
    assert not own
    return made.requires_grad_(False)


def schedule(case):
    return Schedule.from_dict(case.data["inputs"]["schedule"])


def inputs(case):
    start = f"in.{sample(case)}."
    tensors = TENSORS[family(case)]
    found = {name.removeprefix(start): x for name, x in tensors.items() if name.startswith(start)}
    if "pixel_values.first_row" in found:
        found["pixel_values"] = _drawn_pixels(sample(case), found, found.pop("pixel_values.first_row"))
    return found


def _drawn_pixels(seed, found, first_row):
    """Qwen's pixels as they were drawn: after the prompt's words, from the sample's number as seed."""
    generator = torch.Generator().manual_seed(seed)
    words = int((found["input_ids"] < 190).sum())
    torch.randint(10, (words,), generator=generator)
    pixels = torch.randn(int(found["image_grid_thw"].prod()), 1176, generator=generator)
    assert torch.equal(pixels[0], first_row), "this torch draws other numbers than the one that measured"
    return pixels


def measured(case):
    """Selections per decision, rows per block, greedy tokens, and the logits of the last row or of all, as measured."""
    exact, tensors = case.data["expected"]["exact"], case.tensors
    trace = exact["traces"][0]
    selected = [decision["selected"] for decision in trace["decisions"]]
    logits = tensors.get("plain.requests.0.logits")
    if logits is None:
        logits = tensors["plain.requests.0.last_logits"][None]
    return selected, trace["kv_rows"], exact["greedy"][0], logits
