import os

import pytest
import torch

if not torch.cuda.is_available():
    # Triton's kernels run in its interpreter; it reads this when it is imported, which nothing has done yet
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny tensors: one thread per test process is faster, and its bits do not depend on free cores."""
    torch.set_num_threads(1)
