"""The suite itself: every kernel with one thing broken is found by its own judge, on a few fixed cases.

A mutant is one replacement in a kernel's source; the file that results is imported beside the real ones.
"""

import importlib.util
from itertools import count
from pathlib import Path

import pytest
import torch
from reroute_optimized import kernels
from reroute_optimized.kernels import table

from . import judges
from .guard import DEVICE

pytestmark = pytest.mark.skipif(
    DEVICE != "cpu", reason="a mutant's wild writes would end this process's use of a GPU"
)

HALF = torch.float16
CASES = {
    "score": [
        judges.ScoreCase((33, 0, 70), 2, 3, axes="sections"),
        judges.ScoreCase((40, 3), 2, 2, rotary=8, asking=5, heads="max"),
        judges.ScoreCase((600,), 1, 3, rotary=None, dtype=HALF),
    ],
    "select_compact": [
        judges.SelectCase(("ttvvvvvtvvxt", "", "vvvvt"), (0.5,), (1.0, 0.0, -0.0, 1.0, 2.0, 0.0)),
        judges.SelectCase(("tvvvvtvvvvv",), (0.5, 0.2), (-1.0, -2.0, 1e-40, 0.0, 3.0)),
        judges.SelectCase(("vvvvtvvvtt", "vvvvv"), (0.5, 1.0, 0.4), (1.0, 1.0, 2.0), spans=True),
        judges.SelectCase(("t" + "v" * 500,), (0.5,), (1.0, 5.0, 4.0, 1.0, 3.0)),  # four tiles, see below
        judges.SelectCase(("vvvvv",), (0.5,), (-0.0, 0.0)),
        judges.SelectCase(("vvvv",), (0.5,), (-1.0, -2.0, -3.0, -4.0)),
        judges.SelectCase(("vvvv",), (0.5,), (1.0, 1.0, 1.0 + 2**-23, 1.0 + 2**-22)),
    ],
    "gather_rmsnorm": [judges.RowsCase(9, 4, 48), judges.RowsCase(5, 3, 1100, dtype=HALF)],
    "add_rmsnorm": [judges.RowsCase(9, 4, 48), judges.RowsCase(5, 3, 1100, dtype=HALF)],
    "swiglu": [judges.RowsCase(9, 4, 48), judges.RowsCase(5, 3, 1100, dtype=HALF)],
    "write_back": [judges.RowsCase(9, 4, 48), judges.RowsCase(5, 3, 1100, dtype=HALF)],
    "rope_kv_write": [
        judges.RopeCase(7, 2, 2, 3, axes="interleaved"),
        judges.RopeCase(5, 0, 3, 1, 24, 16, page=1, dtype=HALF),
    ],
    "decode_paged": [
        judges.DecodeCase((33, 0, 257), 2, 3, page=16),
        judges.DecodeCase((5, 31), 3, 1, 24, dtype=HALF),
    ],
}
LAUNCHERS = {
    "score": "score:score_last_row",
    "select_compact": "select:select_compact",
    "gather_rmsnorm": "rows:gather_rmsnorm",
    "add_rmsnorm": "rows:add_rmsnorm",
    "swiglu": "rows:swiglu",
    "write_back": "rows:write_back",
    "rope_kv_write": "rope_kv:rope_kv_write",
    "decode_paged": "decode:decode_paged",
}
MUTANTS = {
    "score": {
        "the last tile is not reduced": ("tiles = tl.cdiv(rows, ROWS)", "tiles = rows // ROWS"),
        "only the first tiles are reduced": ("first += TILES", "first += tiles"),
        "asking rows see what comes after them": ("seen = local <= asking", "seen = here"),
        "a tile's edge is not masked": ("seen = local <= asking", "seen = local <= asking + 64"),
        "query heads read another key head": (
            "head = kv_head * GROUP + g",
            "head = g * (HEADS // GROUP) + kv_head",
        ),
        "keys are turned by places in their request": ("at = row[:, None] * angle_row", "at = local[:, None] * angle_row"),
        "the query is turned by the position before": ("(start + asking)", "(start + tl.maximum(asking - 1, 0))"),
        "all channels take the first axis": ("angle_axis, ROTARY, HAS_AXES", "angle_axis, ROTARY, False"),
        "heads that only pad count": ("axis=0) / HEADS", "axis=0) / ALL_HEADS"),
        "max is the mean": ("score = tl.max(total, axis=0)", "score = tl.sum(total, axis=0) / HEADS"),
        "asking rows that are not there count": ("total = total / asked", "total = total / MOST_QUERIES"),
        "rows are taken for dense": ('"query_head": query.stride(1)', '"query_head": head_dim'),
        "keys are taken for dense": ('"key_row": key.stride(0)', '"key_row": kv_heads * head_dim'),
        "the first rows ask": ("asking = rows - asked + i", "asking = i"),
        "tiles are not brought to one maximum": ("parts * tl.exp(peaks - base[:, None])", "parts"),
        "turned keys are not written for the first row": ("mask=block)\n            keys", "mask=block & (row > 0)[:, None])\n            keys"),
    },
    "select_compact": {
        "ties go to the higher ordinal": (
            "tie & (tie_rank < missing)",
            "tie & (tie_rank >= tl.sum(tie.to(tl.int32), axis=0) - missing)",
        ),
        "the zeros differ": ("tl.where(score == 0.0, 0.0, score)", "score"),
        "negative scores are not turned round": ("bits ^ 0xFFFFFFFF", "bits"),
        "the selected lie backwards": ("selected + chosen_from + rank", "selected + chosen_from + wanted - 1 - rank"),
        "the deferred lie backwards": ("ordinal - rank, ordinal", "ordinal - rank, count - 1 - ordinal"),
        "lanes beyond the last candidate count": ("match = here & ((key", "match = ((key"),
        "one less is selected": ("cu_selected + segment + 1) - chosen_from", "cu_selected + segment + 1) - chosen_from - 1"),
        "the lowest byte of a key is not looked at": ("for step in range(4)", "for step in range(3)"),
        "tiles do not carry what was selected": ("above += tl.sum", "above = tl.sum"),
        "tiles do not carry ties": ("equal += tl.sum", "equal = tl.sum"),
        "the inverse map counts from a request's own start": ("tl.where(take, packed_from + rank, -1)", "tl.where(take, rank, -1)"),
        "rows that may not run do": ("!= 0\n", "!= 3\n"),
        "packed rows are places in their request": ("active + packed_from + rank, row", "active + packed_from + rank, first + places"),
        "the rows of a candidate are its places": ("tl.store(runs + row.to(tl.int64)", "tl.store(runs + start + first + places"),
    },
    "gather_rmsnorm": {
        "rows are taken in order": ("row = tl.load(index + place).to(tl.int64)", "row = place"),
        "rows are taken for dense": ('"stream_row": stream.stride(0)', '"stream_row": width'),
        "the padding of a row counts": ("axis=0) / WIDTH", "axis=0) / (WIDTH + 16)"),
        "no epsilon": ("square + epsilon", "square"),
        "epsilon outside the root": ("1.0 / tl.sqrt_rn(square + epsilon)", "1.0 / (tl.sqrt_rn(square) + epsilon)"),
        "the last channel is lost": ("real = channels < WIDTH", "real = channels < WIDTH - 1"),
        "the edge is not masked": ("real = channels < WIDTH", "real = channels < CHANNELS"),
    },
    "add_rmsnorm": {
        "the sum is not kept": ("tl.store(line, narrow", "tl.store(line, tl.load(line, mask=real)"),
        "only the residual is normalised": ("total += tl.load(delta + place * delta_row", "total += 0 * tl.load(delta + place * delta_row"),
    },
    "swiglu": {
        "gate and up are exchanged": ("tl.load(line + WIDTH + channels", "tl.load(line + channels"),
        "a sigmoid": ("(gate / (1.0", "(1.0 / (1.0"),
        "the edge is not masked": ("real = channels < WIDTH", "real = channels < WIDTH + 1"),
    },
    "write_back": {
        "rows go back in order": ("row = tl.load(index + place).to(tl.int64)\n    total", "row = place\n    total"),
        "nothing is added": ("total += tl.load(delta + place * delta_row + channels, mask=real, other=0.0).to(tl.float32)\n    tl.store(stream", "tl.store(stream"),
    },
    "rope_kv_write": {
        "pages are taken for dense": ('"page_head": key_pages.stride(2)', '"page_head": head_dim'),
        "slot 0 is skipped": ("if slot >= 0", "if slot > 0"),
        "rows without a slot are written": ("if slot >= 0", "if slot >= -1"),
        "other slots below zero are written": ("if slot >= 0", "if slot != -1"),
        "positions are places in the stage": ("row = tl.load(rows + place).to(tl.int64)", "row = place"),
        "all channels take the first axis": ("angle_axis, ROTARY, HAS_AXES", "angle_axis, ROTARY, False"),
        "keys are not turned": ("tl.store(key_pages + page, keys", "tl.store(key_pages + page, tl.load(value + page * 0)"),
        "values go to another head": ("of_value = place * value_row + kv.to", "of_value = place * value_row + (KV_HEADS - 1 - kv).to"),
        "channels beyond the rotary width are lost": ("(channels < HEAD_DIM)[None, :]", "(channels < ROTARY)[None, :]"),
    },
    "decode_paged": {
        "pages are taken for dense": ('"page": key_pages.stride(0)', '"page": page_size * kv_heads * head_dim'),
        "the last tile of a split is not read": ("range(SPLIT // ROWS)", "range(SPLIT // ROWS - 1)"),
        "the last split is not merged": ("tl.cdiv(tl.load(lengths + request), SPLIT)", "tl.maximum(tl.load(lengths + request) // SPLIT, 1)"),
        "rows beyond the length count": ("x = tl.where(here[None, :], x", "x = tl.where(here[None, :] | (x == 0), x"),
        "query heads read another key head": ("heads = kv_head * GROUP + group", "heads = group * (HEADS // GROUP) + kv_head"),
        "the first page stands for all": ("row // PAGE", "0 * row"),
        "the newest row is not seen": ("here = row < length", "here = row < length - 1"),
        "what was summed is not brought to the new maximum": ("total = total * kept[:, None]", "total = total"),
        "splits are not brought to one maximum": ("weight = tl.exp(peaks - base)", "weight = tl.where(known, 1.0, 0.0)"),
    },
}  # fmt: skip
NUMBERS = count()


@pytest.fixture(autouse=True)
def _narrow_tiles(monkeypatch):
    """So that few candidates make several."""
    monkeypatch.setattr(table, "SELECT_ROWS", 128)


def launcher(judge, replacement, folder):
    module, function = LAUNCHERS[judge].split(":")
    text = (Path(kernels.__file__).parent / f"{module}.py").read_text()
    if replacement is not None:
        assert replacement[0] in text, "the source changed: mend the mutant"
        text = text.replace(*replacement)
    file = folder / f"{module}.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(f"{kernels.__name__}._mutant{next(NUMBERS)}", file)
    mutated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutated)
    return getattr(mutated, function)


@pytest.mark.parametrize("judge", CASES)
def test_kernels_pass_the_cases_that_find_mutants(judge, tmp_path):
    for case in CASES[judge]:
        getattr(judges, judge)(launcher(judge, None, tmp_path), case)


@pytest.mark.parametrize(
    ("judge", "fault"), [(judge, fault) for judge in MUTANTS for fault in MUTANTS[judge]]
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")
def test_mutants_are_found(judge, fault, tmp_path):
    mutant = launcher(judge, MUTANTS[judge][fault], tmp_path)

    def passes(case):
        try:
            getattr(judges, judge)(mutant, case)
        except AssertionError:
            return False
        return True

    assert not all(passes(case) for case in CASES[judge])
