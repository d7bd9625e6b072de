import pytest

from . import small


@pytest.fixture(scope="session")
def record():
    return small.record()
