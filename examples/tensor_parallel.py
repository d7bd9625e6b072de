"""One model over several processes: transformers divides its heads, and every process takes the same decisions.

``torchrun --nproc-per-node 2 examples/tensor_parallel.py`` runs a tiny model of random weights, on CPUs too, whose answer
means nothing; ``--model llava-hf/llava-1.5-13b-hf --image photo.jpg`` a checkpoint, on a GPU per process where there are
any.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from common import parser_of, picture, prompt
from reroute_optimized import routed
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.distributed import DistributedConfig

QUESTION = "where is the red ball ?"


@contextmanager
def tiny_checkpoint() -> Iterator[str]:
    """A folder with the suite's tiny LLaVA, which the first process writes and all read."""
    from reroute_conformance.tiny import tiny_llava, tiny_processor  # a checkpoint needs no suite

    with TemporaryDirectory() as own:
        shared = [own]
        dist.broadcast_object_list(shared, src=0)
        if dist.get_rank() == 0:
            tiny_llava().save_pretrained(own)
            tiny_processor().save_pretrained(own)
        dist.barrier()
        yield shared[0]
        dist.barrier()  # whoever is ready first must not take it from the others


def load(name: str) -> tuple[Any, Any]:
    """This process's part of the model, and the processor."""
    config = DistributedConfig(tp_size=dist.get_world_size())
    model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", distributed_config=config)
    return model.eval(), AutoProcessor.from_pretrained(name)


@torch.no_grad()
def main() -> None:
    """Ask one question on all processes, and compare what they decided."""
    options = parser_of(__doc__).parse_args()
    # how long one process waits for another before it gives up, with an error; transformers' own group waits two hours
    dist.init_process_group(timeout=timedelta(minutes=2))
    if options.model is None:
        with tiny_checkpoint() as folder:
            model, processor = load(folder)
    else:
        model, processor = load(options.model)
    text = prompt(processor, QUESTION)
    inputs = processor(images=[picture(options.image)], text=text, return_tensors="pt").to(model.device)
    with routed(model, options.schedule) as routing:
        tokens = model.generate(**inputs, max_new_tokens=options.tokens, do_sample=False)
    decided = [(d.layer, d.selected, d.scores) for d in routing.traces[0].decisions]
    everybody: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, (decided, routing.shards))
    if dist.get_rank() == 0:
        for rank, (decisions, shards) in enumerate(everybody):
            heads = (
                f"heads divided among {shards}" if shards > 1 else "the whole model: no plan for this family"
            )
            print(f"process {rank}, {heads}")
            for layer, selected, scores in decisions:
                print(f"  block {layer}: {len(selected)} of {len(scores)} rows, the best {max(scores):.6f}")
        alike = all(decisions == decided for decisions, _ in everybody)
        print("every process decided alike, bit for bit" if alike else "THE PROCESSES DISAGREE")
        print(processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    # gloo's threads live on after destroy; one that still held the last answer when Python ends would abort the process
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
