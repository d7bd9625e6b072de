"""Between the first block and the output nothing is read on the host, so that a device never waits."""

import pytest
import torch
from reroute_optimized import routed
from reroute_optimized.stages import engine
from reroute_spec import Decision, Schedule, ScoreRule
from torch.utils._python_dispatch import TorchDispatchMode

from .. import tiny

FOUR = (Decision(1, "0.5"), Decision(2, "0.4"), Decision(4, "0.25"))
SCHEDULES = [
    Schedule("reroute", FOUR),
    Schedule("delete", FOUR),
    Schedule("reroute", FOUR, pool="survivors", scope="image"),
    Schedule("delete", FOUR, score=ScoreRule(query="last_n", n=3, heads="max")),
    Schedule("reroute", (Decision(0, "0.5"),)),
]
ROWS = [tiny.row(4, 1, 5, 1), tiny.row(2, 2, 3, 2), tiny.row(9, 0, 0, 3)]


class NoReads(TorchDispatchMode):
    """Refuses every operation whose result the host must wait for."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "aten.equal", "unique")
        assert not any(word in name for word in waits), name
        if name.startswith(("aten.index.", "aten.index_put")):
            assert all(index is None or index.dtype != torch.bool for index in args[1]), name
        return function(*args, **(kwargs or {}))


@pytest.fixture
def guarded(monkeypatch):
    """A model whose text decoder raises on a host read from its first block to its final norm."""
    model = tiny.llava()
    decoder, guard = model.model.language_model, []

    def refuse(*_, **__):
        raise AssertionError("read on the host")

    def start(*_):
        guard.append(NoReads())
        guard[-1].__enter__()
        for name in ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"):
            monkeypatch.setattr(torch.Tensor, name, refuse)

    def stop(*_):
        guard[-1].__exit__(None, None, None)
        monkeypatch.undo()
        monkeypatch.setattr(engine, "reads_at_once", lambda device: False)

    monkeypatch.setattr(engine, "reads_at_once", lambda device: False)
    decoder.layers[0].register_forward_pre_hook(start)
    decoder.norm.register_forward_hook(stop)
    model.guard = guard
    return model


@pytest.mark.parametrize("rows", [ROWS[:1], [ROWS[0]] * 2, ROWS], ids=["one", "equal", "ragged"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_prefill_and_decode_read_nothing(guarded, schedule, rows):
    inputs = tiny.llava_inputs(rows)
    with routed(guarded, schedule) as result:
        out = guarded(**inputs)
        guarded(input_ids=torch.full((len(rows), 1), 7), past_key_values=out.past_key_values)
    assert len(guarded.guard) == 2
    assert len(result.traces) == len(rows)


def test_the_guard_itself_catches_reads(guarded):
    guarded.model.language_model.layers[2].register_forward_hook(
        lambda module, args, output: output.sum().item()
    )
    with routed(guarded, SCHEDULES[0]), pytest.raises(AssertionError):
        guarded(**tiny.llava_inputs(ROWS))
    guarded.guard[-1].__exit__(None, None, None)
