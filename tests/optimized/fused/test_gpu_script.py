"""The engine's run on a GPU, rehearsed here: everything but the figures."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu" / "engine.py"


@pytest.mark.usefixtures("_library_kernels")
def test_the_engines_run_is_rehearsed(monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPT.parent)  # where a script finds what lies beside it
    spec = importlib.util.spec_from_file_location("gpu_engine", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_engine", script)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", ["engine.py", "--rehearse"])
    assert script.main() == 0
    out = capsys.readouterr().out
    for name in ("unrouted, transformers", "optimized-torch 25%", "optimized-triton 25%"):
        assert name in out
    monkeypatch.setattr(sys, "argv", ["engine.py"])
    monkeypatch.setattr(script.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert "no GPU here" in capsys.readouterr().err
