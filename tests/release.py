"""The cases measured from the paper's published release, as fixtures for whoever claims to agree with them."""

import json
from pathlib import Path

from reroute_spec import Decision, Schedule
from safetensors.torch import load_file

FOLDER = Path(__file__).parent / "data" / "release"
TENSORS = load_file(FOLDER / "llava.safetensors")
CASES = json.loads((FOLDER / "llava.json").read_text())["cases"]
IDS = [f"{case['sample']}-{case['schedule']}" for case in CASES]


def model():
    from transformers import LlavaForConditionalGeneration

    return LlavaForConditionalGeneration.from_pretrained(FOLDER / "llava").eval()


def schedule(case):
    action = "delete" if case["action"] == "physical_delete" else "reroute"
    pairs = zip(case["decision_layers"], case["keep_ratios"], strict=True)
    return Schedule(action, tuple(Decision(layer, str(ratio)) for layer, ratio in pairs))


def inputs(case):
    names = ("input_ids", "attention_mask", "pixel_values")
    return {name: TENSORS[f"in.{case['sample']}.{name}"] for name in names}


def last_logits(case):
    return TENSORS[f"out.{case['sample']}.{case['schedule']}.last_logits"]


def selections(case, trace):
    """Selections in the release's terms: under ``delete``, places among the rows still alive."""
    deleting = case["action"] == "physical_delete"
    return {
        str(record.layer): [record.pool.index(row) if deleting else row for row in record.selected]
        for record in trace.decisions
    }
