"""A module with a forward of its own computes in the oracle as it does in the model, with the copy's weights."""

import copy
from functools import partial
from types import MethodType

import pytest
import torch
from reroute_reference import run
from reroute_spec import RerouteError

from . import zoo
from .zoo import SMALL

LAYOUT = ("tt", SMALL, "ttt")
_global_forward = None


def changed(change):
    """A model whose fourth block's MLP is ``change``d, and the same change made to its weights."""
    model, expected = copy.deepcopy(zoo.model("llava")), copy.deepcopy(zoo.model("llava"))
    change(model.model.language_model.layers[3].mlp)
    expected.model.language_model.layers[3].mlp.down_proj.weight.data *= 4
    return model, expected


def by_closure(mlp):
    old = mlp.forward
    mlp.forward = lambda x: 4 * old(x)


def by_global(mlp):
    global _global_forward
    _global_forward = mlp.forward
    mlp.forward = lambda x: sum((4 * _global_forward(y) for y in (x,)), start=0)


def by_module_in_a_closure(mlp):
    kind = type(mlp)
    mlp.forward = lambda x: 4 * kind.forward(mlp, x)


def by_method(mlp):
    mlp.forward = MethodType(lambda self, x: 4 * type(self).forward(self, x), mlp)


def by_partial(mlp):
    mlp.forward = partial(lambda old, x, factor: factor * old(x), mlp.forward, factor=4)


def by_a_linear(mlp):
    old = mlp.down_proj.forward

    def often(x):
        assert x.dtype == mlp.down_proj.weight.dtype
        return 4 * old(x)

    mlp.down_proj.forward = often


@pytest.mark.parametrize(
    "change", [by_closure, by_global, by_module_in_a_closure, by_method, by_partial, by_a_linear]
)
def test_a_forward_of_its_own_reaches_the_oracle(change):
    model, expected = changed(change)
    batch, routing = zoo.inputs("llava", LAYOUT), zoo.pyramid("llava")
    plain = run(zoo.model("llava"), batch, routing, dtype=torch.float64).logits
    found = run(model, batch, routing, dtype=torch.float64).logits
    assert found.dtype == torch.float64
    torch.testing.assert_close(
        found, run(expected, batch, routing, dtype=torch.float64).logits, rtol=1e-9, atol=1e-9
    )
    assert not torch.allclose(found, plain)
    torch.testing.assert_close(run(model, batch, routing).logits.double(), found, rtol=1e-3, atol=1e-3)
    assert run(model, batch, routing, dtype=torch.bfloat16).logits.dtype == torch.bfloat16


def test_a_forward_that_cannot_be_followed_is_refused():
    class Often:
        def __init__(self, old):
            self.old = old

        def __call__(self, x):
            return 4 * self.old(x)

    def unseen(old):
        often = Often(old)
        return lambda x: often(x)

    for wrap in (Often, lambda old: Often(old).__call__, unseen):
        model, _ = changed(lambda mlp, wrap=wrap: setattr(mlp, "forward", wrap(mlp.forward)))
        with pytest.raises(RerouteError, match=r"layers\.3\.mlp.*reaches a Often") as error:
            run(model, zoo.inputs("llava", LAYOUT), zoo.UNROUTED, dtype=torch.float64)
        assert error.value.field == "dtype"
