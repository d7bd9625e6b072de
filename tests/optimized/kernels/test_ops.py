"""The kernels as operators: registered, traced, compiled whole, and refusing by field what the host can see."""

import subprocess
import sys

import pytest
import torch
from reroute_optimized.kernels import ops
from reroute_spec import RerouteError

from .guard import DEVICE

INDEX = torch.int32


def index(*values):
    return torch.tensor(values, dtype=INDEX)


def on_device(given):
    return {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in given.items()}


def arguments():
    """One valid call of every operator, by name."""
    return {name: on_device(given) for name, given in on_the_host().items()}


def on_the_host():
    chance = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=chance)

    turns = normal(10, 16)
    return {
        "score_last_row": {
            "query": normal(2, 4, 16), "key": normal(10, 2, 16), "cos": turns.cos(), "sin": turns.sin(), "axes": None,
            "cu_seqlens": index(0, 6, 10), "cu_queries": index(0, 1, 2), "rotated": normal(10, 2, 16),
            "scale": 0.25, "max_rows": 6, "max_queries": 1, "heads": "mean",
        },
        "select_compact": {
            "scores": normal(10), "candidates": index(1, 2, 3, 7, 8), "cu_candidates": index(0, 3, 5),
            "cu_selected": index(0, 1, 3), "always": torch.tensor([i in (0, 4, 5, 6, 9) for i in range(10)]),
            "cu_seqlens": index(0, 6, 10), "cu_active": index(0, 4, 8), "num_selected": 3, "num_active": 8,
            "max_candidates": 3, "max_rows": 6,
        },
        "gather_rmsnorm": {"stream": normal(5, 24), "index": index(0, 3), "weight": normal(24), "epsilon": 1e-6},
        "add_rmsnorm": {"residual": normal(3, 24), "delta": normal(3, 24), "weight": normal(24), "epsilon": 1e-6},
        "swiglu": {"gate_up": normal(3, 24)},
        "write_back": {"stream": normal(5, 24), "index": index(0, 3), "residual": normal(2, 24), "delta": normal(2, 24)},
        "rope_kv_write": {
            "query": normal(3, 4, 16), "key": normal(3, 2, 16), "value": normal(3, 2, 16), "cos": turns.cos(),
            "sin": turns.sin(), "axes": None, "rows": index(0, 4, 9), "slots": torch.tensor([3, -1, 0]),
            "key_pages": normal(2, 4, 2, 16), "value_pages": normal(2, 4, 2, 16),
        },
        "decode_paged": {
            "query": normal(2, 4, 16), "key_pages": normal(3, 4, 2, 16), "value_pages": normal(3, 4, 2, 16),
            "block_table": index(0, 2, 1, 0).view(2, 2), "lengths": index(6, 3), "scale": 0.25, "max_length": 6,
        },
    }  # fmt: skip


OPERATORS = list(arguments())


def assert_same(given, expected):
    """The same tensors by name, bit for bit; what is no tensor was never in danger."""
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(given[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name):
    call = getattr(torch.ops.reroute, name).default
    torch.library.opcheck(call, (), arguments()[name])


@pytest.mark.parametrize("name", OPERATORS)
def test_compiles_whole_and_gives_the_same_bits(name):
    plain, compiled = arguments()[name], arguments()[name]
    call = getattr(ops, name)
    expected = call(**plain)
    got = torch.compile(call, fullgraph=True, backend="aot_eager")(**compiled)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert_same(compiled, plain)


def taller(name):
    """The same call with one row or page more of everything that has rows: another size, not another compilation."""
    given = arguments()[name]
    rows = {"gather_rmsnorm": ["stream"], "add_rmsnorm": ["residual", "delta"], "swiglu": ["gate_up"]}
    for field in rows.get(name, []):
        given[field] = torch.cat([given[field], given[field][:1]])
    return given


@pytest.mark.parametrize("name", OPERATORS)
def test_compiles_for_any_size(name):
    compiled = torch.compile(getattr(ops, name), fullgraph=True, dynamic=True, backend="aot_eager")
    for given, plain in ((arguments()[name], arguments()[name]), (taller(name), taller(name))):
        torch.testing.assert_close(compiled(**given), getattr(ops, name)(**plain), rtol=0, atol=0)
        assert_same(given, plain)


def test_a_second_size_compiles_where_nobody_asked_for_any():
    compiled = torch.compile(ops.add_rmsnorm, fullgraph=True, backend="aot_eager")
    for given in (arguments()["add_rmsnorm"], taller("add_rmsnorm")):
        assert compiled(**given).shape == given["residual"].shape


def test_a_gradient_that_would_be_lost_is_refused():
    given = arguments()["swiglu"]
    given["gate_up"].requires_grad_()
    with pytest.raises(RerouteError, match="gate_up: requires a gradient"):
        ops.swiglu(**given)
    with torch.no_grad():
        assert ops.swiglu(**given).isfinite().all()


OVERLAPPING = [
    ("score_last_row", lambda x: x | {"rotated": x["key"]}),
    ("add_rmsnorm", lambda x: x | {"residual": x["residual"][:1].expand(3, -1)}),
    ("add_rmsnorm", lambda x: x | {"delta": x["residual"]}),
    ("write_back", lambda x: x | {"residual": x["stream"][1:3]}),
    ("write_back", lambda x: x | {"stream": x["stream"][:1].expand(5, -1)}),
    ("rope_kv_write", lambda x: x | {"value_pages": x["key_pages"]}),
]


@pytest.mark.parametrize(("name", "overlap"), OVERLAPPING)
def test_memory_that_is_written_and_read_at_once_is_refused(name, overlap):
    with pytest.raises(RerouteError, match=r"memory|expanded"):
        getattr(ops, name)(**overlap(arguments()[name]))


def test_what_was_written_is_declared():
    """An operator's mutation is part of its schema, so that compilers keep the order."""
    writes = {
        name: [x.name for x in getattr(torch.ops.reroute, name).default._schema.arguments if x.alias_info]
        for name in OPERATORS
    }
    assert {name: fields for name, fields in writes.items() if fields} == {
        "score_last_row": ["rotated"],
        "add_rmsnorm": ["residual"],
        "write_back": ["stream"],
        "rope_kv_write": ["key_pages", "value_pages"],
    }


WRONG = [
    ("score_last_row", "query", torch.zeros(2, 3, 16)),
    ("score_last_row", "query", torch.zeros(2, 4, 8)),
    ("score_last_row", "key", torch.zeros(10, 2, 16, dtype=torch.int32)),
    ("score_last_row", "key", torch.zeros(10, 16, 2).transpose(1, 2)),
    ("score_last_row", "cos", None),
    ("score_last_row", "cos", torch.zeros(9, 16)),
    ("score_last_row", "sin", None),
    ("score_last_row", "sin", torch.zeros(10, 32)[:, ::2]),
    ("score_last_row", "axes", index(0)),
    ("score_last_row", "cu_seqlens", torch.tensor([0, 6, 10])),
    ("score_last_row", "cu_queries", index(0, 1)),
    ("score_last_row", "rotated", torch.zeros(10, 4, 16)[:, ::2]),
    ("score_last_row", "max_queries", 0),
    ("score_last_row", "heads", "median"),
    ("select_compact", "scores", torch.zeros(10, dtype=torch.float16)),
    ("select_compact", "scores", [0.0]),
    ("select_compact", "candidates", torch.zeros(10, dtype=torch.int32)[::2]),
    ("select_compact", "cu_selected", index(0, 1)),
    ("select_compact", "always", torch.zeros(9, dtype=torch.bool)),
    ("select_compact", "num_selected", 6),
    ("select_compact", "num_active", -1),
    ("select_compact", "max_rows", -1),
    ("gather_rmsnorm", "stream", torch.zeros(24, 5).T),
    ("gather_rmsnorm", "index", torch.tensor([0, 3])),
    ("gather_rmsnorm", "weight", torch.zeros(23)),
    ("add_rmsnorm", "delta", torch.zeros(2, 24)),
    ("add_rmsnorm", "weight", torch.zeros(24, dtype=torch.float16)),
    ("swiglu", "gate_up", torch.zeros(3, 23)),
    ("write_back", "residual", torch.zeros(3, 24)),
    ("write_back", "delta", torch.zeros(2, 24, device="meta")),
    ("rope_kv_write", "key", torch.zeros(3, 3, 16)),
    ("rope_kv_write", "cos", torch.zeros(10, 18)),
    ("rope_kv_write", "slots", index(3, -1, 0)),
    ("rope_kv_write", "rows", index(0, 4)),
    ("rope_kv_write", "key_pages", torch.zeros(2, 8, 2, 16)[:, :4]),
    ("rope_kv_write", "value_pages", torch.zeros(2, 4, 2, 16, dtype=torch.float16)),
    ("decode_paged", "query", torch.zeros(2, 3, 16)),
    ("decode_paged", "block_table", index(0, 1)),
    ("decode_paged", "lengths", index(6, 3, 1)),
    ("decode_paged", "max_length", 9),
    ("decode_paged", "max_length", None),
    ("decode_paged", "scale", None),
    ("score_last_row", "max_rows", 6.0),
    ("score_last_row", "cu_seqlens", index()),
    ("select_compact", "cu_seqlens", index()),
    ("select_compact", "num_selected", "3"),
    ("add_rmsnorm", "epsilon", "1e-6"),
    ("gather_rmsnorm", "index", None),
]


@pytest.mark.parametrize(("name", "field", "value"), WRONG)
def test_refuses_by_field_and_changes_nothing(name, field, value):
    given = arguments()[name]
    before = arguments()[name]
    elsewhere = isinstance(value, torch.Tensor) and value.is_meta
    wrong = given | ({field: value} if elsewhere else on_device({field: value}))
    with pytest.raises(RerouteError) as refused:
        getattr(ops, name)(**wrong)
    # a wrong table of cosines may show at its neighbour, wrong heads at the queries
    assert refused.value.field in {field, "query", "value", "cos", "sin", "value_pages"}
    assert refused.value.remedy
    assert_same(given, before)


def test_a_nan_is_raised_where_the_caller_asks():
    given = arguments()["select_compact"]
    given["scores"][7] = torch.nan
    has_nan = ops.select_compact(**given)[4]
    with pytest.raises(RerouteError, match="segment 1"):
        ops.refuse_nan(has_nan)
    ops.refuse_nan(has_nan[:1])


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU computes it rightly")
def test_bfloat16_is_refused_in_the_interpreter():
    given = arguments()["swiglu"]
    with pytest.raises(RerouteError, match="interpreter"):
        ops.swiglu(given["gate_up"].bfloat16())


def test_views_of_a_fused_projection_are_taken_as_they_are():
    given = arguments()["rope_kv_write"]
    fused = torch.cat([given[x].flatten(1) for x in ("query", "key", "value")], dim=1)
    views = {
        name: part.view(3, -1, 16)
        for name, part in zip(("query", "key", "value"), fused.split([64, 32, 32], dim=1), strict=True)
    }
    assert not views["key"].is_contiguous()
    other = arguments()["rope_kv_write"]
    torch.testing.assert_close(ops.rope_kv_write(**other | views), ops.rope_kv_write(**given), rtol=0, atol=0)
    torch.testing.assert_close(other["key_pages"], given["key_pages"], rtol=0, atol=0)
    torch.testing.assert_close(other["value_pages"], given["value_pages"], rtol=0, atol=0)


def test_without_a_gpu_or_an_interpreter_a_device_is_refused():
    """In a process of its own: Triton reads the variable once."""
    program = """
import os, sys
os.environ.pop("TRITON_INTERPRET", None)
import torch
from reroute_optimized import ops
try:
    ops.swiglu(torch.zeros(2, 4))
except ValueError as refused:
    print(refused, "triton" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "device: the Triton kernels do not run on 'cpu'" in done.stdout
