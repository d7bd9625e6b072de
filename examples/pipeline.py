"""transformers' own pipeline over a routed model: image and question in, answer out.

``python examples/pipeline.py`` asks a tiny model with random weights, whose answer means nothing; ``--model
llava-hf/llava-1.5-7b-hf --image picture.jpg`` a checkpoint, or a Qwen2.5-VL, Qwen3-VL or Qwen3.5 by its name.
"""

from __future__ import annotations

from typing import Any

from common import parser_of, picture, prompt
from PIL import Image
from reroute_optimized import routed
from transformers import Pipeline, pipeline

QUESTION = "where is the red ball ?"
TASK = "image-text-to-text"


def load(name: str | None) -> Pipeline:
    """The pipeline of a checkpoint, or of the suite's tiny LLaVA."""
    if name is None:
        from reroute_conformance.tiny import tiny_llava, tiny_processor  # a checkpoint needs no suite

        return pipeline(TASK, model=tiny_llava(), processor=tiny_processor())
    return pipeline(TASK, model=name, dtype="auto", device_map="auto")


def ask(pipe: Pipeline, image: Image.Image, question: str, **options: Any) -> str:
    """The answer; a checkpoint is asked as its chat template has it."""
    if pipe.processor.chat_template is None:
        text = prompt(pipe.processor, question)
        (answer,) = pipe(images=[image], text=text, return_full_text=False, **options)
    else:
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        (answer,) = pipe(text=messages, return_full_text=False, **options)
    return str(answer["generated_text"])


def main() -> None:
    """Ask one question, and say what was run for it."""
    parser = parser_of(__doc__)
    parser.add_argument("--question", default=QUESTION)
    options = parser.parse_args()
    pipe = load(options.model)
    # the pipeline holds the model, and the model is what is routed
    with routed(pipe.model, options.schedule) as routing:
        answer = ask(pipe, picture(options.image), options.question, max_new_tokens=options.tokens)
    trace, plan = routing.traces[0], routing.plan[0]
    print(f"> {options.question}\n{answer}")
    print(
        f"{len(trace.visual_rows)} visual rows, {float(plan.average_visual):.1f} of them run in a block on average"
    )


if __name__ == "__main__":
    main()
