"""A conversation about an image, routed: questions in turns, a second image later, one cache from beginning to end.

``python examples/chat_with_image.py`` runs a tiny model with random weights, whose answers mean nothing;
``--model llava-hf/llava-1.5-7b-hf --image picture.jpg`` a checkpoint, or a Qwen2.5-VL, Qwen3-VL or Qwen3.5 by its name.
"""

from __future__ import annotations

from typing import Any

import torch
from common import load, parser_of, picture, prompt
from reroute_optimized import Routed, routed
from transformers import DynamicCache

QUESTIONS = ("where is the red ball ?", "what is under it ?")


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
        f"  last image: {trace.num_rows} rows, {len(trace.visual_rows)} visual; blocks now hold {held[0]} to {min(held)}"
    )
    for decision in trace.decisions:
        kept, back = len(decision.selected), len(decision.reentered)
        print(f"  block {decision.layer}: {kept} visual rows run, {back} of them re-enter")


@torch.no_grad()
def main() -> None:
    """Two questions about one image, then one about another."""
    options = parser_of(__doc__).parse_args()
    model, processor = load(options.model)
    image, cache = picture(options.image), DynamicCache(config=model.config)

    def about(question: str, image: Any) -> Any:
        text = prompt(processor, question)
        return processor(images=[image], text=text, return_tensors="pt")

    def further(question: str) -> Any:
        text = prompt(processor, question, image=False)
        return processor.tokenizer(text, return_tensors="pt", add_special_tokens=False)

    with routed(model, options.schedule) as routing:
        turns = [
            (QUESTIONS[0], about(QUESTIONS[0], image)),
            (QUESTIONS[1], further(QUESTIONS[1])),
            ("and in this one ?", about("and in this one ?", image.rotate(180))),
        ]
        for question, inputs in turns:
            tokens = answer(model, inputs.to(model.device), cache, options.tokens)
            print(f"\n> {question}\n{processor.decode(tokens, skip_special_tokens=True)}")
            tell(routing, cache)


if __name__ == "__main__":
    main()
