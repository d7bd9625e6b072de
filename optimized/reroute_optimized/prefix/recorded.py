"""Records what a prefix was and compares prompts with it, so that only a prompt that begins with it starts after it.

The comparison looks at what the rows hold, which is their ids, positions, merged embeddings and features between
blocks. It does not rely on what a caller says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

import torch
from reroute_spec import RerouteError
from torch import Tensor

from ..hooks.prefix_in_use import PrefixRun
from ..hooks.request import Request
from ..model.deepstack import DeepStack
from ..stages.opening import Opening
from ..turn.layout import Flags

_REMEDY = "give prompts that begin with the prefix, others outside its with block"


@dataclass(frozen=True)
class Recorded:
    """A prefix of P columns, and what the blocks before the first decision made of it.

    Attributes:
        opening: what those blocks made of its rows. A first stage may have left fewer rows than there are columns.
        ids: [P] token ids, or None where embeddings were given.
        embeddings: [P, d] with the images merged in.
        positions: [3 or 1, P].
        features: [P, d] for each of the blocks before the first decision that something is added after.
    """

    opening: Opening
    ids: Tensor | None
    embeddings: Tensor
    positions: Tensor
    features: tuple[Tensor, ...]

    @classmethod
    def of(cls, run: PrefixRun) -> Recorded:
        """What a prefix's own prefill made, with copies of what the caller may change."""
        opening, request = run.opening, run.request
        own = torch.arange(request.shape[1], device=request.embeddings.device)[None]
        return cls(
            opening,
            None if request.ids is None else request.ids[0].clone(),
            request.embeddings[0].clone(),
            _coordinates(run.positions)[:, 0].clone(),
            tuple(added[0] for added in _added(run.features, len(opening.layers), own)),
        )

    def check(
        self,
        request: Request,
        real: Flags,
        positions: Tensor,
        features: DeepStack | None,
        pixels: Mapping[int, str],
    ) -> None:
        """Refuse a batch of which a prompt does not begin with the prefix, or has no row after it. Reads the host once.

        Args:
            request: as given.
            real: its columns that are rows.
            positions: [B or 1, S] or [3, B or 1, S].
            features: of its visual rows, or None.
            pixels: the input that every placeholder id stands for.

        Raises:
            RerouteError: naming what differs; a model of another dtype or on another device.
        """
        for name in ("dtype", "device"):
            now, then = getattr(request.embeddings, name), getattr(self.embeddings, name)
            if now != then:
                raise RerouteError(
                    f"model.{name}", f"is {now}, the prefix was made in {then}", "make it anew"
                )
        shared = len(self.embeddings)
        columns = [[column for column, flag in enumerate(row) if flag] for row in real]
        rows = "inputs_embeds" if request.ids is None else "input_ids"
        for index, own in enumerate(columns):
            if len(own) <= shared:
                problem = f"holds {len(own)} rows, the prefix {shared}"
                raise RerouteError(f"{rows}[{index}]", problem, "give prompts that go on after the prefix")
        first = torch.tensor([own[:shared] for own in columns], device=self.embeddings.device)
        differs = torch.stack(
            [
                self._other_ids(request, first),
                self._moved(positions, first),
                self._other_embeddings(request, features, first),
            ]
        )
        if bool(differs.any()):
            self._refuse(request, differs.tolist(), pixels)

    def _other_ids(self, request: Request, first: Tensor) -> Tensor:
        """[B, P]; False where there are none to compare."""
        if self.ids is None or request.ids is None:
            return torch.zeros_like(first, dtype=torch.bool)
        return request.ids.to(first.device).gather(1, first) != self.ids.to(first.device)

    def _moved(self, positions: Tensor, first: Tensor) -> Tensor:
        given = _coordinates(positions).to(first.device)
        own = given.expand(-1, len(first), -1).gather(2, first.expand(len(given), -1, -1))
        return (own != self.positions.to(first.device)[:, None]).any(0)

    def _other_embeddings(self, request: Request, features: DeepStack | None, first: Tensor) -> Tensor:
        wide = first[..., None].expand(-1, -1, self.embeddings.shape[1])
        other = (request.embeddings.gather(1, wide) != self.embeddings).any(-1)
        added = _added(features, len(self.opening.layers), first)
        nothing = torch.zeros_like(self.embeddings)
        for given, own in zip_longest(added, self.features, fillvalue=nothing):
            other = other | (given != own).any(-1)
        return other

    def _refuse(self, request: Request, differs: list[list[list[bool]]], pixels: Mapping[int, str]) -> None:
        """Name the first of ids, positions and embeddings that differ anywhere."""
        kind = next(i for i, table in enumerate(differs) if any(map(any, table)))
        index = next(b for b, row in enumerate(differs[kind]) if any(row))
        row = differs[kind][index].index(True)
        if kind == 0:
            problem = f"row {row} is another token than the prefix's"
            raise RerouteError(f"input_ids[{index}]", problem, _REMEDY)
        if kind == 1:
            problem = f"row {row} stands elsewhere than in the prefix"
            raise RerouteError(f"position_ids[{index}]", problem, _REMEDY)
        if self.ids is None or request.ids is None:
            raise RerouteError("inputs_embeds", f"row {row} of request {index} is not the prefix's", _REMEDY)
        medium = pixels.get(int(self.ids[row]))
        if medium is None:
            problem = f"embeds row {row} otherwise than when the prefix was made"
            raise RerouteError("model", problem, "make it anew")
        raise RerouteError(medium, f"of request {index} are not the prefix's (row {row})", _REMEDY)


def _added(features: DeepStack | None, layers: int, columns: Tensor) -> list[Tensor]:
    """[B, P, d] for each of the first ``layers`` blocks after which something is added."""
    if features is None:
        return []
    return [features.at(layer, columns) for layer in range(min(layers, len(features.features)))]


def _coordinates(positions: Tensor) -> Tensor:
    """[3 or 1, B or 1, S] of positions with or without coordinates."""
    return positions[None] if positions.ndim == 2 else positions
