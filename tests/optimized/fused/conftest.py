import pytest

from ..kernels import library


@pytest.fixture
def _library_kernels(monkeypatch):
    """What is asked is the engine around the kernels."""
    library.put_in_place(monkeypatch)
