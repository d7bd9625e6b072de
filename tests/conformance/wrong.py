"""Targets that answer wrongly in form, not in content, each a factory for ``--target``."""

from dataclasses import replace

import numpy
import torch
from reroute_conformance.targets import ReferenceTarget


class _Renamed(ReferenceTarget):
    name = "renamed"


def right():
    return _Renamed()


def raises():
    class Raises(_Renamed):
        def run(self, *args, **kwargs):
            raise ZeroDivisionError("kernel launch")

    return Raises()


def returns_none():
    class ReturnsNone(_Renamed):
        def run(self, *args, **kwargs):
            return None

    return ReturnsNone()


def one_request_missing():
    class OneMissing(_Renamed):
        def run(self, *args, **kwargs):
            return super().run(*args, **kwargs)[:-1]

    return OneMissing()


def no_keys():
    class NoKeys(_Renamed):
        def run(self, *args, **kwargs):
            return [{**row, "keys": row["keys"][:-1]} for row in super().run(*args, **kwargs)]

    return NoKeys()


def logits_of_another_shape():
    class OtherShape(_Renamed):
        def run(self, *args, **kwargs):
            return [{**row, "logits": row["logits"][..., :-1]} for row in super().run(*args, **kwargs)]

    return OtherShape()


def nan_logits():
    class NanLogits(_Renamed):
        def run(self, *args, **kwargs):
            return [{**row, "logits": row["logits"] * float("nan")} for row in super().run(*args, **kwargs)]

    return NanLogits()


def selects_out_of_range():
    class OutOfRange(_Renamed):
        def select(self, scores, k):
            return [len(scores)] * k

    return OutOfRange()


def ignores_replay():
    class IgnoresReplay(_Renamed):
        def run(self, model, inputs, schedule, *, decisions=None, continuation=None):
            return super().run(model, inputs, schedule, continuation=continuation)

    return IgnoresReplay()


def only_batch():
    target = _Renamed()
    target.profiles = frozenset({"batch"})
    return target


def unknown_profile():
    target = _Renamed()
    target.profiles = frozenset({"core", "quantum"})
    return target


def no_target():
    return object()


def slightly_off():
    """Logits wrong by a few float16 ulps: what a silent downcast does."""

    class SlightlyOff(_Renamed):
        def run(self, *args, **kwargs):
            return [{**row, "logits": row["logits"].half().float()} for row in super().run(*args, **kwargs)]

    return SlightlyOff()


def _changing_rows(change):
    class Changed(_Renamed):
        def run(self, *args, **kwargs):
            return [change(dict(row)) for row in super().run(*args, **kwargs)]

    return Changed()


def _changing_trace(**changes):
    return _changing_rows(lambda row: {**row, "trace": replace(row["trace"], **changes)})


def _changing_records(change):
    def changed(row):
        records = tuple(replace(record, **change(record)) for record in row["trace"].decisions)
        return {**row, "trace": replace(row["trace"], decisions=records)}

    return _changing_rows(changed)


def exits():
    class Exits(_Renamed):
        def run(self, *args, **kwargs):
            raise SystemExit(0)

    return Exits()


def factory_exits():
    raise SystemExit(0)


def factory_raises():
    return 1 // 0


not_callable = 3


def profiles_are_a_number():
    target = _Renamed()
    target.profiles = 0
    return target


def no_logits():
    return _changing_rows(lambda row: {name: value for name, value in row.items() if name != "logits"})


def no_decode_logits():
    return _changing_rows(lambda row: {name: value for name, value in row.items() if name != "decode_logits"})


def scalar_keys():
    return _changing_rows(lambda row: {**row, "keys": [keys.sum() for keys in row["keys"]]})


def complex_logits():
    return _changing_rows(lambda row: {**row, "logits": row["logits"].to(torch.complex64)})


def no_residuals():
    return _changing_rows(lambda row: {**row, "residuals": {}})


def trace_without_decisions():
    return _changing_trace(decisions=None)


def trace_of_one_row():
    return _changing_trace(num_rows=1)


def trace_of_fewer_cached_rows():
    return _changing_rows(
        lambda row: {**row, "trace": replace(row["trace"], kv_rows=tuple(1 for _ in row["trace"].kv_rows))}
    )


def selected_is_none():
    return _changing_records(lambda record: {"selected": None})


def selected_is_a_tensor():
    return _changing_records(lambda record: {"selected": torch.tensor(record.selected)})


def stage_off_by_one():
    return _changing_records(lambda record: {"stage": record.stage + 1})


def layer_off_by_one():
    return _changing_records(lambda record: {"layer": record.layer + 1})


def scores_are_zero():
    return _changing_records(lambda record: {"scores": tuple(0.0 for _ in record.scores)})


def scores_are_nan():
    return _changing_records(lambda record: {"scores": tuple(float("nan") for _ in record.scores)})


def nothing_deferred():
    return _changing_records(lambda record: {"deferred": ()})


def everything_reenters():
    return _changing_records(lambda record: {"reentered": record.selected})


def another_margin():
    return _changing_records(lambda record: {"margin": 7.0})


def selects_none():
    target = _Renamed()
    target.select = lambda scores, k: None
    return target


def selects_numpy_integers():
    target = _Renamed()
    target.select = lambda scores, k: list(
        numpy.array(ReferenceTarget().select(scores, k), dtype=numpy.int64)
    )
    return target


def generates_a_list():
    target = _Renamed()
    target.generate = lambda *args: [1, 2, 3]
    return target


def float64_inside():
    """Honest, and more exact than asked."""

    class Wide(_Renamed):
        def run(self, model, inputs, schedule, **rest):
            if isinstance(model, tuple):
                model = (model[0], {name: weight.double() for name, weight in model[1].items()})
            return super().run(model, inputs, schedule, **rest)

    return Wide()


def alters_the_weights():
    class Alters(_Renamed):
        def run(self, model, *args, **kwargs):
            if isinstance(model, torch.nn.Module):
                model.get_output_embeddings().weight.data.mul_(0.5)
            return super().run(model, *args, **kwargs)

    return Alters()


def one_decoded_row_too_many():
    return _changing_rows(
        lambda row: {**row, "decode_logits": torch.cat([row["logits"][-1:], row["decode_logits"]])}
    )


def lists_in_the_trace():
    return _changing_rows(
        lambda row: {**row, "trace": replace(row["trace"], visual_rows=list(row["trace"].visual_rows))}
    )


def families_are_a_number():
    target = _Renamed()
    target.families = 3
    return target


def families_are_a_string():
    target = _Renamed()
    target.families = "llava"
    return target


def profiles_hold_a_list():
    target = _Renamed()
    target.profiles = [["core"]]
    return target


def name_is_a_number():
    target = _Renamed()
    target.name = 7
    return target


class _UnsayableError(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def raises_what_cannot_be_said():
    class Raises(_Renamed):
        def run(self, *args, **kwargs):
            raise _UnsayableError

    return Raises()


def leaves_by_the_back_door():
    class Raises(_Renamed):
        def run(self, *args, **kwargs):
            raise GeneratorExit

    return Raises()


class _Trap(torch.Tensor):
    @classmethod
    def __torch_function__(cls, *args, **kwargs):
        raise RuntimeError("a trap")


def logits_are_a_trap():
    class Traps(_Renamed):
        def run(self, *args, **kwargs):
            rows = super().run(*args, **kwargs)
            return [{**row, "logits": torch.Tensor._make_subclass(_Trap, row["logits"])} for row in rows]

    return Traps()


def reasons_are_a_list():
    target = _Renamed()
    target.unavailable = ["core"]
    return target


def reasons_of_nothing_known():
    target = _Renamed()
    target.unavailable = {"quantum": "needs a quantum computer"}
    return target


def a_reason_without_words():
    target = _Renamed()
    target.unavailable = {"core": " "}
    return target
