"""Every family as the tests see it: a tiny model, prompts of one shape for all, and what the oracle needs to know."""

from functools import cache

import torch
from reroute_conformance.cases.case import Row
from reroute_conformance.cases.models import LlavaCase
from reroute_conformance.tiny import tiny_llava
from reroute_conformance.tiny.qwen import FAMILIES as QWEN
from reroute_conformance.tiny.qwen import qwen_inputs, tiny_qwen
from reroute_spec import Schedule, plan

from . import oracle

FAMILIES = ("llava", *QWEN)
LAYERS = 8
UNROUTED = Schedule("reroute", ())
DECIDING = dict.fromkeys(FAMILIES, (1, 3, 6)) | {"qwen3_5": (3, 7)}  # blocks that can decide
PYRAMID = ("0.5", "0.25", "0.1")
FLAT = ("0.3", "0.3", "0.3")
PICTURE, SMALL = (1, 12, 12), (1, 4, 6)  # 36 rows, as LLaVA's, and 6


@cache
def model(family, attention="sdpa"):
    return (
        tiny_llava(1, attention=attention)
        if family == "llava"
        else tiny_qwen(family, seed=1, attention=attention)
    )


@cache
def wide(family):
    return oracle.wide(model(family))


def schedule(*pairs, action="reroute", **rest):
    return Schedule.from_dict(
        {"action": action, "decisions": [{"layer": layer, "keep": k} for layer, k in pairs], **rest}
    )


def pyramid(family, action="reroute", keeps=PYRAMID, **rest):
    layers = DECIDING[family]
    return schedule(*zip(layers, keeps[: len(layers)], strict=True), action=action, **rest)


def inputs(family, *layouts, seed=0, pads=None, side="left"):
    """A batch; a layout is a tuple of words and grids. LLaVA's images all have 36 rows, whatever the grid."""
    if family != "llava":
        return qwen_inputs(family, layouts, seed=seed, pads=pads, side=side)
    letters = ["".join("I" if not isinstance(part, str) else part for part in layout) for layout in layouts]
    extra = pads or [0] * len(layouts)
    rows = [
        Row(layout, seed + i, *((pad, 0) if side == "left" else (0, pad)))
        for i, (layout, pad) in enumerate(zip(letters, extra, strict=True))
    ]
    if side == "right":  # a request without padding of its own stands on the right: give the others theirs
        lengths = [len(layout) + 35 * layout.count("I") for layout in letters]
        longest = max(length + pad for length, pad in zip(lengths, extra, strict=True))
        rows = [Row(row.layout, row.seed, 0, longest - n) for row, n in zip(rows, lengths, strict=True)]
    return LlavaCase(schedule=UNROUTED.to_dict(), rows=rows).inputs()


def text(family, count, seed=9):
    tokens = torch.randint(3, 50, (1, count), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": tokens}


def visual_flags(family, batch, row=0):
    config = model(family).config
    ids = [config.image_token_id, getattr(config, "video_token_id", None)]
    real = batch["attention_mask"][row].bool()
    return [token in ids for token in batch["input_ids"][row][real].tolist()]


@torch.no_grad()
def embeddings(family, batch, attention="sdpa", net=None):
    """X^0 [S, d] and DeepStack's additions per boundary [S, d] of a batch of one, merged here."""
    net = net or model(family, attention)
    ids = batch["input_ids"][0]
    embeds = net.get_input_embeddings()(ids).clone()
    deltas = [torch.zeros_like(embeds) for _ in range(2 if family == "qwen3_vl" else 0)]
    for token, pixels, grid, get in (
        (net.config.image_token_id, "pixel_values", "image_grid_thw", "get_image_features"),
        (
            getattr(net.config, "video_token_id", None),
            "pixel_values_videos",
            "video_grid_thw",
            "get_video_features",
        ),
    ):
        if pixels not in batch:
            continue
        found = getattr(net.model, get)(*(batch[name] for name in (pixels, grid) if name in batch))
        embeds[ids == token] = torch.cat(list(found.pooler_output)).view(-1, 64)
        for delta, features in zip(deltas, getattr(found, "deepstack_features", ()), strict=True):
            delta[ids == token] = torch.cat(list(features)).view(-1, 64)
    return embeds, deltas


def positions(family, batch):
    """[3, S] as the oracle counts them; a count without images, or for LLaVA."""
    ids = batch["input_ids"][0].tolist()
    if family == "llava" or not any(token in (oracle.IMAGE, oracle.VIDEO) for token in ids):
        return torch.arange(len(ids)).expand(3, -1)
    images, videos = (
        batch.get(name, torch.empty(0, 3)).tolist() for name in ("image_grid_thw", "video_grid_thw")
    )
    by_frame = family != "qwen2_5_vl"
    if by_frame:
        videos = [[1, h, w] for t, h, w in videos for _ in range(int(t))]
    grids, before = [], None
    for token in ids:
        if token != before and token in (oracle.IMAGE, oracle.VIDEO):
            grids.append([int(v) for v in (images if token == oracle.IMAGE else videos).pop(0)])
        before = token
    return oracle.image_positions(ids, grids, None if by_frame else 4)


def oracle_run(family, batch, routing, **changes):
    """The oracle on a batch of one; budgets come from the specification's plan."""
    flags = visual_flags(family, batch)
    counts = [stage.kept for stage in plan(routing, LAYERS, flags).stages if stage.index]
    embeds, deltas = embeddings(family, batch)
    given = {"positions": positions(family, batch), "deltas": deltas, **changes}
    return oracle.routed(wide(family).model.language_model, embeds, flags, routing, counts, **given)


def logits(family, states):
    net = wide(family)
    with torch.no_grad():
        return net.lm_head(oracle.rms_norm(net.model.language_model.norm, states))


def rows_close(actual, right, family):
    """Rows of float32 against the oracle's, each by its own size.

    Linear attention norms what it reads from its state, however small that is, and its rounding with it: a row in a
    hundred is off by 2e-4 of its size on one processor and by a tenth of that on another.
    """
    error = (actual.double() - right).abs().amax(-1) / right.pow(2).mean(-1).sqrt()
    worst = error.argmax()
    assert error[worst] < (1e-3 if family == "qwen3_5" else 1e-4), f"row {worst} is off by {error[worst]:.1e}"


def net(family):
    """The model of a family and attention."""
    return model(*family)
