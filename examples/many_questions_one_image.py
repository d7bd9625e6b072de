"""Many questions about one image, routed: what comes before the first decision is computed once, and every question starts after it.

``python examples/many_questions_one_image.py`` asks a tiny model with random weights, whose answers mean nothing;
``--model llava-hf/llava-1.5-7b-hf --image picture.jpg`` a checkpoint, or a Qwen2.5-VL, Qwen3-VL or Qwen3.5 by its name.
"""

from __future__ import annotations

from typing import Any

import torch
from common import load, parser_of, picture, prompt
from reroute_optimized import routed

QUESTIONS = (
    "where is the red ball ?",
    "what is under it ?",
    "describe the scene",
    "how many blue box are there ?",
    "what color is the triangle on the right ?",
)


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
    parser = parser_of(__doc__)
    parser.add_argument("--question", action="append", help="any number of them; five unless given")
    parser.add_argument("--batch", type=int, default=2)
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
