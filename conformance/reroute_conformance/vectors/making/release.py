"""Completes the vectors that were measured from the paper's published release (elmma/mllm-reroute).

What was measured stays as it was: selections, rows per block, logits and greedy tokens. Their inputs stay too: X^0 of
the models' text decoders after the images were merged in, positions and weights. The reference adds what the release
does not show. That is the scores under the measured selections, and the oracle of the logits, computed in float64 under
the same selections.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..files import V1, Vector, read_vector
from ..manifest import entries
from .expected import exact_trace, expecting, routed, score_pairs
from .fixed_order import FixedOrder


def release_vectors(root: Path = V1) -> Iterator[Vector]:
    """All measured vectors, completed anew."""
    for entry in entries(root):
        if entry.oracle == "release":
            yield completed(read_vector(root / entry.place))


def completed(vector: Vector) -> Vector:
    """A vector with one request of which ``expected.exact`` and ``plain`` logits are measured, and all else computed."""
    exact = vector.data["expected"]["exact"]
    selected = [[decision["selected"] for decision in trace["decisions"]] for trace in exact["traces"]]
    (plain, _), (oracle, _) = routed(vector, FixedOrder(), selected, decoded=False)
    logits = oracle.logits[0]
    values = score_pairs(plain, oracle)
    for quantity, rows in (("last_logits", logits[-1]), ("logits", logits[~logits.isnan().all(-1)])):
        name = f"requests.0.{quantity}"
        if f"plain.{name}" in vector.tensors:
            values[name] = vector.tensors[f"plain.{name}"], rows
    traces = [exact_trace(trace) for trace in oracle.traces]
    return expecting(vector, exact={"traces": traces, "greedy": exact["greedy"]}, close=values)
