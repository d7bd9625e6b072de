"""Many questions about one image, routed: what comes before the first decision is computed once, and every question starts after it.

``python examples/many_questions_one_image.py`` asks a tiny model with random weights, whose answers mean nothing;
``--model llava-hf/llava-1.5-7b-hf --image picture.jpg`` a checkpoint, or a Qwen2.5-VL, Qwen3-VL or Qwen3.5 by its name.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from PIL import Image
from reroute_optimized import routed
from transformers import AutoModelForImageTextToText, AutoProcessor

QUESTIONS = (
    "where is the red ball ?",
    "what is under it ?",
    "describe the scene",
    "how many blue box are there ?",
    "what color is the triangle on the right ?",
)


def load(name: str | None) -> tuple[Any, Any]:
    """Model and processor: a checkpoint, or the suite's tiny LLaVA."""
    if name is None:
        from reroute_conformance.tiny import tiny_llava, tiny_processor

        return tiny_llava(), tiny_processor()
    model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", device_map="auto")
    return model.eval(), AutoProcessor.from_pretrained(name)


def picture(path: str | None) -> Image.Image:
    """The caller's image, or a drawn one."""
    if path is None:
        from reroute_conformance.tiny import picture as drawn

        return drawn()
    return Image.open(path).convert("RGB")


def prompt(processor: Any, question: str) -> str:
    """An image and then a question, as the checkpoint's chat template has it."""
    if processor.chat_template is None:
        return f"user : <image> {question} assistant :"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return text


def beginning(inputs: Any, placeholder: int) -> dict[str, Any]:
    """Of a prompt [1, S] all up to and with its image, whatever is asked then."""
    ids = inputs["input_ids"]
    rows = int((ids[0] == placeholder).nonzero()[-1]) + 1
    return {
        name: tensor[:, :rows] if tensor.shape[:2] == ids.shape else tensor for name, tensor in inputs.items()
    }


@torch.no_grad()
def main() -> None:
    """Ask everything about one image, in batches, and say what was saved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a checkpoint's name or path; a tiny model unless given")
    parser.add_argument("--image", help="a picture's path; a drawn one unless given")
    parser.add_argument("--question", action="append", help="any number of them; five unless given")
    parser.add_argument("--schedule", default="reroute-fastv-192", help="a preset, or a JSON or YAML file")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8, help="most tokens of an answer")
    options = parser.parse_args()
    model, processor = load(options.model)
    processor.tokenizer.padding_side = "left"  # generate goes on from the last column
    image, questions = picture(options.image), options.question or list(QUESTIONS)

    def inputs_of(asked: list[str]) -> Any:
        texts = [prompt(processor, question) for question in asked]
        images = [image] * len(asked)
        return processor(images=images, text=texts, padding=True, return_tensors="pt").to(model.device)

    with routed(model, options.schedule) as routing:
        prefix = routing.prefix(beginning(inputs_of(questions[:1]), model.config.image_token_id))
        with prefix:
            for start in range(0, len(questions), options.batch):
                asked = questions[start : start + options.batch]
                inputs = inputs_of(asked)
                tokens = model.generate(**inputs, max_new_tokens=options.tokens, do_sample=False)
                answers = processor.batch_decode(
                    tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
                )
                for question, answer in zip(asked, answers, strict=True):
                    print(f"> {question}\n{answer}")
        saved = prefix.saved
        print(
            f"\n{prefix.served} questions started after {prefix.num_rows} rows in each of the first {len(saved.blocks)} blocks:"
            f" {prefix.served * saved.rows} rows and {prefix.served * saved.flops:.3g} FLOPs of the decoder saved;"
            " the vision tower ran once"
        )


if __name__ == "__main__":
    main()
