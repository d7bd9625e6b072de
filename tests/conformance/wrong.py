"""Targets that answer wrongly in form, not in content, each a factory for ``--target``."""

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
