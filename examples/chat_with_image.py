"""A conversation about an image, routed: questions in turns, a second image later, one cache from beginning to end.

``python examples/chat_with_image.py`` runs a tiny model with random weights, whose answers mean nothing;
``--model llava-hf/llava-1.5-7b-hf --image picture.jpg`` a checkpoint, or a Qwen2.5-VL, Qwen3-VL or Qwen3.5 by its name.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from PIL import Image
from reroute_optimized import Routed, routed
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache

QUESTIONS = ("where is the red ball ?", "what is under it ?")


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


def first_prompt(processor: Any, question: str, image: Image.Image) -> Any:
    """What the processor makes of an image and a question, as the checkpoint's chat template has it."""
    if processor.chat_template is None:
        text = f"user : <image> {question} assistant :"
    else:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
    return processor(images=[image], text=text, return_tensors="pt")


def next_prompt(processor: Any, question: str) -> Any:
    """The rows that a later question adds."""
    if processor.chat_template is None:
        text = f"user : {question} assistant :"
    else:
        messages = [{"role": "user", "content": [{"type": "text", "text": question}]}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor.tokenizer(text, return_tensors="pt", add_special_tokens=False)


def answer(model: Any, inputs: Any, cache: DynamicCache, most: int) -> list[int]:
    """Greedy tokens after new rows on top of ``cache``, which then holds them and the answer."""
    ends = model.generation_config.eos_token_id
    ends = set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
    inputs = {name: value for name, value in inputs.items() if name != "attention_mask"}
    logits = model(**inputs, past_key_values=cache, logits_to_keep=1).logits
    tokens: list[int] = []
    while len(tokens) < most:
        token = logits[:, -1].argmax(-1, keepdim=True)
        tokens.append(int(token))
        logits = model(input_ids=token, past_key_values=cache, logits_to_keep=1).logits
        if tokens[-1] in ends:
            break
    return tokens


def tell(routing: Routed, cache: DynamicCache) -> None:
    """What the last turn with an image decided, and what blocks hold by now."""
    trace = routing.traces[0]
    held = [cache.get_seq_length(layer) for layer in range(len(trace.kv_rows))]
    print(
        f"  {trace.num_rows} rows, of which {len(trace.visual_rows)} visual; blocks hold {held[0]} to {min(held)}"
    )
    for decision in trace.decisions:
        kept, back = len(decision.selected), len(decision.reentered)
        print(f"  block {decision.layer}: {kept} visual rows run, {back} of them re-enter")


@torch.no_grad()
def main() -> None:
    """Two questions about one image, then one about another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a checkpoint's name or path; a tiny model unless given")
    parser.add_argument("--image", help="a picture's path; a drawn one unless given")
    parser.add_argument("--schedule", default="reroute-fastv-192", help="a preset, or a JSON or YAML file")
    parser.add_argument("--tokens", type=int, default=8, help="most tokens of an answer")
    options = parser.parse_args()
    model, processor = load(options.model)
    image, cache = picture(options.image), DynamicCache(config=model.config)
    with routed(model, options.schedule) as routing:
        turns = [
            (QUESTIONS[0], first_prompt(processor, QUESTIONS[0], image)),
            (QUESTIONS[1], next_prompt(processor, QUESTIONS[1])),
            ("and in this one ?", first_prompt(processor, "and in this one ?", image.rotate(180))),
        ]
        for question, inputs in turns:
            tokens = answer(model, inputs.to(model.device), cache, options.tokens)
            print(f"\n> {question}\n{processor.decode(tokens, skip_special_tokens=True)}")
            tell(routing, cache)


if __name__ == "__main__":
    main()
