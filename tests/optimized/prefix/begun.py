"""Prompts that begin alike, for every family: a beginning, and what requests go on with."""

from functools import cache

import torch
from reroute_conformance.tiny.qwen import qwen_inputs, tiny_qwen

from .. import tiny

QWEN = ("qwen2_5_vl", "qwen3_vl", "qwen3_5")
FAMILIES = ("llava", *QWEN)
_BY_COLUMN = ("input_ids", "attention_mask", "mm_token_type_ids")
_LLAVA = {"image": (4, 1, 3), "text": (4, 0, 3), "two images": (3, 2, 2)}
_PARTS = {
    "image": ["ttt", (1, 8, 8), "tt"],
    "text": ["tttttt"],
    "two images": ["tt", (1, 4, 8), "t", (1, 6, 4)],
    "video": ["tt", (2, 4, 8), "t"],
}


@cache
def model_of(family):
    model = tiny.llava() if family == "llava" else tiny_qwen(family)
    model.generation_config.eos_token_id = None
    return model


def beginning_of(family, kind="image", seed=0):
    """What the processor returns for system text and, but for ``text``, images or a video."""
    if family == "llava":
        return tiny.llava_inputs([tiny.row(*_LLAVA[kind], seed)], seed=seed)
    return qwen_inputs(family, [_PARTS[kind]], seed=seed)


def question(family, words, seed=1, image=False):
    """So many words, with or without an image of its own before them."""
    if family == "llava":
        return tiny.llava_inputs([tiny.row(0, int(image), words, seed)[1:]], seed=seed)
    return qwen_inputs(family, [[*([(1, 4, 4)] if image else []), "t" * words]], seed=seed)


def questions(family):
    """Of different lengths: text, an image of its own, a single row."""
    return [question(family, 6, 1), question(family, 3, 2, image=True), question(family, 1, 3)]


def joined(beginning, asked, side="left"):
    """The batch of ``beginning`` and each of ``asked``, padded on ``side``."""
    requests = [
        {
            name: torch.cat(
                [part[name] for part in (beginning, own) if name in part], int(name in _BY_COLUMN)
            )
            for name in {**beginning, **own}
        }
        for own in asked
    ]
    width = max(request["input_ids"].shape[1] for request in requests)
    inputs = {}
    for name in {name for request in requests for name in request}:
        own = [request[name] for request in requests if name in request]
        if name in _BY_COLUMN:
            pads = [(width - x.shape[1], 0) if side == "left" else (0, width - x.shape[1]) for x in own]
            own = [torch.nn.functional.pad(x, pad) for x, pad in zip(own, pads, strict=True)]
        inputs[name] = torch.cat(own)
    return inputs
