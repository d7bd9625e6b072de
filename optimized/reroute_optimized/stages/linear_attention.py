"""Runs blocks of linear attention, which hold a state instead of keys and values, on left-padded rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..model.decoder import Decoder, PositionEmbeddings
from ..turn.cache import one_request
from ..turn.layout import StageLayout
from ..turn.past import Past


def run_linear(
    decoder: Decoder,
    layer: int,
    hidden_states: Tensor,
    rotary: PositionEmbeddings,
    stage: StageLayout,
    real: Tensor | None,
    cache: Any,
    past: Past | None,
) -> Tensor:
    """A block of linear attention on left-padded rows [B, R, d].

    Padding before a state's first row changes nothing once it is zero, which the block's mask sees to. Between an old
    state and the new rows it would decay the state and fill the convolution, so there every request runs by itself.
    """
    if real is None or past is None:
        return decoder.run_block(layer, hidden_states, rotary, real, cache)
    outputs = []
    for request, rows in enumerate(stage.rows):
        own = slice(request, request + 1), slice(stage.width - rows, None)
        output = decoder.run_block(
            layer,
            hidden_states[own],
            (rotary[0][own], rotary[1][own]),
            None,
            one_request(cache, layer, request),
        )
        outputs.append(torch.nn.functional.pad(output, (0, 0, stage.width - rows, 0)))
    return torch.cat(outputs)
