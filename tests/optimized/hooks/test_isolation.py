"""What belongs to one ``generate`` is seen by its own forwards alone, and whoever is refused leaves all as it was."""

import threading

import pytest
import torch
from reroute_conformance.tiny.qwen import qwen_inputs, tiny_qwen
from reroute_optimized import routed
from reroute_spec import Decision, RerouteError, Schedule
from transformers import LogitsProcessorList

from .. import tiny

ROUTE = Schedule("reroute", (Decision(2, "0.5"), Decision(4, "0.25")))
OPTIONS = {"max_new_tokens": 5, "do_sample": False, "use_cache": False, "pad_token_id": 0}
ONE, OTHER = (tiny.llava_inputs([tiny.row(4, 1, 5)], seed=seed) for seed in (0, 1))
PADDED = tiny.llava_inputs([tiny.row(4, 1, 5), tiny.row(6, 0, 0)], side="right")


def beside(work, times=1):
    """A logits processor that does ``work`` between two steps, and keeps what it gives."""
    seen = []

    def processor(input_ids, scores):
        if len(seen) < times:
            seen.append(work())
        return scores

    return LogitsProcessorList([processor]), seen


def refused(work):
    def attempt():
        with pytest.raises(RerouteError) as caught:
            work()
        return str(caught.value)

    return attempt


@pytest.mark.parametrize(
    "work",
    [
        lambda model: model(**OTHER).logits,
        lambda model: model(**PADDED).logits,
        lambda model: model(input_ids=torch.tensor([[5, 6, 7]])).logits,
        lambda model: model.generate(**OTHER, **OPTIONS),
        lambda model: model.generate(**OTHER, **{**OPTIONS, "use_cache": True, "num_beams": 2}),
    ],
    ids=["image", "right padding", "text", "generate", "beams"],
)
def test_a_request_between_the_steps_of_another_is_its_own(work):
    model = tiny.llava()
    with routed(model, ROUTE):
        alone, other = model.generate(**ONE, **OPTIONS), work(model)
        between, seen = beside(lambda: work(model))
        assert torch.equal(model.generate(**ONE, **OPTIONS, logits_processor=between), alone)
    assert torch.equal(seen[0], other)


def test_a_refused_request_between_the_steps_of_another_changes_nothing():
    model = tiny.llava()
    with routed(model, ROUTE):
        alone = model.generate(**ONE, **OPTIONS)
        wrong = {**OTHER, "input_ids": OTHER["input_ids"].float()}
        between, seen = beside(refused(lambda: model.generate(**wrong, **OPTIONS)))
        assert torch.equal(model.generate(**ONE, **OPTIONS, logits_processor=between), alone)
    assert len(seen) == 1


@pytest.mark.parametrize("cached", [True, False])
def test_a_generate_refused_inside_a_forward_of_another_changes_nothing(cached):
    model, steps = tiny.llava(), []
    options = {**OPTIONS, "use_cache": cached}
    with routed(model, ROUTE):
        alone = model.generate(**ONE, **options)

        def intrude(*_):
            steps.append(len(steps))
            if len(steps) == 3:
                assert "one forward at a time" in refused(lambda: model.generate(**OTHER, **options))()

        handle = model.model.language_model.layers[0].register_forward_pre_hook(intrude)
        assert torch.equal(model.generate(**ONE, **options), alone)
        handle.remove()
    assert len(steps) == 5


def test_guidance_without_a_cache_is_as_with_one():
    model = tiny.llava()
    with routed(model, ROUTE):
        cached = model.generate(**ONE, **{**OPTIONS, "use_cache": True}, guidance_scale=1.5)
        assert torch.equal(model.generate(**ONE, **OPTIONS, guidance_scale=1.5), cached)


def test_two_threads_generate_under_their_own_visual_masks_or_are_refused():
    model, options = tiny.llava(), {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    requests = []
    for first in (2, 10):
        mask = torch.zeros(1, 30, dtype=torch.bool)
        mask[:, first : first + 16] = True
        requests.append({"inputs_embeds": torch.randn(1, 30, 64), "visual_mask": mask})
    answers, errors = [[], []], []
    with routed(model, ROUTE):
        right = [model.generate(**request, **options) for request in requests]

        def serve(index):
            try:
                answers[index].append(model.generate(**requests[index], **options))
            except RerouteError as error:
                errors.append(str(error))

        for _ in range(8):
            threads = [threading.Thread(target=serve, args=(index,)) for index in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert sum(map(len, answers)) + len(errors) == 16
    assert all(torch.equal(answer, right[index]) for index in range(2) for answer in answers[index])
    assert all("one forward at a time" in error for error in errors)


@pytest.mark.parametrize("failure", [RerouteError, KeyboardInterrupt])
def test_a_forward_inside_another_leaves_the_unrouted_sessions_state(failure):
    model = tiny_qwen("qwen2_5_vl")
    large, small = (qwen_inputs("qwen2_5_vl", [["ttt", (1, side, side), "t"]]) for side in (8, 4))
    cache = model(**large).past_key_values
    carried = model.model.rope_deltas

    def intrude(*_):
        if failure is KeyboardInterrupt:
            raise failure
        assert "one forward at a time" in refused(lambda: model(**small))()

    with routed(model, Schedule("reroute", (Decision(3, "0.5"),))):
        handle = model.model.language_model.layers[0].register_forward_pre_hook(intrude)
        if failure is KeyboardInterrupt:
            with pytest.raises(failure):
                model(**small)
        else:
            model(**small)
        handle.remove()
        model(**small)
        assert model.model.rope_deltas is carried
    assert model(input_ids=torch.tensor([[5]]), past_key_values=cache).logits.isfinite().all()
