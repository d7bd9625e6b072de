"""Holds the rows that several requests begin with, as the blocks before the first decision leave them (RR-EQV-009).

Those blocks are causal and see no decision. So the states, keys and values of a shared [system, image] are the same for
every question, and a request can start from them. A request that does not begin with these rows is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from reroute_spec import RerouteError, Schedule
from torch import Tensor

from .cache import RowCache
from .check_request import Decoder
from .inputs import Prompt


@dataclass(frozen=True)
class Prefix:
    """The first ``n`` rows of a prompt, as stage 0 leaves them.

    Attributes:
        embeddings, positions: those of the rows, which a request is compared with.
        hidden: X^{d_1}, the states of the rows at the input of the first block that decides. Where no block decides,
            they are those after the last block.
        entered: the states of the rows at the input of the block before that one.
        cache: their keys and values, or states of linear attention, of the blocks of stage 0.
        end: d_1, or the number of blocks where no block decides.
    """

    embeddings: Float[Tensor, "n d"]
    positions: Int[Tensor, "*axes n"]
    hidden: Float[Tensor, "n d"]
    entered: Float[Tensor, "n d"]
    cache: RowCache
    end: int


def end_of_stage_0(decoder: Decoder, schedule: Schedule) -> int:
    """d_1, or the number of blocks where nothing is decided."""
    return schedule.decisions[0].layer if schedule.decisions else decoder.num_layers


def begin(prompt: Prompt, rows: int) -> Prompt:
    """The first ``rows`` rows of a prompt.

    Raises:
        RerouteError: none or all of them: the last prompt row asks, and is each request's own.
    """
    if isinstance(rows, bool) or not isinstance(rows, int) or not 0 < rows < len(prompt.visual):
        raise RerouteError("rows", f"{rows!r} of {len(prompt.visual)}", f"give 1 to {len(prompt.visual) - 1}")
    return Prompt(
        embeddings=prompt.embeddings[:rows],
        positions=prompt.positions[..., :rows],
        visual=prompt.visual[:rows],
        images=None,
        rows=prompt.rows[:rows],
        padded_length=rows,
        deepstack=tuple(added[:rows] for added in prompt.deepstack),
    )


def check_prefix(decoder: Decoder, prompt: Prompt, schedule: Schedule, prefix: Prefix) -> int:
    """How many rows of a request are served; a request that does not begin with them is refused (RR-EQV-009)."""
    if not isinstance(prefix, Prefix):
        raise RerouteError("prefix", f"is a {type(prefix).__name__}", "give what prefix_of returned")
    rows = len(prefix.embeddings)
    if prefix.end != end_of_stage_0(decoder, schedule):
        raise RerouteError("prefix", "was made for another schedule", "make one for this schedule")
    if rows >= len(prompt.visual):
        raise RerouteError("prefix", f"of {rows} rows for {len(prompt.visual)}", "ask something after it")
    # compared, never trusted  RR-EQV-009
    same = torch.equal(prefix.embeddings, prompt.embeddings[:rows])
    if not same or not torch.equal(prefix.positions, prompt.positions[..., :rows]):
        raise RerouteError("prefix", "is not what the request begins with", "run the request without it")
    return rows
