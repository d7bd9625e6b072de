"""Masks in the form each attention implementation takes."""

import pytest
import torch
from reroute_optimized.stages.masks import causal_mask, check_implementation
from reroute_spec import RerouteError

VALID = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]).bool()


def mask(implementation, queries, keys, valid=None):
    return causal_mask(implementation, queries, keys, valid, torch.float32, torch.device("cpu"))


def test_no_mask_only_where_the_implementation_is_causal_by_itself():
    assert mask("sdpa", 4, 4) is None
    assert mask("sdpa", 1, 4) is None
    assert mask("sdpa", 2, 4).tolist() == [[[[True, True, True, False], [True] * 4]]]
    assert mask("eager", 4, 4) is not None
    assert mask("eager", 1, 4) is None
    assert mask("flash_attention_2", 2, 4) is None
    assert mask("flash_attention_2", 2, 4, VALID).tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]


def test_padding_sees_itself_alone_and_is_seen_by_nobody():
    allowed = mask("sdpa", 4, 4, VALID)
    assert allowed.shape == (2, 1, 4, 4)
    assert torch.equal(allowed[0, 0], torch.ones(4, 4).tril().bool())
    assert allowed[1, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    additive = mask("eager", 4, 4, VALID)
    assert torch.equal(additive == 0, allowed)
    assert additive.isfinite().all()


@pytest.mark.parametrize("implementation", ["flex_attention", "paged|sdpa", "mine"])
def test_other_implementations_are_refused(implementation):
    with pytest.raises(RerouteError, match=r"^attn_implementation"):
        check_implementation(implementation)
