"""What the examples share: their options, a model with its processor, a picture, and a question as a prompt."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor


def parser_of(
    description: str | None, schedule: str = "reroute-fastv-192", *, image: bool = True
) -> ArgumentParser:
    """The options that all examples take; ``image`` says whether one picture is asked for."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--model", help="a checkpoint's name or path; a tiny model unless given")
    if image:
        parser.add_argument("--image", help="a picture's path; a drawn one unless given")
    parser.add_argument("--schedule", default=schedule, help="a preset, or a JSON or YAML file")
    parser.add_argument("--tokens", type=int, default=8, help="most tokens of an answer")
    return parser


def load(name: str | None, place: Any = "auto") -> tuple[Any, Any]:
    """Model and processor: a checkpoint on the devices of ``place``, or the suite's tiny LLaVA."""
    if name is None:
        from reroute_conformance.tiny import tiny_llava, tiny_processor  # a checkpoint needs no suite

        return tiny_llava(), tiny_processor()
    model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", device_map=place)
    return model.eval(), AutoProcessor.from_pretrained(name)


def picture(path: str | None) -> Image.Image:
    """The caller's image, or a drawn one."""
    if path is None:
        from reroute_conformance.tiny import picture as drawn  # an image of one's own needs no suite

        return drawn()
    return Image.open(path).convert("RGB")


def prompt(processor: Any, question: str, *, image: bool = True) -> str:
    """A question, after one image where ``image`` says so, as the checkpoint's chat template has it."""
    if processor.chat_template is None:
        return f"user : {'<image> ' if image else ''}{question} assistant :"
    content = [{"type": "image"}] if image else []
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    text: str = processor.apply_chat_template(messages, add_generation_prompt=True)
    return text
