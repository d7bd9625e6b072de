"""Compares computed values within a tolerance (RR-NUM-001), and computes the threshold of ambiguous decisions (RR-NUM-002).

No option can loosen either of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from reroute_spec import DecisionRecord
from reroute_spec.predicates import holds
from torch import Tensor

AMBIGUOUS_SHARE = 0.05
TAU_CLAMP = {
    torch.float32: (1e-5, 1e-4),
    torch.float16: (1e-3, 2e-2),
    torch.bfloat16: (1e-3, 2e-2),
}


LOW_PRECISION = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Measured:
    """A computed quantity, as the target, the plain run and the oracle have it.

    Attributes:
        actual: the target's values.
        plain: the values of the reference in the same dtype.
        oracle: the values of the reference in float64.
        precision: the dtype that was computed in, where it is not that of ``plain``: scores are float32 in every
            precision.
    """

    actual: Tensor
    plain: Tensor
    oracle: Tensor
    precision: torch.dtype | None = field(default=None, kw_only=True)

    @property
    def epsilon(self) -> float:
        """ε of the dtype that was computed in."""
        return torch.finfo(self.precision or self.plain.dtype).eps

    @property
    def slack(self) -> int:
        """How many ε of its size are no error: a plain run may be right by luck."""
        return 64 if (self.precision or self.plain.dtype) in LOW_PRECISION else 256

    def __len__(self) -> int:
        return len(self.actual)


def close(x: Measured) -> bool:
    """Whether a quantity has its shape and is within tolerance, by the check of RR-NUM-001."""
    if x.actual.shape != x.oracle.shape:
        return False
    return x.oracle.numel() == 0 or holds("RR-NUM-001", **given(x))


def given(x: Measured) -> dict[str, Any]:
    """A quantity under the names of the check of RR-NUM-001."""
    return {
        "actual": x.actual.double(),
        "plain": x.plain.double(),
        "oracle": x.oracle.double(),
        "epsilon": x.epsilon,
        "slack": x.slack,
        "largest": _largest,
        "root_mean_square": _root_mean_square,
    }


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same, bit for bit."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
    )


def first_bits(a: Tensor, b: Tensor) -> str:
    """Where two tensors that should be the same part, in words."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype} {list(a.shape)}, before {b.dtype} {list(b.shape)}"
    bits = (x.contiguous().view(torch.uint8).view(*x.shape, -1) for x in (a, b))
    changed = torch.ne(*bits).any(-1)
    if not changed.any():
        return "no bit differs"
    index = tuple(changed.nonzero()[0].tolist())
    found, before = float(a[index]), float(b[index])
    ulp = abs(found - before) / max(abs(before) * torch.finfo(a.dtype).eps, 2**-149)
    return (
        f"first differing element {list(index)}: {found:.9g}, before {before:.9g} (absolute {abs(found - before):.3g}, relative "
        f"{abs(found - before) / max(abs(before), 2**-149):.3g}, {ulp:.3g} ulp); {int(changed.sum())} elements differ, none may"
    )


def describe(x: Measured) -> str:
    """How a quantity is off: at the element that is furthest off, and against what a plain run's error is."""
    if x.actual.shape != x.oracle.shape:
        return f"shape {list(x.actual.shape)}, expected {list(x.oracle.shape)}"
    if not x.oracle.numel():
        return "no values"
    errors, plain = (x.actual.double() - x.oracle).abs(), (x.plain.double() - x.oracle).abs()
    index = tuple(int(i) for i in torch.unravel_index(errors.nan_to_num(torch.inf).argmax(), errors.shape))
    expected, found = float(x.oracle[index]), float(x.actual[index])
    ulp = abs(found - expected) / max(abs(expected) * x.epsilon, 2**-149)
    relative = abs(found - expected) / max(abs(expected), 2**-149)
    return (
        f"furthest off at element {list(index)}: expected {expected:.9g}, got {found:.9g} "
        f"(absolute {abs(found - expected):.3g}, relative {relative:.3g}, {ulp:.3g} ulp); root-mean-square error "
        f"{_root_mean_square(errors):.3g}. RR-NUM-001 allows twice a plain run's {_largest(plain):.3g} (largest) and "
        f"{_root_mean_square(plain):.3g} (root mean square) plus {x.slack} ε of {_largest(x.oracle):.3g} and "
        f"{_root_mean_square(x.oracle):.3g}"
    )


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def _root_mean_square(x: Tensor) -> float:
    return float(x.pow(2).mean().sqrt())


def score_tau(plain: Sequence[DecisionRecord], oracle: Sequence[DecisionRecord], dtype: torch.dtype) -> float:
    """τ of a case: twice the plain run's largest relative score error, clamped (RR-NUM-002)."""
    low, high = TAU_CLAMP[dtype]
    worst = 0.0
    for mine, exact in zip(plain, oracle, strict=True):
        pairs = zip(mine.scores, exact.scores, strict=True)
        worst = max([worst, *(abs(a - b) / b for a, b in pairs if b > 0)])
    return min(max(2 * worst, low), high)
