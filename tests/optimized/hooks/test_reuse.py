"""One model object serves many requests, some of which fail: nothing of one reaches the next."""

import random
import threading

import pytest
import torch
from reroute_conformance.tiny.qwen import qwen_inputs, tiny_qwen
from reroute_optimized import apply, remove, routed
from reroute_spec import Decision, RerouteError, Schedule

from .. import tiny

TWO = (Decision(3, "0.5"), Decision(5, "0.25"))


class BrokenError(Exception):
    """What a block raises."""


def llava():
    images = [
        tiny.llava_inputs([tiny.row(4, 1, 5, seed), tiny.row(2, 2, 3, seed + 1)], seed=seed)
        for seed in range(2)
    ]
    return tiny.llava(), [*images, tiny.llava_inputs([tiny.row(6, 0, 0, 5)])], (2, 4)


def qwen(family):
    layouts = [[["ttt", (1, 4, 8), "tt"]], [["t", (2, 4, 4), "tttt"], ["tt", (1, 8, 8), "t"]], [["ttttt"]]]
    last = 7 if family == "qwen3_5" else 5
    return tiny_qwen(family), [qwen_inputs(family, each) for each in layouts], (3, last)


MODELS = {
    "llava": llava,
    "qwen2_5_vl": lambda: qwen("qwen2_5_vl"),
    "qwen3_vl": lambda: qwen("qwen3_vl"),
    "qwen3_5": lambda: qwen("qwen3_5"),
}


def state(model):
    """Classes, attributes and hooks, but for the vision tower, on which transformers puts capturing hooks of its own."""
    return {
        name: (type(module), set(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
        if "vis" not in name
    }


@pytest.mark.parametrize("action", ["reroute", "delete"])
@pytest.mark.parametrize("name", MODELS)
def test_a_hundred_requests_with_failures_between_them(name, action):
    model, requests, layers = MODELS[name]()
    schedule = Schedule(action, (Decision(layers[0], "0.5"), Decision(layers[1], "0.25")))
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    decoder, draw = model.model.language_model, random.Random(0)
    carried = getattr(model.model, "rope_deltas", None)
    before = state(model)

    def answers(each):
        return model(**each).logits, model.generate(**each, **options)

    with routed(model, schedule):
        right = [answers(each) for each in requests]

    def fail(*_):
        raise BrokenError

    apply(model, schedule)
    for _ in range(30):
        index = draw.randrange(len(requests))
        each = requests[index]
        if draw.random() < 0.4:
            module = draw.choice([decoder.layers[0], decoder.layers[4], decoder.norm, decoder, model.lm_head])
            handle = module.register_forward_pre_hook(fail)
            with pytest.raises(BrokenError):
                draw.choice([lambda e: model(**e), lambda e: model.generate(**e, **options)])(each)
            handle.remove()
        if draw.random() < 0.2:
            with pytest.raises(RerouteError):
                model(**{**each, "output_attentions": True})
        logits, tokens = answers(each)
        assert torch.equal(tokens, right[index][1])
        assert torch.allclose(logits, right[index][0], equal_nan=True, atol=0, rtol=0)
        assert getattr(model.model, "rope_deltas", None) is carried
    remove(model)
    assert state(model) == before


def test_of_two_threads_at_once_one_is_refused_and_the_other_is_right():
    model, inputs = tiny.llava(), tiny.llava_inputs([tiny.row(4, 1, 5)])
    inside, go_on, answers = threading.Event(), threading.Event(), []

    def hold(*_):
        inside.set()
        go_on.wait(10)

    with routed(model, Schedule("reroute", (Decision(2, "0.5"),))):
        right = model(**inputs).logits
        handle = model.model.language_model.layers[3].register_forward_pre_hook(hold)
        other = threading.Thread(target=lambda: answers.append(model(**inputs).logits))
        other.start()
        assert inside.wait(10)
        with pytest.raises(RerouteError, match="one forward at a time"):
            model(**inputs)
        go_on.set()
        other.join()
        handle.remove()
    assert torch.equal(answers[0], right)
