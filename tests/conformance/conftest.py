"""The command line as a person types it."""

import sys

import pytest
from reroute_conformance.cli import main


@pytest.fixture
def vlm_reroute(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(".")

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["vlm-reroute", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return call
