"""The kernels in plain torch, which stand for them where the engine is tested, are held to the kernels' own judges."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from . import judges, library

CASES = {
    "score": [
        judges.ScoreCase((5, 0, 17)),
        judges.ScoreCase((9, 4), kv_heads=1, group=3, rotary=8, asking=3, heads="max"),
        judges.ScoreCase((7,), rotary=None),
        judges.ScoreCase((6, 3), axes="interleaved", seed=2),
    ],
    "select_compact": [
        judges.SelectCase(("tvvvvtt", "", "ttt", "vvxvt"), (0.5, 0.0), (1.0, 2.0, 1.0, -0.0, 0.0)),
        judges.SelectCase(("tvvtvvvt", "vvv"), (0.34, 1.0), (3.0, 1.0), spans=True),
    ],
    "gather_rmsnorm": [judges.RowsCase(9, 4, 48), judges.RowsCase(6, 0, 16)],
    "add_rmsnorm": [judges.RowsCase(9, 4, 48)],
    "swiglu": [judges.RowsCase(9, 4, 48)],
    "write_back": [judges.RowsCase(9, 4, 48), judges.RowsCase(6, 0, 16)],
    "rope_kv_write": [
        judges.RopeCase(7, padding=2),
        judges.RopeCase(5, rotary=8, axes="sections", page=1),
    ],
    "decode_paged": [judges.DecodeCase((0, 1, 33, 7)), judges.DecodeCase((5,), kv_heads=1, group=3, page=1)],
}
LAUNCHERS = {"score": library.score_last_row}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("judge", "case"), [(j, c) for j, cases in CASES.items() for c in cases], ids=str)
def test_is_what_the_kernel_has_to_be(judge, case, dtype):
    if hasattr(case, "dtype"):
        case = replace(case, dtype=dtype)
    launcher = LAUNCHERS.get(judge) or getattr(library, judge)
    getattr(judges, judge)(partial(launcher), case)
