"""Declares what the router and a shared prefix hand to each other, so that the router need not import the room ``prefix``.

The router gives a ``PrefixRun`` when a prefix is made. It asks a ``PrefixInUse`` where later prompts start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..model.deepstack import DeepStack
from ..stages.opening import Opening
from ..turn.layout import Flags
from .request import Request


@dataclass(frozen=True)
class PrefixRun:
    """The result of a prefix's own prefill: what the blocks before the first decision made of it, and what it was given.

    Attributes:
        opening: the rows of the prefix after those blocks.
        request: the arguments of its forward.
        positions: [B or 1, P] or [3, B or 1, P].
        features: what the family adds to its visual rows between blocks, or None.
    """

    opening: Opening
    request: Request
    positions: Tensor
    features: DeepStack | None


class PrefixInUse(Protocol):
    """The protocol of a prefix while prompts start after it.

    Attributes:
        served: prompts that have started after it so far; the router counts them.
    """

    served: int

    def opening_of(
        self, request: Request, real: Flags, positions: Tensor, features: DeepStack | None
    ) -> Opening:
        """The opening from which a batch of prompts starts.

        Args:
            request: the arguments of its forward.
            real: which columns are rows.
            positions: [B or 1, S] or [3, B or 1, S].
            features: what the family adds to visual rows between blocks, or None.

        Raises:
            RerouteError: a prompt does not begin with the prefix, or asks for what starting after it cannot give.
        """
        ...
