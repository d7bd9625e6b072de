"""Every kernel in Triton's interpreter, by drawn and by chosen cases, between guard bands and in both orders of its programs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reroute_optimized.kernels import decode, rope_kv, rows, score, select, table

from . import judges
from .guard import DTYPES, plainly, same_bits, watched

INF = math.inf
pytestmark = pytest.mark.timeout(300)  # the interpreter beside other work

# deterministic, and few: a program of the interpreter takes about a millisecond
few = settings(max_examples=20, deadline=None, derandomize=True, database=None)
seeds = st.integers(0, 2**16)
dtypes = st.sampled_from(DTYPES)
heads = st.sampled_from([(1, 1), (1, 3), (2, 2), (4, 1), (3, 7)])
widths = st.sampled_from([(16, 16), (16, 8), (20, 20), (24, 16), (80, 80)])


@st.composite
def score_cases(draw):
    kv_heads, group = draw(heads)
    head_dim, rotary = draw(widths)
    turns = draw(st.booleans())
    return judges.ScoreCase(
        rows=tuple(draw(st.lists(st.sampled_from([0, 1, 2, 31, 32, 33, 65]), min_size=1, max_size=3))),
        kv_heads=kv_heads,
        group=group,
        head_dim=head_dim,
        rotary=rotary if turns else None,
        axes=draw(st.sampled_from([None, "sections", "interleaved"])) if turns else None,
        asking=draw(st.sampled_from([1, 1, 3, 34])),
        heads=draw(st.sampled_from(["mean", "max"])),
        dtype=draw(dtypes),
        seed=draw(seeds),
    )


@given(score_cases())
@few
def test_score(case):
    judges.score(score.score_last_row, case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_score_over_several_steps_of_the_reduction(dtype):
    """More tiles than one step reads, in one request of two."""
    rows = table.SCORE_ROWS * (table.SCORE_TILES * 2 + 1) + 3
    judges.score(score.score_last_row, judges.ScoreCase((rows, 4), 1, 2, dtype=dtype))


def turned_scores(query, key, cu_seqlens, cu_queries, scale, max_rows, heads):
    arguments = {
        "query": query,
        "key": key,
        "cu_seqlens": cu_seqlens,
        "cu_queries": cu_queries,
        "scale": scale,
    }
    absent = dict.fromkeys(("cos", "sin", "axes", "rotated"))
    return plainly(
        score.score_last_row, arguments | absent | {"max_rows": max_rows, "max_queries": 1, "heads": heads}
    )


def test_scores_of_logits_that_leave_all_weight_on_one_row():
    """Differences of hundreds underflow to zero, and nothing overflows."""
    key = torch.zeros(50, 1, 16)
    key[7] = 300.0
    cu = torch.tensor([0, 50], dtype=torch.int32)
    ask = torch.tensor([0, 1], dtype=torch.int32)
    scores = turned_scores(torch.ones(1, 1, 16), key, cu, ask, 1.0, 50, "mean")
    assert scores.tolist() == [float(i == 7) for i in range(50)]


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_a_nan_reaches_the_scores_of_its_own_request_only(reduction):
    key = torch.randn(40, 2, 16, generator=torch.Generator().manual_seed(0))
    key[5, 1] = math.nan
    query = torch.ones(2, 4, 16)
    cu, ask = torch.tensor([0, 20, 40], dtype=torch.int32), torch.tensor([0, 1, 2], dtype=torch.int32)
    scores = turned_scores(query, key, cu, ask, 0.25, 20, reduction)
    assert scores[:20].isnan().all()
    assert scores[20:].isfinite().all()


def test_keys_of_a_score_are_those_of_the_cache():
    """RR-KV-012: both kernels turn a key to the same bits, so either may be stored."""
    chance = torch.Generator().manual_seed(3)
    key, turn = (torch.randn(shape, generator=chance) for shape in ((20, 2, 24), (20, 16)))
    rotated = torch.zeros_like(key)
    cu, ask = judges.offsets([20]), judges.offsets([1])
    pages = [torch.zeros(2, 16, 2, 24) for _ in "kv"]
    rows = torch.arange(20, dtype=torch.int32)
    _, turned = plainly(
        rope_kv.rope_kv_write,
        {"query": key, "key": key, "value": key, "cos": turn.cos(), "sin": turn.sin(), "axes": None, "rows": rows,
         "slots": rows.long(), "key_pages": pages[0], "value_pages": pages[1]},
    )  # fmt: skip
    arguments = {
        "query": key[-1:],
        "key": key,
        "cos": turn.cos(),
        "sin": turn.sin(),
        "axes": None,
        "cu_seqlens": cu,
    }
    more = {
        "cu_queries": ask,
        "rotated": rotated,
        "scale": 1.0,
        "max_rows": 20,
        "max_queries": 1,
        "heads": "mean",
    }
    _, scored = watched(score.score_last_row, arguments | more, writes=("rotated",))
    assert same_bits(scored, turned)


NUMBERS = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, INF, -INF, 1e-40, -1e-40, 0.5, math.nextafter(0.5, 1), 3e38, 2.0]
)
REQUESTS = st.text("ttvvvx", max_size=60)


@given(
    st.lists(REQUESTS, min_size=1, max_size=3),
    st.lists(st.sampled_from([0.0, 0.1, 0.34, 0.5, 1.0]), min_size=1, max_size=4),
    st.lists(NUMBERS, min_size=1, max_size=40)
    | st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40),
    st.booleans(),
)
@few
def test_select_compact(requests, keeps, values, spans):
    case = judges.SelectCase(tuple(requests), tuple(keeps), tuple(float(v) for v in values), spans)
    judges.select_compact(select.select_compact, case)


@pytest.mark.parametrize("values", [(1.0,), (2.0, 1.0, 2.0), tuple(range(300, 0, -1)), tuple(range(777))])
def test_select_compact_over_several_tiles(monkeypatch, values):
    """The same for tiles as wide as a request and for many narrow ones; ties and orders lie across their edges."""
    monkeypatch.setattr(table, "SELECT_ROWS", 128)
    case = judges.SelectCase(("t" * 9 + "v" * 500 + "ttt", "v" * 129, "tv" * 128), (0.3, 1.0, 0.5), values)
    judges.select_compact(select.select_compact, case)


@pytest.mark.parametrize("count", [4095, 4096, 4097])
def test_select_compact_at_the_edge_of_a_tile(count):
    scores = torch.randint(0, 200, (count,), generator=torch.Generator().manual_seed(count)).float()
    case = judges.SelectCase(("v" * count + "tt",), (0.11,), (*scores.tolist(), 0.0, 0.0))
    judges.select_compact(select.select_compact, case)


def all_visual(scores, kept):
    """One request of nothing but candidates, ``kept`` of them asked for."""
    count, starts = len(scores), judges.offsets
    return {
        "scores": scores, "candidates": torch.arange(count, dtype=torch.int32), "cu_candidates": starts([count]),
        "cu_selected": starts([kept]), "always": torch.zeros(count, dtype=torch.bool), "cu_seqlens": starts([count]),
        "cu_active": starts([kept]), "num_selected": min(kept, count), "num_active": min(kept, count),
        "max_candidates": count, "max_rows": count,
    }  # fmt: skip


def test_select_compact_of_the_longest_request():
    scores = torch.randint(0, 900, (65536,), generator=torch.Generator().manual_seed(0)).float()
    selected, deferred, active, _, _ = plainly(select.select_compact, all_visual(scores, 7000))
    order = scores.sort(descending=True, stable=True).indices
    assert torch.equal(selected.long(), order[:7000].sort().values)
    assert torch.equal(deferred.long(), order[7000:].sort().values)
    assert torch.equal(active, selected)


def test_more_than_there_are_stays_within_bounds():
    """What a device's table claims is the caller's word; a wrong one must not write elsewhere."""
    scores = torch.tensor([2.0, 1.0, 3.0])
    selected, *_ = watched(select.select_compact, all_visual(scores, 5))
    assert selected.tolist() == [0, 1, 2]


def test_a_nan_is_flagged_for_its_segment_and_the_others_are_right():
    scores = torch.tensor([3.0, 1.0, 2.0, math.nan, 1.0, 2.0, 5.0, -math.nan])
    cu = torch.tensor([0, 3, 6, 8], dtype=torch.int32)
    kept = torch.tensor([0, 1, 2, 3], dtype=torch.int32)
    arguments = {
        "scores": scores, "candidates": torch.arange(8, dtype=torch.int32), "cu_candidates": cu, "cu_selected": kept,
        "always": torch.zeros(8, dtype=torch.bool), "cu_seqlens": cu, "cu_active": kept, "num_selected": 3,
        "num_active": 3, "max_candidates": 3, "max_rows": 3,
    }  # fmt: skip
    selected, deferred, active, _, has_nan = plainly(select.select_compact, arguments)
    assert has_nan.tolist() == [False, True, True]
    assert selected.tolist()[0] == active.tolist()[0] == 0
    assert len(selected) + len(deferred) == 8
    assert all(0 <= place < 3 for place in selected.tolist() + deferred.tolist())


@pytest.mark.parametrize("judge", ["gather_rmsnorm", "add_rmsnorm", "swiglu", "write_back"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 4, 48), (6, 0, 16), (5, 5, 1024), (3, 2, 1100)])
def test_rows(judge, dtype, shape):
    getattr(judges, judge)(getattr(rows, judge), judges.RowsCase(*shape, dtype=dtype))


@st.composite
def rope_cases(draw):
    kv_heads, group = draw(heads)
    head_dim, rotary = draw(widths)
    count = draw(st.integers(0, 9))
    return judges.RopeCase(
        rows=count,
        padding=draw(st.integers(0, count)),
        kv_heads=kv_heads,
        group=group,
        head_dim=head_dim,
        rotary=rotary,
        axes=draw(st.sampled_from([None, "sections", "interleaved"])),
        page=draw(st.sampled_from([1, 4, 16])),
        dtype=draw(dtypes),
        seed=draw(seeds),
    )


@given(rope_cases())
@few
def test_rope_kv_write(case):
    judges.rope_kv_write(rope_kv.rope_kv_write, case)


@st.composite
def decode_cases(draw):
    kv_heads, group = draw(heads)
    return judges.DecodeCase(
        lengths=tuple(
            draw(st.lists(st.sampled_from([0, 1, 7, 32, 33, 64, 255, 256, 257]), min_size=1, max_size=3))
        ),
        kv_heads=kv_heads,
        group=group,
        head_dim=draw(st.sampled_from([16, 24, 80])),
        page=draw(st.sampled_from([1, 4, 16])),
        dtype=draw(dtypes),
        seed=draw(seeds),
    )


@given(decode_cases())
@few
def test_decode_paged(case):
    judges.decode_paged(decode.decode_paged, case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_over_several_steps_of_the_reduction(dtype):
    length = table.DECODE_SPLIT * (table.DECODE_SPLITS + 1) + 3
    judges.decode_paged(decode.decode_paged, judges.DecodeCase((length, 5), 1, 2, page=64, dtype=dtype))
