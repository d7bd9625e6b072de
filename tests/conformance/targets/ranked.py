"""A target for several processes, whose second one does what the file ``MOOD`` says."""

import os
import time
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist
from reroute_conformance.targets import ReferenceTarget


class Moody(ReferenceTarget):
    name = "moody"
    device = "cpu, two of them"

    def run(self, *args, **kwargs):
        return self.by_mood(super().run(*args, **kwargs))

    def by_mood(self, answers):
        mood = Path(os.environ["MOOD"]).read_text()
        if mood == "the same nan":
            return [{**answer, "trace": without_scores(answer["trace"])} for answer in answers]
        if dist.get_rank() == 0:
            return answers
        if mood == "dies":
            os._exit(17)
        if mood == "hangs":
            time.sleep(60)
        if mood == "refuses, and nobody comes":
            raise ZeroDivisionError("kernel launch")
        if mood == "other scores":
            return [{**answer, "trace": nudged(answer["trace"])} for answer in answers]
        if mood == "other logits":
            return [{**answer, "logits": answer["logits"] + 1} for answer in answers]
        return answers


class Meeting(Moody):
    """Its first process waits for the second in a collective."""

    def by_mood(self, answers):
        if Path(os.environ["MOOD"]).read_text() != "good" and dist.get_rank() == 0:
            dist.barrier()
        return super().by_mood(answers)


def without_scores(trace):
    """NaN for every score, on all processes."""
    spoilt = [replace(d, scores=tuple(float("nan") for _ in d.scores)) for d in trace.decisions]
    return replace(trace, decisions=tuple(spoilt))


def nudged(trace):
    """Scores of the first decision that are off by less than anybody measures, and decide alike."""
    first, *others = trace.decisions
    first = replace(first, scores=tuple(score * (1 + 1e-15) for score in first.scores))
    return replace(trace, decisions=(first, *others))


def moody():
    return Moody()


def meeting():
    return Meeting()


def broken():
    raise ImportError("no such kernel")
