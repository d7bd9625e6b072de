import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny tensors: one thread per test process is faster, and its bits do not depend on free cores."""
    torch.set_num_threads(1)
