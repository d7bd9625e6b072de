"""The one table of tolerances (RR-NUM-001, RR-NUM-002). Nothing can loosen it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from reroute_spec import DecisionRecord
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Per dtype: the floor of both errors in units of ε, and the clamp of the ambiguity threshold τ."""

    floor: float
    tau_low: float
    tau_high: float


TOLERANCES = {torch.float32: Tolerance(64, 1e-5, 1e-4)}
ERROR_FACTOR = 2.0
AMBIGUOUS_SHARE = 0.05


@dataclass(frozen=True)
class Excess:
    """An error beyond its limit, at the element that is furthest off."""

    measure: str
    error: float
    limit: float
    index: tuple[int, ...]
    expected: float
    actual: float

    def __str__(self) -> str:
        ulp = abs(self.actual - self.expected) / max(abs(self.expected) * 2**-23, 2**-149)
        return (
            f"first at element {list(self.index)}: expected {self.expected:.9g}, got {self.actual:.9g} "
            f"({ulp:.3g} ulp); {self.measure} error {self.error:.3g} against a limit of {self.limit:.3g} "
            f"(RR-NUM-001: {ERROR_FACTOR:g} x a plain run's error plus a floor)"
        )


def excess(actual: Tensor, plain: Tensor, oracle: Tensor) -> Excess | None:
    """How ``actual`` exceeds its tolerance, or None.

    Args:
        actual: the target's tensor.
        plain: the reference's in the same dtype.
        oracle: the reference's in float64.
    """
    table, eps = TOLERANCES[plain.dtype], torch.finfo(plain.dtype).eps
    errors, plain_errors = (actual.double() - oracle).abs(), (plain.double() - oracle).abs()
    if errors.numel() == 0:
        return None
    limits = {
        "largest": (
            errors.max(),
            ERROR_FACTOR * plain_errors.max() + table.floor * eps * oracle.abs().max(),
        ),
        "root-mean-square": (
            _rms(errors),
            ERROR_FACTOR * _rms(plain_errors) + table.floor * eps * _rms(oracle),
        ),
    }
    for measure, (error, limit) in limits.items():
        if not bool(error <= limit):  # NaN is no pass
            over = ~(errors <= limits["largest"][1])
            at = int(over.flatten().int().argmax()) if bool(over.any()) else int(errors.argmax())
            index = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), errors.shape))
            return Excess(
                measure, float(error), float(limit), index, float(oracle[index]), float(actual[index])
            )
    return None


def _rms(x: Tensor) -> Tensor:
    return x.pow(2).mean().sqrt()


def score_tau(plain: Sequence[DecisionRecord], oracle: Sequence[DecisionRecord], dtype: torch.dtype) -> float:
    """τ of a case: twice the plain run's largest relative score error, clamped (RR-NUM-002)."""
    table, worst = TOLERANCES[dtype], 0.0
    for mine, exact in zip(plain, oracle, strict=True):
        pairs = zip(mine.scores, exact.scores, strict=True)
        worst = max([worst, *(abs(a - b) / b for a, b in pairs if b > 0)])
    return min(max(2 * worst, table.tau_low), table.tau_high)


def ambiguous_rows(record: DecisionRecord, threshold: float, tau: float) -> set[int]:
    """Candidates whose oracle score lies within ``tau`` of the threshold score s_(k)."""
    pairs = zip(record.pool, record.scores, strict=True)
    return {ordinal for ordinal, score in pairs if abs(score - threshold) <= tau * threshold}
