"""What a prefix saves is what the cost model says, and that many questions take no more memory than few."""

import gc
from collections import Counter

import pytest
import torch
from reroute_optimized import routed
from reroute_spec import Decision, Schedule, cost, plan, shape_from_config
from torch.utils.flop_counter import FlopCounterMode

from .. import tiny
from .begun import FAMILIES, beginning_of, joined, model_of, question, questions

ONE = Schedule("reroute", (Decision(3, "0.5"),))


def blocks_of(model):
    return model.model.language_model.layers if hasattr(model.model, "language_model") else model.model.layers


def rows_run(model, run):
    """Rows that every block runs."""
    rows = Counter()
    handles = [
        block.register_forward_pre_hook(
            lambda module, args, layer=layer: rows.update({layer: args[0].shape[0] * args[0].shape[1]})
        )
        for layer, block in enumerate(blocks_of(model))
    ]
    run()
    for handle in handles:
        handle.remove()
    return rows


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_do_not_run_are_the_cost_models(family):
    model, beginning = model_of(family), beginning_of(family)
    inputs = joined(beginning, [question(family, 4, 1), question(family, 4, 2)])
    with routed(model, ONE) as result:
        alone = rows_run(model, lambda: model(**inputs))
        made = []
        once = rows_run(model, lambda: made.append(result.prefix(beginning)))
        (prefix,) = made
        with prefix:
            served = rows_run(model, lambda: model(**inputs))
    saved = prefix.saved
    assert once == Counter({layer: block.rows for layer, block in enumerate(saved.blocks)})
    assert alone - served == Counter({layer: 2 * block.rows for layer, block in enumerate(saved.blocks)})
    assert (alone - served).total() == prefix.served * saved.rows == 2 * 3 * prefix.num_rows


def products(model, run):
    """FLOPs of the decoder's blocks, of projections and MLP, and of attention's scores and values."""
    counter = FlopCounterMode(display=False)
    with counter:
        run()
    counts = Counter()
    for name, own in counter.get_flop_counts().items():
        if name.endswith("ForCausalLM.model"):
            for operation, flops in own.items():
                counts["attention" if "bmm" in str(operation) else "projections"] += flops
    return counts


@pytest.mark.parametrize(
    "schedule",
    [Schedule("reroute", (Decision(2, "0.5"), Decision(4, "0.25"))), Schedule("reroute", ())],
    ids=["routed", "unrouted"],
)
def test_flops_that_are_not_spent_are_the_cost_models(schedule):
    model = tiny.text_model(attention="eager")  # whose products are all counted
    inputs = tiny.text_inputs("tttvvvvvvvvvvtttttt")
    rows, shared = 19, 13
    beginning = {name: tensor[:, :shared] for name, tensor in inputs.items()}
    with routed(model, schedule) as result:
        alone = products(model, lambda: model(**inputs))
        prefix = result.prefix(beginning)
        with prefix:
            served = products(model, lambda: model(**inputs))
    saved = prefix.saved
    assert alone["projections"] - served["projections"] == sum(b.projections + b.mlp for b in saved.blocks)
    # eager attention computes rectangles, the model counts pairs that attend: a prompt's less those of its own rows
    pairs = (alone["attention"] - served["attention"]) / len(saved.blocks) / (2 * 2 * 64)
    assert pairs == rows * rows - (rows - shared) * rows
    own = [sum(range(shared + 1, rows + 1))] * len(saved.blocks)
    whole = cost(
        plan(schedule, 6, inputs["visual_mask"][0].tolist()), shape_from_config(model.config.to_dict())
    )
    for block, left, before in zip(saved.blocks, own, whole.blocks, strict=False):
        assert block.attention == before.attention - left * 2 * 2 * 64
        assert block.kv_rows == shared
    assert whole.flops - saved.flops > 0


def held():
    """Tensors that are alive, and bytes of their storages."""
    gc.collect()
    plain = torch.Tensor, torch.nn.Parameter  # tests that trace leave tensors without memory
    tensors = [x for x in gc.get_objects() if type(x) in plain and not torch._is_functional_tensor(x)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return len(tensors), sum(storages.values())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "qwen3_5"])
def test_two_hundred_questions_on_one_image_leave_memory_where_it_was(family):
    model, beginning = model_of(family), beginning_of(family)
    with torch.no_grad(), routed(model, ONE) as result, result.prefix(beginning) as prefix:

        def ask(seed):
            inputs = joined(beginning, [question(family, 1 + seed % 5, seed)])
            model.generate(**inputs, max_new_tokens=2, do_sample=False, pad_token_id=0)

        ask(0)
        before = held()
        for seed in range(5, 205):  # the last one is as long as the first
            ask(seed)
        ask(0)
        assert held() == before
        assert prefix.served == 202


def test_a_prefix_is_given_back_with_its_tensors():
    model, beginning = model_of("llava"), beginning_of("llava")
    inputs = joined(beginning, questions("llava"))
    with torch.no_grad(), routed(model, ONE) as result:
        model(**inputs)
        before = held()
        prefix = result.prefix(beginning)
        kept = held()[1] - before[1]
        width = prefix.num_rows * 4
        # keys and values of three blocks, the rows there and before, embeddings, ids, positions, pixels, features
        assert (
            kept <= 3 * 2 * 32 * width + 3 * 64 * width + 2 * 2 * width + 4 * 3 * 56 * 56 + 16 * 64 * 4 + 4096
        )
        with prefix:
            model(**inputs)
        del prefix
        assert held() == before
