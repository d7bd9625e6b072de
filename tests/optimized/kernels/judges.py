"""What every kernel has to be, by the specification, the reference or plain torch: one judge a kernel, which takes any launcher.

A judge draws tensors from the case's seed, watches the launcher (see ``guard``) and asserts. Tests give it the kernels, mutants
give it broken ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from reroute_reference.score import apply_rotary, attention_scores
from reroute_spec import ScoreRule, select
from torch import Tensor
from torch.nn import functional as F

from .guard import plainly, same_bits, watched

Launcher = Callable[..., Any]


def offsets(counts: Sequence[int]) -> Tensor:
    """Where each begins, and the sum."""
    return torch.tensor([0, *accumulate(counts)], dtype=torch.int32)


def close(actual: Tensor, plain: Tensor, oracle: Tensor) -> None:
    """RR-NUM-001: largest and root-mean-square error at most twice those of plain torch, plus a floor."""
    assert actual.shape == oracle.shape
    assert actual.isfinite().all()
    floor = 64 * torch.finfo(plain.dtype).eps
    for size in (lambda x: x.abs().max(), lambda x: x.square().mean().sqrt()):
        if oracle.numel():
            most = 2 * size(plain.double() - oracle) + floor * size(oracle)
            assert size(actual.double() - oracle) <= most


def draw(seed: int) -> Callable[..., Tensor]:
    """Normal tensors, one after another."""
    chance = torch.Generator().manual_seed(seed)
    return lambda *shape, dtype=torch.float32: torch.randn(shape, generator=chance).to(dtype)


# ---------------------------------------------------------------------------------------------------------------- score


@dataclass(frozen=True)
class ScoreCase:
    """Rows of every request; rotary width None: turned keys come in; axes: one table, or sections of three."""

    rows: tuple[int, ...]
    kv_heads: int = 2
    group: int = 2
    head_dim: int = 16
    rotary: int | None = 16
    axes: str | None = None
    asking: int = 1
    heads: str = "mean"
    dtype: torch.dtype = torch.float32
    seed: int = 0


def angles(
    case: Any, rows: int, normal: Callable[..., Tensor]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """cos and sin as a kernel gets them, its axes, and both as every row has them, [rows, W]."""
    half = case.rotary // 2
    tables = 1 if case.axes is None else 3
    turn = normal(tables, rows, half)
    cos, sin = (torch.cat([x, x], -1).to(case.dtype) for x in (turn.cos(), turn.sin()))
    if case.axes is None:
        return cos[0], sin[0], None, cos[0], sin[0]
    place = torch.arange(half)
    axis = place % 3 if case.axes == "interleaved" else place * 3 // half
    axes = torch.cat([axis, axis]).int()
    chosen = axes.long()[None, None].expand(1, rows, -1)
    return cos, sin, axes, cos.gather(0, chosen)[0], sin.gather(0, chosen)[0]


def score(launcher: Launcher, case: ScoreCase) -> None:
    """Against the reference's scores in float64, as near as the reference in the case's dtype; each request's bits its own."""
    normal, total = draw(case.seed), sum(case.rows)
    asked = [min(case.asking, n) for n in case.rows]
    query = normal(sum(asked), case.kv_heads * case.group, case.head_dim, dtype=case.dtype)
    key = normal(total, case.kv_heads, case.head_dim, dtype=case.dtype)
    cos = sin = axes = rotated = None
    row_cos, row_sin = torch.ones(total, 0), torch.zeros(total, 0)
    if case.rotary is not None:
        cos, sin, axes, row_cos, row_sin = angles(case, total, normal)
        rotated = torch.full_like(key, float("nan"))
    arguments = {
        "query": query, "key": key, "cos": cos, "sin": sin, "axes": axes, "cu_seqlens": offsets(case.rows),
        "cu_queries": offsets(asked), "rotated": rotated, "scale": case.head_dim**-0.5,
        "max_rows": max(case.rows, default=0), "max_queries": case.asking, "heads": case.heads,
    }  # fmt: skip
    scores, *keys = watched(launcher, arguments, writes=("rotated",))
    rule = ScoreRule(query="last_n", n=case.asking, heads=case.heads)
    start = first = 0
    for rows, asks in zip(case.rows, asked, strict=True):
        here, asking = slice(start, start + rows), slice(first, first + asks)
        last = slice(start + rows - asks, start + rows)
        plain_keys = apply_rotary(
            key[here].transpose(0, 1), row_cos[here].to(case.dtype), row_sin[here].to(case.dtype)
        )
        exact_keys = apply_rotary(
            key[here].double().transpose(0, 1), row_cos[here].double(), row_sin[here].double()
        )
        if rows:
            queries = query[asking].transpose(0, 1)
            plain_query = apply_rotary(queries, row_cos[last].to(case.dtype), row_sin[last].to(case.dtype))
            exact_query = apply_rotary(queries.double(), row_cos[last].double(), row_sin[last].double())
            plain = attention_scores(plain_query, plain_keys, arguments["scale"], rule)
            exact = attention_scores(exact_query, exact_keys, arguments["scale"], rule)
            close(scores[here], plain, exact)
            if keys:
                close(keys[0][here].transpose(0, 1), plain_keys, exact_keys)
        alone = {
            name: value[here] if name in ("key", "rotated") else value
            for name, value in arguments.items()
            if value is not None
        }
        if rows and len(case.rows) > 1:
            for name in ("cos", "sin"):
                if name in alone:
                    alone[name] = alone[name][..., here, :].contiguous()
            alone |= {
                "query": query[asking],
                "cu_seqlens": offsets([rows]),
                "cu_queries": offsets([asks]),
                "max_rows": rows,
            }
            by_itself = plainly(launcher, dict.fromkeys(arguments) | alone)
            assert same_bits(by_itself, scores[here]), "a request's scores depend on its neighbours"
        start, first = start + rows, first + asks


# --------------------------------------------------------------------------------------------------------------- select


@dataclass(frozen=True)
class SelectCase:
    """Requests as strings of rows: ``t`` always runs, ``v`` is a candidate, ``x`` is neither; spans: a segment per run of v."""

    requests: tuple[str, ...]
    keeps: tuple[float, ...]
    values: tuple[float, ...]
    spans: bool = False


def select_compact(launcher: Launcher, case: SelectCase) -> None:
    """Against the specification's own selection, in plain Python."""
    scores = [case.values[i % len(case.values)] for i in range(sum(map(len, case.requests)))]
    segments: list[list[int]] = []
    start, active_counts, always = 0, [], []
    active: list[int] = []
    selected: list[list[int]] = []
    for text in case.requests:
        rows = [start + i for i, kind in enumerate(text) if kind == "v"]
        own = _runs(rows) if case.spans else [rows]
        running = {start + i for i, kind in enumerate(text) if kind == "t"}
        always += [kind == "t" for kind in text]
        for segment in own:
            k = int(case.keeps[len(segments) % len(case.keeps)] * len(segment))
            chosen = select([scores[row] for row in segment], k)
            segments.append(segment)
            selected.append(chosen)
            running |= {segment[place] for place in chosen}
        active += sorted(running)
        active_counts.append(len(running))
        start += len(text)
    deferred = [
        [p for p in range(len(s)) if p not in set(c)] for s, c in zip(segments, selected, strict=True)
    ]
    arguments = {
        "scores": torch.tensor(scores, dtype=torch.float32),
        "candidates": torch.tensor([row for s in segments for row in s], dtype=torch.int32),
        "cu_candidates": offsets([len(s) for s in segments]),
        "cu_selected": offsets([len(s) for s in selected]),
        "always": torch.tensor(always, dtype=torch.bool),
        "cu_seqlens": offsets([len(text) for text in case.requests]),
        "cu_active": offsets(active_counts),
        "num_selected": sum(map(len, selected)),
        "num_active": len(active),
        "max_candidates": max(map(len, segments), default=0),
        "max_rows": max(map(len, case.requests), default=0),
    }
    got_selected, got_deferred, got_active, inverse, has_nan = watched(launcher, arguments)
    assert got_selected.tolist() == [p for s in selected for p in s]
    assert got_deferred.tolist() == [p for s in deferred for p in s]
    assert got_active.tolist() == active
    places = {row: place for place, row in enumerate(active)}
    assert inverse.tolist() == [places.get(row, -1) for row in range(start)]
    assert has_nan.tolist() == [False] * len(segments)


def _runs(rows: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for row in rows:
        if runs and runs[-1][-1] == row - 1:
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


# ----------------------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class RowsCase:
    """Rows of a stream and of a stage of it, their width."""

    rows: int
    stage: int
    width: int
    dtype: torch.dtype = torch.float32
    seed: int = 0


def _stage(case: RowsCase) -> Tensor:
    chance = torch.Generator().manual_seed(case.seed + 1)
    return torch.randperm(case.rows, generator=chance)[: case.stage].sort().values.int()


def small(rows: Tensor) -> Tensor:
    """Rows of very different sizes, the first of nothing but zeros: where a norm's epsilon is seen."""
    return rows * torch.logspace(-3, 1, len(rows))[:, None] * (torch.arange(len(rows)) > 0)[:, None]


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The Llama family's, rounding where it does."""
    wide = x.float() if x.dtype != torch.float64 else x
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return weight * wide.to(x.dtype)


def gather_rmsnorm(launcher: Launcher, case: RowsCase) -> None:
    """Rows bit for bit, their norm near."""
    normal, index = draw(case.seed), _stage(case)
    stream, weight = (
        small(normal(case.rows, case.width)).to(case.dtype),
        normal(case.width, dtype=case.dtype),
    )
    rows, normed = watched(launcher, {"stream": stream, "index": index, "weight": weight, "epsilon": 1e-5})
    taken = stream[index.long()]
    assert same_bits(rows, taken)
    close(normed, _norm(taken, weight, 1e-5), _norm(taken.double(), weight.double(), 1e-5))


def add_rmsnorm(launcher: Launcher, case: RowsCase) -> None:
    """The sum bit for bit, its norm near."""
    normal = draw(case.seed)
    residual, delta = (small(normal(case.stage, case.width)).to(case.dtype) for _ in range(2))
    weight = normal(case.width, dtype=case.dtype)
    arguments = {"residual": residual, "delta": delta, "weight": weight, "epsilon": 1e-5}
    normed, total = watched(launcher, arguments, writes=("residual",))
    assert same_bits(total, residual + delta)
    close(normed, _norm(total, weight, 1e-5), _norm(total.double(), weight.double(), 1e-5))


def swiglu(launcher: Launcher, case: RowsCase) -> None:
    """Near."""
    gate_up = draw(case.seed)(case.stage, 2 * case.width, dtype=case.dtype)
    (out,) = watched(launcher, {"gate_up": gate_up})
    gate, up = gate_up.split(case.width, dim=1)
    close(out, F.silu(gate) * up, F.silu(gate.double()) * up.double())


def write_back(launcher: Launcher, case: RowsCase) -> None:
    """The sums where they belong, every other row as it was, bit for bit."""
    normal, index = draw(case.seed), _stage(case)
    stream = normal(case.rows, case.width, dtype=case.dtype)
    residual, delta = (normal(case.stage, case.width, dtype=case.dtype) for _ in range(2))
    arguments = {"stream": stream, "index": index, "residual": residual, "delta": delta}
    (written,) = watched(launcher, arguments, writes=("stream",))
    assert same_bits(written, stream.index_copy(0, index.long(), residual + delta))


# ---------------------------------------------------------------------------------------------------------------- cache


@dataclass(frozen=True)
class RopeCase:
    """Rows of a stage, some of which are padding without a slot."""

    rows: int
    padding: int = 0
    kv_heads: int = 2
    group: int = 2
    head_dim: int = 16
    rotary: int = 16
    axes: str | None = None
    page: int = 4
    dtype: torch.dtype = torch.float32
    seed: int = 0


def rope_kv_write(launcher: Launcher, case: RopeCase) -> None:
    """Turned rows near the reference's, pages hold just those and the values, and nothing else of a page is touched."""
    normal, table_rows = draw(case.seed), case.rows + 5
    cos, sin, axes, row_cos, row_sin = angles(case, table_rows, normal)
    chance = torch.Generator().manual_seed(case.seed)
    rows = torch.randint(table_rows, (case.rows,), generator=chance).int()
    pages = -(-case.rows // case.page) + 1
    slots = torch.randperm(pages * case.page, generator=chance)[: case.rows]
    slots[case.rows - case.padding :] = torch.tensor([-1, -7]).repeat(case.rows)[: case.padding]
    query = normal(case.rows, case.kv_heads * case.group, case.head_dim, dtype=case.dtype)
    key, value = (normal(case.rows, case.kv_heads, case.head_dim, dtype=case.dtype) for _ in range(2))
    before = [normal(pages, case.page, case.kv_heads, case.head_dim, dtype=case.dtype) for _ in range(2)]
    arguments = {
        "query": query, "key": key, "value": value, "cos": cos, "sin": sin, "axes": axes, "rows": rows,
        "slots": slots, "key_pages": before[0], "value_pages": before[1],
    }  # fmt: skip
    turned_query, turned_key, *after = watched(launcher, arguments, writes=("key_pages", "value_pages"))
    c, s = row_cos[rows.long()], row_sin[rows.long()]
    for got, given in ((turned_query, query), (turned_key, key)):
        plain = apply_rotary(given.transpose(0, 1), c, s).transpose(0, 1)
        exact = apply_rotary(given.double().transpose(0, 1), c.double(), s.double()).transpose(0, 1)
        close(got, plain, exact)
    written = slots[slots >= 0]
    for got, old, new in zip(after, before, (turned_key, value), strict=True):
        assert same_bits(got.flatten(0, 1), old.flatten(0, 1).index_copy(0, written, new[: len(written)]))


@dataclass(frozen=True)
class DecodeCase:
    """Rows that a block holds for every request."""

    lengths: tuple[int, ...]
    kv_heads: int = 2
    group: int = 2
    head_dim: int = 16
    page: int = 4
    dtype: torch.dtype = torch.float32
    seed: int = 0


def decode_paged(launcher: Launcher, case: DecodeCase) -> None:
    """Near plain attention over just the request's rows, whatever lies beyond them in its pages; each request's bits its own."""
    normal, chance = draw(case.seed), torch.Generator().manual_seed(case.seed)
    most = max(-(-n // case.page) for n in case.lengths)
    needed = sum(-(-n // case.page) for n in case.lengths)
    order = torch.randperm(needed + 1, generator=chance)
    block_table = torch.full((len(case.lengths), max(most, 1)), needed, dtype=torch.int32)
    pages = [
        torch.full((needed + 1, case.page, case.kv_heads, case.head_dim), float("nan"), dtype=case.dtype)
        for _ in "kv"
    ]
    query = normal(len(case.lengths), case.kv_heads * case.group, case.head_dim, dtype=case.dtype)
    held, taken = [], 0
    for request, length in enumerate(case.lengths):
        own = order[taken : taken + -(-length // case.page)]
        taken += len(own)
        block_table[request, : len(own)] = own
        kv = [normal(length, case.kv_heads, case.head_dim, dtype=case.dtype) for _ in "kv"]
        for page, rows in zip(pages, kv, strict=True):
            at = torch.arange(length)
            page[own[at // case.page], at % case.page] = rows
        held.append(kv)
    arguments = {
        "query": query, "key_pages": pages[0], "value_pages": pages[1], "block_table": block_table,
        "lengths": torch.tensor(case.lengths, dtype=torch.int32), "scale": case.head_dim**-0.5,
        "max_length": max(case.lengths),
    }  # fmt: skip
    (out,) = watched(launcher, arguments)
    for request, (keys, values) in enumerate(held):
        if not len(keys):
            assert not out[request].any()
            continue
        mine = slice(request, request + 1)
        plain = _attend(query[request], keys, values, arguments["scale"])
        close(
            out[request],
            plain,
            _attend(query[request].double(), keys.double(), values.double(), arguments["scale"]),
        )
        alone = {
            "query": query[mine],
            "block_table": block_table[mine],
            "lengths": arguments["lengths"][mine],
        }
        by_itself = plainly(launcher, arguments | alone | {"max_length": len(keys)})
        assert same_bits(by_itself[0], out[request]), "a request's attention depends on its neighbours"


def _attend(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    group = query.shape[0] // keys.shape[1]
    return F.scaled_dot_product_attention(
        query[:, None],
        *(x.transpose(0, 1).repeat_interleave(group, dim=0) for x in (keys, values)),
        scale=scale,
    )[:, 0]
