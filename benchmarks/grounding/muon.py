"""Muon for matrices and AdamW for everything else, at one learning rate.

Muon makes a matrix's momentum orthogonal before it steps (Jordan et al. 2024), here scaled so that a step is as large as one of AdamW
(Liu et al. 2025). Matrices of one shape go through the iteration together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_COEFFICIENTS = (
    3.4445,
    -4.7750,
    2.0315,
)  # of the published iteration: it need not converge, singular values near 1 do
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal."""

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, *, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of every matrix."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                alike.setdefault(matrix.shape, []).append(matrix)
            for matrices in alike.values():
                self._step(matrices, group)

    def _step(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        for matrix in matrices:
            momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
            momentum.lerp_(matrix.grad, 1 - group["momentum"])
        ahead = torch.stack([m.grad.lerp(self.state[m]["momentum"], group["momentum"]) for m in matrices])
        steps = orthogonal(ahead) * (0.2 * max(ahead.shape[-2:]) ** 0.5)
        for matrix, step in zip(matrices, steps, strict=True):
            matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=group["lr"])


def orthogonal(matrices: Tensor) -> Tensor:
    """Each of ``matrices`` [n, rows, columns] with singular values near 1."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def optimizers(model: nn.Module, heads: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of blocks and projector, AdamW for tables, norms, biases and heads."""
    matrices = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
    }
    others = [parameter for name, parameter in model.named_parameters() if name not in matrices]
    return [
        Muon(matrices.values(), lr),
        torch.optim.AdamW([*others, *heads.parameters()], lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
