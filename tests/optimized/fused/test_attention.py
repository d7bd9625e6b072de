"""Which attention serves packed rows, by what torch says that it takes; what a GPU would be given, without one."""

import pytest
import torch
from reroute_optimized import routed
from reroute_optimized.fused.attention import serves, varlen, varlen_function
from reroute_optimized.fused.plan import Starts
from reroute_spec import Decision, Schedule
from torch._subclasses.fake_tensor import FakeTensorMode

from .. import tiny

HOPPER, TURING = (9, 0), (7, 5)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def before_groups(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=(-1, -1)
):
    """The signature of torch 2.11."""


def before_windows(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    """The signature of torch 2.10."""


@pytest.mark.parametrize(
    ("function", "capability", "dtype", "alike", "head_dim", "expected"),
    [
        (varlen_function(), HOPPER, BF16, True, 128, True),
        (varlen_function(), HOPPER, FP16, False, 128, True),
        (varlen_function(), HOPPER, FP32, True, 128, False),
        (varlen_function(), HOPPER, BF16, True, 100, False),
        (varlen_function(), HOPPER, BF16, True, 512, False),
        (varlen_function(), TURING, FP16, True, 128, False),
        (varlen_function(), None, BF16, True, 128, False),
        (before_groups, HOPPER, BF16, True, 128, True),
        (before_groups, HOPPER, BF16, False, 128, False),
        (before_windows, HOPPER, BF16, True, 128, False),
        (None, HOPPER, BF16, True, 128, False),
    ],
)
def test_varlen_serves_where_its_signature_and_the_device_say_so(
    function, capability, dtype, alike, head_dim, expected
):
    assert serves(function, capability, dtype, alike, head_dim) is expected


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2)])
def test_varlen_is_given_what_it_takes(heads, kv_heads):
    """Through torch's own function and the shapes of its operator, of rows that lie in one product."""
    rows = Starts.of((3, 5), torch.device("cpu"))
    with FakeTensorMode(allow_non_fake_inputs=True):
        together = torch.empty(8, heads + 2 * kv_heads, 16, dtype=BF16)
        key, query, value = together.split([kv_heads, heads, kv_heads], dim=1)
        out = varlen(varlen_function(), query, key, value, rows, 0.25)
    assert out.shape == (8, heads, 16)
    assert out.dtype == BF16


def test_older_signatures_are_given_what_they_take():
    rows = Starts.of((3, 5), torch.device("cpu"))
    query = torch.empty(8, 4, 16)
    assert varlen(before_groups, query, query, query, rows, 0.25) is None


def test_a_routing_says_which_attention_serves_it():
    model = tiny.llava()
    with routed(model, Schedule("reroute", (Decision(2, "0.5"),)), backend="triton") as routing:
        assert routing.backend == "triton (attention: sdpa)"
