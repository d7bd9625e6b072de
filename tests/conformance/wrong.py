"""Targets that answer wrongly in form, not in content, each a factory for ``--target``."""

from dataclasses import replace

import numpy
import torch
from reroute_conformance.targets import ReferenceTarget

_REFERENCE = ReferenceTarget()


class _Renamed(ReferenceTarget):
    name = "renamed"


class _Trap(torch.Tensor):
    @classmethod
    def __torch_function__(cls, *args, **kwargs):
        raise RuntimeError("a trap")


class _UnsayableError(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def _with(**members):
    """A factory of targets that are the reference but for ``members``."""

    def factory():
        target = _Renamed()
        vars(target).update(members)
        return target

    return factory


def _answering(change):
    """``run`` answers what ``change`` makes of the reference's answers."""
    return _with(run=lambda *args, **named: change(_REFERENCE.run(*args, **named)))


def _showing(change):
    """``change`` says what else is shown of a request, from what the reference shows."""
    return _answering(lambda rows: [{**row, **change(row)} for row in rows])


def _tracing(change):
    return _showing(lambda row: {"trace": replace(row["trace"], **change(row["trace"]))})


def _recording(change):
    return _tracing(
        lambda trace: {"decisions": tuple(replace(record, **change(record)) for record in trace.decisions)}
    )


def _leaving_out(quantity):
    return _answering(lambda rows: [{name: x for name, x in row.items() if name != quantity} for row in rows])


def _raising(error, *words):
    def run(*args, **named):
        raise error(*words)

    return _with(run=run)


def _ignoring_replay(model, inputs, schedule, *, decisions=None, continuation=None):
    return _REFERENCE.run(model, inputs, schedule, continuation=continuation)


def _in_float64(model, inputs, schedule, **rest):
    if isinstance(model, tuple):
        model = (model[0], {name: weight.double() for name, weight in model[1].items()})
    return _REFERENCE.run(model, inputs, schedule, **rest)


def _altering_weights(model, *args, **named):
    if isinstance(model, torch.nn.Module):
        model.get_output_embeddings().weight.data.mul_(0.5)
    return _REFERENCE.run(model, *args, **named)


def factory_exits():
    raise SystemExit(0)


def factory_raises():
    return 1 // 0


right = _with()
no_target = object
not_callable = 3

# what a target claims
only_batch = _with(profiles=frozenset({"batch"}))
unknown_profile = _with(profiles=frozenset({"core", "quantum"}))
profiles_are_a_number = _with(profiles=0)
profiles_hold_a_list = _with(profiles=[["core"]])
families_are_a_number = _with(families=3)
families_are_a_string = _with(families="llava")
name_is_a_number = _with(name=7)
reasons_are_a_list = _with(unavailable=["core"])
reasons_of_nothing_known = _with(unavailable={"quantum": "needs a quantum computer"})
a_reason_without_words = _with(unavailable={"core": " "})

# what it raises
raises = _raising(ZeroDivisionError, "kernel launch")
exits = _raising(SystemExit, 0)
leaves_by_the_back_door = _raising(GeneratorExit)
raises_what_cannot_be_said = _raising(_UnsayableError)

# what it does with what it is given
ignores_replay = _with(run=_ignoring_replay)
float64_inside = _with(run=_in_float64)  # honest, and more exact than asked
alters_the_weights = _with(run=_altering_weights)

# what it selects and generates
selects_none = _with(select=lambda scores, k: None)
selects_out_of_range = _with(select=lambda scores, k: [len(scores)] * k)
selects_numpy_integers = _with(
    select=lambda scores, k: list(numpy.array(_REFERENCE.select(scores, k), dtype=numpy.int64))
)
generates_a_list = _with(generate=lambda *args: [1, 2, 3])

# what it shows of a run
returns_none = _answering(lambda rows: None)
one_request_missing = _answering(lambda rows: rows[:-1])
no_keys = _showing(lambda row: {"keys": row["keys"][:-1]})
scalar_keys = _showing(lambda row: {"keys": [keys.sum() for keys in row["keys"]]})
no_residuals = _showing(lambda row: {"residuals": {}})
no_logits = _leaving_out("logits")
no_decode_logits = _leaving_out("decode_logits")
logits_of_another_shape = _showing(lambda row: {"logits": row["logits"][..., :-1]})
nan_logits = _showing(lambda row: {"logits": row["logits"] * float("nan")})
complex_logits = _showing(lambda row: {"logits": row["logits"].to(torch.complex64)})
logits_are_a_trap = _showing(lambda row: {"logits": torch.Tensor._make_subclass(_Trap, row["logits"])})
slightly_off = _showing(lambda row: {"logits": row["logits"].half().float()})  # as a silent downcast does
one_decoded_row_too_many = _showing(
    lambda row: {"decode_logits": torch.cat([row["logits"][-1:], row["decode_logits"]])}
)

# what its trace says
trace_without_decisions = _tracing(lambda trace: {"decisions": None})
trace_of_one_row = _tracing(lambda trace: {"num_rows": 1})
trace_of_fewer_cached_rows = _tracing(lambda trace: {"kv_rows": tuple(1 for _ in trace.kv_rows)})
lists_in_the_trace = _tracing(lambda trace: {"visual_rows": list(trace.visual_rows)})
selected_is_none = _recording(lambda record: {"selected": None})
selected_is_a_tensor = _recording(lambda record: {"selected": torch.tensor(record.selected)})
stage_off_by_one = _recording(lambda record: {"stage": record.stage + 1})
layer_off_by_one = _recording(lambda record: {"layer": record.layer + 1})
scores_are_zero = _recording(lambda record: {"scores": tuple(0.0 for _ in record.scores)})
scores_are_nan = _recording(lambda record: {"scores": tuple(float("nan") for _ in record.scores)})
nothing_deferred = _recording(lambda record: {"deferred": ()})
everything_reenters = _recording(lambda record: {"reentered": record.selected})
another_margin = _recording(lambda record: {"margin": 7.0})
