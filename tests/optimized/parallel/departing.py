"""One of two processes, of which the second dies, or stays away, in the middle of a routed forward. Run by ``launch``."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from reroute_optimized import routed
from reroute_spec import Decision, RerouteError, Schedule
from transformers import LlavaForConditionalGeneration
from transformers.distributed import DistributedConfig

FOLDER, HOW, RANK = Path(sys.argv[1]), sys.argv[2], int(os.environ["RANK"])
PATIENCE = 3.0 if HOW == "stays away" else 90.0


def leave(*_):
    if HOW == "dies":
        os._exit(17)
    time.sleep(600)


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=os.environ["RENDEZVOUS"],
        rank=RANK,
        world_size=2,
        timeout=timedelta(seconds=PATIENCE),
    )
    model = LlavaForConditionalGeneration.from_pretrained(
        FOLDER / "llava", distributed_config=DistributedConfig(tp_size=2)
    ).eval()
    inputs = torch.load(FOLDER / "inputs.pt")["llava"]["prefill"]
    schedule = Schedule("reroute", (Decision(3, "0.5"),))
    with routed(model, schedule) as result:
        model(**inputs)  # all are there
    attention = model.model.language_model.layers[3].self_attn
    if RANK == 1:
        # the score's queries are projected first at the decision: the other then waits in the score's own reduction
        attention.q_proj.register_forward_pre_hook(leave)
    started = time.monotonic()
    try:
        with routed(model, schedule):
            model.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0)
    except RerouteError as error:
        print(f"after {time.monotonic() - started:.1f} s: {error}")
        assert len(result.traces) == 2
        os._exit(0)  # no goodbyes: nobody is there to hear them


main()
