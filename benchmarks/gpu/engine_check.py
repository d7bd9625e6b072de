"""Whether the engine is right on this device: no time is taken of what is not."""

from __future__ import annotations

from typing import Any

import torch
from engine_shapes import Shape
from reroute_optimized import routed
from reroute_optimized.conforming.target import torch_target, triton_target
from reroute_reference import run
from reroute_spec import Decision, Schedule
from torch import Tensor


def correctness(shape: Shape, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Errors of a routed prefill and three tokens on four blocks against float32, and plain rounding's.

    The prefill of the reference, the tokens of backend ``torch`` in float32, decisions replayed. And what is replayed from graphs gives
    the bits of the first, eager, call.

    Raises:
        AssertionError: more than twice plain rounding's, plus a floor; or other bits.
    """
    schedule = Schedule("reroute", (Decision(1, "0.5"), Decision(3, "0.25")))
    wide, narrow = (shape.build(4, kind, device) for kind in (torch.float32, dtype))
    inputs = shape.inputs(2, wide)
    tokens = torch.tensor([[3, 5, 7], [11, 13, 17]], device=device)
    with torch.no_grad():
        exact = run(wide, inputs, schedule)
    decisions = [[list(record.selected) for record in trace.decisions] for trace in exact.traces]
    asked = {"decisions": decisions, "continuation": tokens}
    wanted = {
        "logits": exact.logits.double(),
        "decode_logits": stacked(torch_target().run(wide, inputs, schedule, **asked), "decode_logits"),
    }
    given = {"inputs_embeds": inputs["inputs_embeds"].to(dtype), "visual_mask": inputs["visual_mask"]}
    errors = {}
    for name, target in (("torch", torch_target()), ("triton", triton_target())):
        answers = target.run(narrow, given, schedule, **asked)
        for what, right in wanted.items():
            difference = stacked(answers, what) - right.to(device)
            errors[f"{name} {what}"] = float(difference.square().mean().sqrt() / right.square().mean().sqrt())
    floor = 64 * torch.finfo(dtype).eps
    for what in wanted:
        assert errors[f"triton {what}"] <= 2 * errors[f"torch {what}"] + floor, f"{shape.name}: {errors}"
    replays_are_the_same(narrow, given, schedule, tokens)
    return errors


def stacked(answers: list[dict[str, Any]], what: str) -> Tensor:
    """One entry of every request, in float64."""
    return torch.stack([answer[what] for answer in answers]).double()


@torch.no_grad()
def replays_are_the_same(model: Any, inputs: dict[str, Tensor], schedule: Schedule, tokens: Tensor) -> None:
    """Four prompts of one layout, each with the same tokens after it: eager at first, from graphs where there are any later."""
    shown = []
    with routed(model, schedule, backend="triton"):
        for _ in range(4):
            out = model(**inputs, use_cache=True)
            steps = [
                model(input_ids=step[:, None], past_key_values=out.past_key_values).logits
                for step in tokens.unbind(1)
            ]
            shown.append([out.logits, *steps])
    for other in shown[1:]:
        for one, two in zip(shown[0], other, strict=True):
            assert torch.equal(one, two), "a replay gives other bits than the call that it stands for"
