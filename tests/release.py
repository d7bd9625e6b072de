"""The cases measured from the paper's published release, as fixtures for whoever claims to agree with them."""

import json
from functools import cache
from pathlib import Path

import torch
from reroute_spec import Decision, Schedule
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "data" / "release"
FAMILIES = ("llava", "qwen25vl")
TENSORS = {family: load_file(FOLDER / f"{family}.safetensors") for family in FAMILIES}
CASES = [
    {**case, "family": family}
    for family in FAMILIES
    for case in json.loads((FOLDER / f"{family}.json").read_text())["cases"]
]
IDS = [f"{case['family']}-{case['sample']}-{case['schedule']}" for case in CASES]


@cache
def model(family):
    if family == "llava":
        from transformers import LlavaForConditionalGeneration

        return LlavaForConditionalGeneration.from_pretrained(FOLDER / "llava").eval()
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    # both models were drawn from one seed: their text blocks are the same tensors, kept once
    blocks = model("llava").model.language_model.state_dict()
    qwen = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(FOLDER / "qwen25vl")).eval()
    missing, _ = qwen.model.language_model.load_state_dict(blocks, strict=False)
    assert all(name.endswith("_proj.bias") for name in missing)
    own = load_file(FOLDER / "qwen25vl" / "own.safetensors")
    for name, parameter in qwen.named_parameters():
        if name.endswith("_proj.bias") and "language_model" in name:
            torch.nn.init.zeros_(parameter)
        elif "language_model" not in name:
            parameter.data.copy_(own.pop(name.removeprefix("model.")))
    assert not own
    return qwen.requires_grad_(False)


def schedule(case):
    action = "delete" if case["action"] == "physical_delete" else "reroute"
    pairs = zip(case["decision_layers"], case["keep_ratios"], strict=True)
    return Schedule(action, tuple(Decision(layer, str(ratio)) for layer, ratio in pairs))


def inputs(case):
    start = f"in.{case['sample']}."
    tensors = TENSORS[case["family"]]
    found = {name.removeprefix(start): x for name, x in tensors.items() if name.startswith(start)}
    if "pixel_values.first_row" in found:
        found["pixel_values"] = _drawn_pixels(case["sample"], found, found.pop("pixel_values.first_row"))
    return found


def _drawn_pixels(seed, found, first_row):
    """Qwen's pixels as they were drawn: after the prompt's words, from the sample's number as seed."""
    generator = torch.Generator().manual_seed(seed)
    words = int((found["input_ids"] < 190).sum())
    torch.randint(10, (words,), generator=generator)
    pixels = torch.randn(int(found["image_grid_thw"].prod()), 1176, generator=generator)
    assert torch.equal(pixels[0], first_row), "this torch draws other numbers than the one that measured"
    return pixels


def output(case, name):
    """A measured output, or None where it is not kept."""
    return TENSORS[case["family"]].get(f"out.{case['sample']}.{case['schedule']}.{name}")


def selections(case, trace):
    """Selections in the release's terms: under ``delete``, places among the rows still alive."""
    deleting = case["action"] == "physical_delete"
    return {
        str(record.layer): [record.pool.index(row) if deleting else row for row in record.selected]
        for record in trace.decisions
    }
