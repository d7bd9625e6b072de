"""The kernels at the shapes of public models, each beside the library's form of the same work; and small, to rehearse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from reroute_optimized.kernels import ops
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One kernel at one shape, and the library's form of the same work, which leaves the same behind.

    Attributes:
        bytes: the least that have to move.
        inputs: what a replay has to follow when it is changed in place.
    """

    kernel: str
    shape: str
    ours: Callable[[], Any]
    library: Callable[[], Any]
    bytes: int
    inputs: tuple[Tensor, ...]


class Maker:
    """Inputs on one device in one dtype."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.chance = torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        """Values in the dtype."""
        return torch.randn(shape, generator=self.chance, device=self.device).to(self.dtype)

    def index(self, values: Any) -> Tensor:
        """A table of int32."""
        return torch.as_tensor(values, dtype=torch.int32, device=self.device)

    def starts(self, count: int, each: int) -> Tensor:
        """Where ``count`` members of ``each`` begin, and the end."""
        return self.index([i * each for i in range(count + 1)])


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[rows, heads, head_dim] turned in half-split pairs."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]


def score_case(make: Maker, requests: int, rows: int, heads: int, kv_heads: int, head_dim: int) -> Case:
    """One asking row a request."""
    query, key = make.normal(requests, heads, head_dim), make.normal(requests * rows, kv_heads, head_dim)
    cos, sin = make.normal(requests * rows, head_dim), make.normal(requests * rows, head_dim)
    out = torch.empty_like(key)
    cu, ask = make.starts(requests, rows), make.starts(requests, 1)
    last = (cu[1:] - 1).long()

    def ours() -> Tensor:
        return ops.score_last_row(query, key, cos, sin, None, cu, ask, out, head_dim**-0.5, rows, 1, "mean")

    def library() -> Tensor:
        keys = rotated(key, cos, sin).view(requests, rows, kv_heads, head_dim).float()
        asking = rotated(query, cos[last], sin[last]).float().view(requests, kv_heads, -1, head_dim)
        logits = torch.einsum("rkgd,rskd->rkgs", asking, keys) * head_dim**-0.5
        return logits.softmax(-1).flatten(1, 2).mean(1).flatten()

    moved = 2 * key.nbytes + cos.nbytes + sin.nbytes + query.nbytes + 4 * requests * rows
    shape = f"{requests} x {rows} rows, {heads}/{kv_heads} heads of {head_dim}"
    return Case("score_last_row", shape, ours, library, moved, (query, key))


def select_case(make: Maker, requests: int, visual: int, text: int, kept: int) -> Case:
    """The library sorts: ``topk`` would not keep ties in order."""
    rows = visual + text
    scores = torch.rand(requests * rows, generator=make.chance, device=make.device)
    place = torch.arange(requests * rows, device=make.device)
    is_visual = place % rows < visual
    candidates = place[is_visual].int()
    arguments = (
        scores, candidates, make.starts(requests, visual), make.starts(requests, kept), ~is_visual,
        make.starts(requests, rows), make.starts(requests, kept + text), requests * kept, requests * (kept + text),
        visual, rows,
    )  # fmt: skip

    def library() -> Tensor:
        own = scores[candidates].view(requests, visual)
        chosen = own.sort(dim=1, descending=True, stable=True).indices[:, :kept].sort(dim=1).values
        runs = (~is_visual).view(requests, rows).scatter(1, chosen, True)
        order = (~runs).long().sort(dim=1, stable=True).indices[:, : kept + text]
        return (order + torch.arange(requests, device=make.device)[:, None] * rows).flatten().int()

    moved = scores.nbytes + candidates.nbytes + 4 * requests * (visual + kept + text + rows) + rows * requests
    shape = f"{requests} x {visual} candidates, {kept} kept"
    return Case("select_compact", shape, lambda: ops.select_compact(*arguments)[2], library, moved, (scores,))


def rows_cases(make: Maker, rows: int, stage: int, width: int, mlp: int) -> Iterator[Case]:
    """The ends of a stage and of a block."""
    stream, weight = make.normal(rows, width), make.normal(width)
    index = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[:stage].sort().values
    index, long = make.index(index), index.to(make.device)
    delta, gate_up, target = make.normal(stage, width), make.normal(stage, 2 * mlp), make.normal(stage, width)
    ours, theirs = (make.normal(stage, width) for _ in range(2))  # residuals that are added to in place
    theirs.copy_(ours)
    own, others = make.normal(rows, width), make.normal(rows, width)
    others.copy_(own)
    shape = f"{stage} of {rows} rows, {width} channels"

    def gather() -> tuple[Tensor, Tensor]:
        taken = stream.index_select(0, long)
        return taken, F.rms_norm(taken, (width,), weight, 1e-5)

    def add() -> tuple[Tensor, Tensor]:
        theirs.add_(delta)
        return theirs, F.rms_norm(theirs, (width,), weight, 1e-5)

    def add_ours() -> tuple[Tensor, Tensor]:
        normed = ops.add_rmsnorm(ours, delta, weight, 1e-5)
        return ours, normed

    def swiglu() -> Tensor:
        gate, up = gate_up.split(mlp, dim=1)
        return F.silu(gate) * up

    def write() -> Tensor:
        return others.index_copy_(0, long, target + delta)

    def write_ours() -> Tensor:
        ops.write_back(own, index, target, delta)
        return own

    row = stage * width * stream.element_size()
    yield Case(
        "gather_rmsnorm",
        shape,
        lambda: ops.gather_rmsnorm(stream, index, weight, 1e-5),
        gather,
        3 * row,
        (stream,),
    )
    yield Case("add_rmsnorm", shape, add_ours, add, 4 * row, (delta,))
    yield Case(
        "swiglu",
        f"{stage} rows, {mlp} channels",
        lambda: ops.swiglu(gate_up),
        swiglu,
        gate_up.nbytes * 3 // 2,
        (gate_up,),
    )
    yield Case("write_back", shape, write_ours, write, 3 * row, (target, delta))


def rope_case(make: Maker, rows: int, heads: int, kv_heads: int, head_dim: int) -> Case:
    """Rows of a stage into one block's pages."""
    query = make.normal(rows, heads, head_dim)
    key, value = make.normal(rows, kv_heads, head_dim), make.normal(rows, kv_heads, head_dim)
    cos, sin = make.normal(2 * rows, head_dim), make.normal(2 * rows, head_dim)
    index = make.index(range(0, 2 * rows, 2))
    pages = [make.normal(rows // 16 + 2, 16, kv_heads, head_dim) for _ in range(4)]
    slots = torch.arange(rows, device=make.device) + 7

    def ours() -> tuple[Tensor, Tensor]:
        turned, _ = ops.rope_kv_write(query, key, value, cos, sin, None, index, slots, pages[0], pages[1])
        return turned, pages[0].flatten(0, 1)[7 : 7 + rows]

    def library() -> tuple[Tensor, Tensor]:
        c, s = cos[index], sin[index]
        turned, keys = rotated(query, c, s), rotated(key, c, s)
        pages[2].flatten(0, 1).index_copy_(0, slots, keys)
        pages[3].flatten(0, 1).index_copy_(0, slots, value)
        return turned, pages[2].flatten(0, 1)[7 : 7 + rows]

    moved = 2 * query.nbytes + 3 * key.nbytes + 2 * value.nbytes + (cos.nbytes + sin.nbytes) // 2
    shape = f"{rows} rows, {heads}/{kv_heads} heads of {head_dim}"
    return Case("rope_kv_write", shape, ours, library, moved, (query, key, value))


def decode_case(make: Maker, requests: int, length: int, heads: int, kv_heads: int, head_dim: int) -> Case:
    """One new row a request."""
    each = -(-length // 16)
    keys, values = (make.normal(requests * each, 16, kv_heads, head_dim) for _ in "kv")
    query, table = (
        make.normal(requests, heads, head_dim),
        make.index(range(requests * each)).view(requests, each),
    )
    lengths = make.index([length] * requests)

    def library() -> Tensor:
        # the rows already lie in order: the library is spared the gather
        k, v = (
            x.view(requests, each * 16, kv_heads, head_dim)[:, :length].transpose(1, 2)
            for x in (keys, values)
        )
        return F.scaled_dot_product_attention(query[:, :, None], k, v, enable_gqa=True)[:, :, 0]

    return Case(
        "decode_paged",
        f"{requests} x {length} rows, {heads}/{kv_heads} heads of {head_dim}",
        lambda: ops.decode_paged(query, keys, values, table, lengths, head_dim**-0.5, length),
        library,
        2 * requests * length * kv_heads * head_dim * keys.element_size() + 2 * query.nbytes,
        (query, keys, values),
    )


def cases(make: Maker, small: bool) -> Iterator[Case]:
    """Public shapes: LLaVA-1.5-7B and Qwen2.5-VL-7B; small ones to rehearse."""
    if small:
        yield score_case(make, 2, 40, 4, 2, 16)
        yield select_case(make, 2, 40, 7, 9)
        yield from rows_cases(make, 12, 5, 32, 48)
        yield rope_case(make, 6, 4, 2, 16)
        yield decode_case(make, 2, 37, 4, 2, 16)
        return
    for requests in (1, 8, 64):
        yield score_case(make, requests, 640, 32, 32, 128)
        yield score_case(make, requests, 640, 28, 4, 128)
        yield select_case(make, requests, 576, 64, 192)
        yield from rows_cases(make, 640 * requests, 256 * requests, 4096, 11008)
        yield rope_case(make, 256 * requests, 32, 32, 128)
        yield decode_case(make, requests, 256, 32, 32, 128)
        yield decode_case(make, requests, 256, 28, 4, 128)
    yield score_case(make, 1, 8256, 28, 4, 128)
    yield select_case(make, 64, 4096, 64, 1365)
    yield select_case(make, 1, 8192, 64, 2730)
    yield select_case(make, 1, 65536, 64, 7282)
