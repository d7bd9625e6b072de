"""Every kernel once more in plain torch: the same launchers, held to the same judges, and a hundred times faster than Triton's
interpreter. What is asked about the engine around the kernels is asked with these; they wait for the host wherever they like.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def _turned(x: Tensor, cos: Tensor, sin: Tensor, axes: Tensor | None) -> Tensor:
    """Rows [n, H, D]; cos and sin [n, W], or [A, n, W] with ``axes``."""
    if axes is not None:
        index = axes.long()[None, None].expand(1, cos.shape[1], -1)
        cos, sin = cos.gather(0, index)[0], sin.gather(0, index)[0]
    width = cos.shape[-1]
    own, rest = x[..., :width].float(), x[..., width:]
    first, second = own.chunk(2, dim=-1)
    turned = own * cos[:, None].float() + torch.cat([-second, first], -1) * sin[:, None].float()
    return torch.cat([turned.to(x.dtype), rest], dim=-1)


def score_last_row(
    query, key, cos, sin, axes, cu_seqlens, cu_queries, rotated, scale, max_rows, max_queries, heads
):
    scores = key.new_zeros(key.shape[0], dtype=torch.float32)
    starts, asks = cu_seqlens.tolist(), cu_queries.tolist()
    for request in range(len(starts) - 1):
        here = slice(starts[request], starts[request + 1])
        asking = slice(asks[request], asks[request + 1])
        keys, queries = key[here], query[asking]
        if cos is not None and len(keys):
            c, s = cos[..., here, :], sin[..., here, :]
            last = slice(len(keys) - len(queries), len(keys))
            keys = _turned(keys, c, s, axes)
            queries = _turned(queries, c[..., last, :], s[..., last, :], axes)
        if rotated is not None:
            rotated[here] = keys
        if not len(keys) or not len(queries):
            continue
        group = query.shape[1] // key.shape[1]
        wide = keys.repeat_interleave(group, dim=1).transpose(0, 1).float()  # [H, n, D]
        logits = queries.transpose(0, 1).float() @ wide.transpose(1, 2) * scale  # [H, q, n]
        places = torch.arange(len(keys))
        hidden = places[None] > (len(keys) - len(queries) + torch.arange(len(queries)))[:, None]
        weights = logits.masked_fill(hidden, float("-inf")).softmax(-1).mean(1)
        scores[here] = weights.amax(0) if heads == "max" else weights.mean(0)
    return scores


def select_compact(
    scores, candidates, cu_candidates, cu_selected, always, cu_seqlens, cu_active, num_selected, num_active,
    max_candidates, max_rows,
):  # fmt: skip
    runs, nan = always.clone(), []
    selected, deferred = [], []
    starts, kept = cu_candidates.tolist(), cu_selected.tolist()
    for segment in range(len(starts) - 1):
        rows = candidates[starts[segment] : starts[segment + 1]].long()
        own = scores[rows]
        nan.append(bool(own.isnan().any()))
        order = (-own).sort(stable=True).indices[: kept[segment + 1] - kept[segment]]
        chosen = torch.zeros(len(rows), dtype=torch.bool)
        chosen[order] = True
        selected.append(chosen.nonzero()[:, 0])
        deferred.append((~chosen).nonzero()[:, 0])
        runs[rows[chosen]] = True
    active = runs.nonzero()[:, 0]
    inverse = torch.full(scores.shape, -1, dtype=torch.int32)
    begins, packed = cu_seqlens.tolist(), cu_active.tolist()
    for request in range(len(begins) - 1):
        own = active[(active >= begins[request]) & (active < begins[request + 1])]
        inverse[own] = packed[request] + torch.arange(len(own), dtype=torch.int32)
    return (
        torch.cat(selected).int(),
        torch.cat(deferred).int(),
        active.int(),
        inverse,
        torch.tensor(nan, dtype=torch.bool),
    )


def _norm(x, weight, epsilon):
    return weight * (x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def gather_rmsnorm(stream, index, weight, epsilon):
    rows = stream.index_select(0, index)
    return rows, _norm(rows, weight, epsilon)


def add_rmsnorm(residual, delta, weight, epsilon):
    return _norm(residual.add_(delta), weight, epsilon)


def swiglu(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def write_back(stream, index, residual, delta):
    stream.index_copy_(0, index.long(), residual + delta)


def rope_kv_write(query, key, value, cos, sin, axes, rows, slots, key_pages, value_pages):
    own = rows.long()
    c, s = cos.index_select(-2, own), sin.index_select(-2, own)
    query, key = _turned(query, c, s, axes), _turned(key, c, s, axes)
    here = (slots >= 0).nonzero()[:, 0]
    for pages, states in ((key_pages, key), (value_pages, value)):
        pages[slots[here] // pages.shape[1], slots[here] % pages.shape[1]] = states[here]
    return query, key


def decode_paged(query, key_pages, value_pages, block_table, lengths, scale, max_length):
    out = torch.zeros_like(query)
    group, page = query.shape[1] // key_pages.shape[2], key_pages.shape[1]
    for request, length in enumerate(lengths.tolist()):
        if not length:
            continue
        rows = torch.arange(length)
        pages = block_table[request, rows // page].long()
        keys, values = (
            table[pages, rows % page].repeat_interleave(group, dim=1).transpose(0, 1)
            for table in (key_pages, value_pages)
        )
        out[request] = F.scaled_dot_product_attention(query[request][:, None], keys, values, scale=scale)[
            :, 0
        ]
    return out


def put_in_place(monkeypatch) -> None:
    """The operators run these instead of the kernels."""
    from reroute_optimized.kernels import decode, rope_kv, rows, score, select

    for module, names in (
        (score, ["score_last_row"]),
        (select, ["select_compact"]),
        (rows, ["gather_rmsnorm", "add_rmsnorm", "swiglu", "write_back"]),
        (rope_kv, ["rope_kv_write"]),
        (decode, ["decode_paged"]),
    ):
        for name in names:
            monkeypatch.setattr(module, name, globals()[name])
