"""Captions of a folder of pictures in batches, routed: every picture decides for itself, whatever it is padded with.

``python examples/batch_captioning.py`` captions drawn pictures with a tiny model of random weights, whose captions mean
nothing; ``--model llava-hf/llava-1.5-7b-hf --pictures FOLDER`` takes a checkpoint, or a Qwen2.5-VL, Qwen3-VL or Qwen3.5.
``accelerate launch --num_processes 2 examples/batch_captioning.py`` divides the pictures: every process has a whole model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from common import load, parser_of, picture, prompt
from PIL import Image
from reroute_optimized import routed

QUESTION = "describe the scene"


def processes() -> PartialState:
    """Those that accelerate has launched, of which this one is one."""
    return PartialState(cpu=not torch.accelerator.is_available())


def pictures(folder: str | None) -> list[tuple[str, Image.Image]]:
    """Name and picture of every image in ``folder``, or three drawn ones."""
    if folder is None:
        return [(f"drawn {angle}", picture(None).rotate(angle)) for angle in (0, 90, 180)]
    paths = sorted(
        p for p in Path(folder).iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
    )
    return [(path.name, Image.open(path).convert("RGB")) for path in paths]


def batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    """``size`` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


@torch.no_grad()
def main() -> None:
    """Caption everything, and say what was kept of it."""
    parser = parser_of(__doc__, "reroute-fastv-64", image=False)
    parser.add_argument("--pictures", help="a folder; drawn pictures unless given")
    parser.add_argument("--batch", type=int, default=2)
    options = parser.parse_args()
    state = processes()
    place: Any = "auto" if state.num_processes == 1 else {"": state.device}
    model, processor = load(options.model, place)
    processor.tokenizer.padding_side = "left"  # generate goes on from the last column
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
