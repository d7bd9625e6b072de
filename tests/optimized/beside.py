"""The reference as a black box: what two targets show of the same operations is the same."""

import torch
from reroute_conformance.targets import ReferenceTarget
from reroute_optimized.conforming.target import torch_target
from torch.testing import assert_close

CLOSE = {"atol": 2e-3, "rtol": 2e-3}


def assert_same_session(model, schedule, operations, tolerance=CLOSE, target=torch_target):
    """``model`` as a function that makes it, so that neither target meets what the other left behind."""
    right = ReferenceTarget().session(model(), schedule, operations)
    own = target().session(model(), schedule, operations)
    for index, (operation, expected, found) in enumerate(zip(operations, right, own, strict=True)):
        where = f"operation {index} ({operation['op']})"
        if isinstance(expected, Exception):
            assert isinstance(found, Exception), where
            continue
        assert not isinstance(found, Exception), f"{where}: {found}"
        for request, (e, f) in enumerate(zip(expected, found, strict=True)):
            assert_same_answer(f"{where}, request {request}", e, f, tolerance)


def assert_same_answer(where, expected, found, tolerance=CLOSE):
    """What :meth:`TorchTarget.run` or an operation of a session shows of one request."""
    assert found["length"] == expected["length"], where
    if "trace" in expected:
        mine, theirs = found["trace"], expected["trace"]
        for name in ("num_rows", "visual_rows", "kv_rows"):
            assert getattr(mine, name) == getattr(theirs, name), f"{where}: {name}"
        for name in ("layer", "stage", "pool", "selected", "deferred", "reentered"):
            assert [getattr(d, name) for d in mine.decisions] == [
                getattr(d, name) for d in theirs.decisions
            ], where
        for d, e in zip(mine.decisions, theirs.decisions, strict=True):
            assert_close(torch.tensor(d.scores), torch.tensor(e.scores), atol=1e-4, rtol=1e-3)
        for layer, residual in expected["residuals"].items():
            assert_close(found["residuals"][layer], residual, **tolerance, msg=lambda m: f"{where}: {m}")
    if "logits" in expected:
        assert_close(found["logits"], expected["logits"], **tolerance, msg=lambda m: f"{where}: {m}")
    for name in ("keys", "values"):
        for layer, (x, y) in enumerate(zip(found[name], expected[name], strict=True)):
            assert_close(x, y, **tolerance, msg=lambda m, n=name, i=layer: f"{where}, {n} of block {i}: {m}")
