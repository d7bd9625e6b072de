"""Computes the expected results of a vector by running the reference on its inputs (spec/FORMATS.md, Vector)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from reroute_reference import CanonicalDecoder, forced_logits, run
from reroute_reference.model import RoutedOutput
from reroute_spec import RerouteError, RoutingTrace, Schedule, plan, select
from reroute_spec.canonical import CanonicalConfig
from torch import Tensor

from ..case import batch_of, continuation_of
from ..files import Vector
from .fixed_order import FixedOrder


def with_expected(
    vector: Vector, *, caches: bool = True, mode: AbstractContextManager[Any] | None = None
) -> Vector:
    """Add to a vector the results that the reference computes from its inputs.

    The reference runs in the fixed order of sums whose bits are the same on every machine, or in another ``mode``.
    Decisions are the float64 oracle's; the plain run replays them, so that both tensors of a quantity are of the same
    rows. Keys and values are left out unless ``caches``.
    """
    inputs = vector.data["inputs"]
    try:
        if vector.data["kind"] == "select":
            return expecting(vector, exact={"selected": select(scores_of(vector), inputs["k"])})
        if vector.data["kind"] == "config":
            schedule = Schedule.from_dict(inputs["schedule"])
            visual = inputs.get("visual", [False])
            rows = plan(schedule, inputs["num_layers"], visual, inputs.get("images", [])).kv_rows
            return expecting(vector, exact={"kv_rows": [list(rows)]})
        plain, oracle = routed(vector, FixedOrder() if mode is None else mode)
    except RerouteError as error:
        routed_kind = vector.data["kind"] in (
            "route",
            "trace",
        )  # what is given as a tensor is named as a whole
        return expecting(
            vector, error={"field": error.field.partition("[")[0] if routed_kind else error.field}
        )
    exact: dict[str, Any] = {"traces": [exact_trace(trace) for trace in oracle[0].traces]}
    return expecting(vector, exact=exact, close=dict(_quantities(plain, oracle, caches)))


def routed(
    vector: Vector,
    mode: AbstractContextManager[Any],
    decisions: Sequence[Any] | None = None,
    *,
    decoded: bool = True,
) -> tuple[tuple[RoutedOutput, list[Tensor]], tuple[RoutedOutput, list[Tensor]]]:
    """The reference in float32 and in float64 on a vector's inputs, with the logits of every request's continuation.

    Args:
        vector: of kind ``route`` or ``trace``.
        mode: to run it in.
        decisions: to replay, where the vector gives none.
        decoded: whether to feed the continuations.
    """
    inputs, weights = vector.data["inputs"], vector.weights()
    config, schedule = (
        CanonicalConfig.from_dict(inputs["decoder"]["config"]),
        Schedule.from_dict(inputs["schedule"]),
    )
    given = [request.get("decisions") for request in inputs["requests"]]
    replay = decisions if given[0] is None else given
    tokens, outputs = continuation_of(vector) if decoded else None, []
    batch = batch_of(vector)
    with mode:
        for dtype in (torch.float64, torch.float32):
            decoder = CanonicalDecoder(config, weights, dtype)
            output = run(decoder, batch, schedule, decisions=replay)
            replay = [[record.selected for record in trace.decisions] for trace in output.traces]
            # the caches grow: of the prefill are their first rows
            pairs = [] if tokens is None else list(zip(output.cache, tokens, strict=True))
            outputs.append((output, [forced_logits(decoder, cache, fed) for cache, fed in pairs]))
    return outputs[1], outputs[0]


def exact_trace(trace: RoutingTrace) -> dict[str, Any]:
    """The part of a trace that has to be met bit for bit, which is all but scores, margins and what follows from them."""
    kept = ("layer", "stage", "pool", "selected", "deferred", "reentered")
    data = trace.to_dict()
    decisions = [{name: decision[name] for name in kept} for decision in data["decisions"]]
    return {**{name: data[name] for name in ("num_rows", "visual_rows", "kv_rows")}, "decisions": decisions}


def scores_of(vector: Vector) -> list[float]:
    """The scores of a `select` vector."""
    given = vector.data["inputs"]["scores"]
    if isinstance(given, dict):
        values: list[float] = (
            torch.tensor(given["float32_bits"], dtype=torch.int32).view(torch.float32).tolist()
        )
        return values
    return [float(score) for score in given]


def closed(values: dict[str, tuple[Tensor, Tensor]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``expected.close`` of quantities, given in float32 and float64, and the tensors that it names."""
    names, tensors = {}, {}
    for quantity, pair in values.items():
        names[quantity] = {run_: {"tensor": f"{run_}.{quantity}"} for run_ in ("plain", "oracle")}
        for run_, tensor in zip(("plain", "oracle"), pair, strict=True):
            tensors[f"{run_}.{quantity}"] = tensor.clone().contiguous()
    return names, tensors


def expecting(
    vector: Vector, *, close: dict[str, tuple[Tensor, Tensor]] | None = None, **expected: Any
) -> Vector:
    """A vector with what is expected of it, and ``close`` quantities in float32 and float64 among its tensors."""
    names, tensors = closed(close or {})
    data = {**vector.data, "expected": {**expected, **({"close": names} if names else {})}}
    own = {
        name: tensor for name, tensor in vector.tensors.items() if not name.startswith(("plain.", "oracle."))
    }
    return replace(vector, data=data, tensors={**own, **tensors})


def _quantities(
    plain: tuple[RoutedOutput, list[Tensor]], oracle: tuple[RoutedOutput, list[Tensor]], caches: bool
) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
    """Everything that a target returns, by name, from both runs."""
    for b in range(len(plain[0].traces)):
        both = [dict(_of_request(output, decoded, b, caches)) for output, decoded in (plain, oracle)]
        for quantity in both[0]:
            yield f"requests.{b}.{quantity}", (both[0][quantity], both[1][quantity])


def _of_request(
    output: RoutedOutput, decoded: list[Tensor], b: int, caches: bool
) -> Iterator[tuple[str, Tensor]]:
    yield from _scores(output, b)
    for layer, residual in output.residuals[b].items():
        yield f"residuals.{layer}", residual
    for layer, rows in enumerate(output.traces[b].kv_rows if caches else ()):
        for name, cached in zip(("keys", "values"), output.cache[b].keys_values(layer), strict=True):
            yield f"{name}.{layer}", cached[:, :rows]
    logits = output.logits[b]
    yield "logits", logits[~logits.isnan().all(-1)]
    if decoded:
        yield "decode_logits", decoded[b]


def score_pairs(plain: RoutedOutput, oracle: RoutedOutput) -> dict[str, tuple[Tensor, Tensor]]:
    """The scores of the only request, in float32 and float64."""
    both = zip(_scores(plain, 0), _scores(oracle, 0), strict=True)
    return {f"requests.0.{quantity}": (narrow, wide) for (quantity, narrow), (_, wide) in both}


def _scores(output: RoutedOutput, b: int) -> Iterator[tuple[str, Tensor]]:
    """The scores of every decision of a request, by the name of the quantity."""
    for record in output.traces[b].decisions:
        dtype = output.logits.dtype
        yield f"scores.{record.layer}", torch.tensor(record.scores, dtype=dtype)
