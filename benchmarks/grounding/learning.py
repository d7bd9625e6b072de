"""What a training step learns: soft edges, yes and no, and three things that only help the beginning."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batches import ASKING_PLACES, BOX_PLACES, BOXES, LOOKS, THERE_PLACES, Batch, mask, positions, soft_edges
from .questions import BINS, BOX_TOKENS, VOCABULARY
from .scenes import COLOURS, SHAPES, SIZES

_PATCH_CLASSES = (len(SIZES) + 1, len(COLOURS) + 1, len(SHAPES) + 1)
_AUXILIARY = 0.5


class Heads(nn.Module):
    """Thrown away after training: what is at a patch, from the projector's rows; from the last prompt row all four edges, or all
    that the picture has.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, sum(_PATCH_CLASSES))
        self.edges = nn.Linear(width, BOX_TOKENS * BINS)
        self.seen = nn.Linear(width, LOOKS)


def losses(model: Any, heads: Heads, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropies of a batch, by name; ``loss`` is what is minimised."""
    images = torch.stack(list(model.model.get_image_features(batch.pixel_values).pooler_output))
    rows = model.get_input_embeddings()(batch.input_ids)
    rows = torch.cat([rows[:, :1], images, rows[:, 1 + images.shape[1] :]], dim=1)
    hidden = model.model.language_model(
        inputs_embeds=rows, attention_mask=mask(), position_ids=positions(), use_cache=False
    ).last_hidden_state
    target = soft_edges(batch.edges)  # [B, BOXES, 4, BINS]
    width = hidden.shape[-1]
    boxes = model.lm_head(hidden[:, BOX_PLACES]).reshape(-1, len(VOCABULARY))
    # every other token has probability 0 in the label
    padded = F.pad(target, (len(VOCABULARY) - BINS, 0)).reshape(-1, len(VOCABULARY))
    there = model.lm_head(hidden[:, THERE_PLACES]).reshape(-1, len(VOCABULARY))
    coarse = heads.edges(hidden[:, ASKING_PLACES]).reshape(-1, BOXES, BOX_TOKENS, BINS)
    classes = heads.patch(images.reshape(-1, width)).split(_PATCH_CLASSES, dim=-1)
    shown = batch.patches.reshape(-1, 3)
    looks = heads.seen(hidden[:, THERE_PLACES])
    found = {
        "box": F.cross_entropy(boxes, padded),
        "there": F.cross_entropy(there, batch.answers.reshape(-1)),
        "edges": F.cross_entropy(coarse.reshape(-1, BINS), target.reshape(-1, BINS)),
        "seen": F.binary_cross_entropy_with_logits(looks, batch.seen[:, None].expand_as(looks)),
        "patch": sum(F.cross_entropy(logits, shown[:, i]) for i, logits in enumerate(classes)) / 3,
    }
    found["loss"] = (
        found["box"] + 0.5 * found["there"] + _AUXILIARY * (found["edges"] + found["patch"] + found["seen"])
    )
    return found
