"""The command line as a person types it."""

import sys
from dataclasses import replace

import pytest
from reroute_conformance.checks import checks
from reroute_conformance.cli import main

from .browser import Browser


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


@pytest.fixture
def few_cases(monkeypatch):
    """Every check on a few of its cases: what is asked is what becomes of them."""
    fewer = tuple(replace(check, examples=min(check.examples, 4)) for check in checks())
    monkeypatch.setattr("reroute_conformance.running.runner.checks", lambda: fewer)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()
