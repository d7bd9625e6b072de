"""Captions of a folder of pictures in batches, routed: every picture decides for itself, whatever it is padded with.

``python examples/batch_captioning.py`` captions drawn pictures with a tiny model of random weights, whose captions mean
nothing; ``--model llava-hf/llava-1.5-7b-hf --pictures FOLDER`` takes a checkpoint, or a Qwen2.5-VL, Qwen3-VL or Qwen3.5.
``accelerate launch --num_processes 2 examples/batch_captioning.py`` divides the pictures: every process has a whole model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from reroute_optimized import routed
from transformers import AutoModelForImageTextToText, AutoProcessor

QUESTION = "describe the scene"


def processes() -> PartialState:
    """Those that accelerate has launched, of which this one is one."""
    return PartialState(cpu=not torch.accelerator.is_available())


def load(name: str | None) -> tuple[Any, Any]:
    """Model and processor: a checkpoint, or the suite's tiny LLaVA."""
    if name is None:
        from reroute_conformance.tiny import tiny_llava, tiny_processor

        return tiny_llava(), tiny_processor()
    state = processes()
    place: Any = "auto" if state.num_processes == 1 else {"": state.device}
    model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", device_map=place)
    return model.eval(), AutoProcessor.from_pretrained(name)


def pictures(folder: str | None) -> list[tuple[str, Image.Image]]:
    """Name and picture of every image in ``folder``, or three drawn ones."""
    if folder is None:
        from reroute_conformance.tiny import picture

        return [(f"drawn {angle}", picture().rotate(angle)) for angle in (0, 90, 180)]
    paths = sorted(
        p for p in Path(folder).iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
    )
    return [(path.name, Image.open(path).convert("RGB")) for path in paths]


def batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    """``size`` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def prompt(processor: Any, question: str) -> str:
    """One image and a question, as the checkpoint's chat template has it."""
    if processor.chat_template is None:
        return f"user : <image> {question} assistant :"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return text


@torch.no_grad()
def main() -> None:
    """Caption everything, and say what was kept of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a checkpoint's name or path; a tiny model unless given")
    parser.add_argument("--pictures", help="a folder; drawn pictures unless given")
    parser.add_argument("--schedule", default="reroute-fastv-64", help="a preset, or a JSON or YAML file")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8)
    options = parser.parse_args()
    model, processor = load(options.model)
    processor.tokenizer.padding_side = "left"  # generate goes on from the last column
    state = processes()
    if state.num_processes > 1:
        print(f"process {state.process_index} of {state.num_processes}")
    todo = list(batches(pictures(options.pictures), options.batch))
    with (
        state.split_between_processes(todo) as mine,
        routed(model, options.schedule) as routing,
    ):
        for batch in mine:
            names, images = [name for name, _ in batch], [image for _, image in batch]
            # questions of different lengths, as a service gets them
            texts = [prompt(processor, QUESTION + " ," * index) for index in range(len(batch))]
            inputs = processor(images=images, text=texts, padding=True, return_tensors="pt").to(model.device)
            tokens = model.generate(**inputs, max_new_tokens=options.tokens, do_sample=False)
            new = tokens[:, inputs["input_ids"].shape[1] :]
            captions = processor.batch_decode(new, skip_special_tokens=True)
            for name, caption, trace, plan in zip(names, captions, routing.traces, routing.plan, strict=True):
                average = float(plan.average_visual)
                print(f"{name}: {caption}")
                print(
                    f"  {len(trace.visual_rows)} visual rows, {average:.1f} of them run in a block on average"
                )


if __name__ == "__main__":
    main()
