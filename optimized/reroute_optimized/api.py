"""The public face: route a transformers model in place, and give it back as it was."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reroute_reference.families import Family, family_of, placeholder_mask, text_decoder_of
from reroute_spec import Plan, RerouteError, RoutingTrace, Schedule
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .checks import check_applicable, check_generation, check_prompt
from .decoder import Decoder
from .records import Prefill
from .text_model import Router, routed_class, router_of


class Routed:
    """What the last prefill of a routed model decided; readable after the model is given back, until the next prefill.

    Attributes:
        backend: the backend that was taken, ``"torch"``.
    """

    backend: str = "torch"

    def __init__(self, router: Router) -> None:
        self._router = router

    @property
    def traces(self) -> tuple[RoutingTrace, ...]:
        """One trace per batch row, read from the device on first access.

        Raises:
            RerouteError: no prefill yet; NaN scores on an asynchronous device.
        """
        return tuple(self._last("traces").traces())

    @property
    def kv_lengths(self) -> tuple[int, ...]:
        """Rows that every block's cache holds after the prefill, the largest over the batch."""
        return self._last("kv_lengths").layout.kv_lengths

    @property
    def plan(self) -> list[Plan]:
        """The plan of every batch row."""
        return list(self._last("plan").layout.plans)

    def _last(self, what: str) -> Prefill:
        if self._router.last is None:
            raise RerouteError(what, "no prefill has finished yet", "run the model first")
        return self._router.last


def apply(model: nn.Module, schedule: Schedule | str | Path, *, backend: str = "auto") -> Routed:
    """Route ``model`` from its next forward on.

    Parameters, their names, dtype, device and hooks stay as they are; ``model.generate`` works as before.

    Args:
        model: a transformers model of a described family, in eval mode when it runs.
        schedule: a Schedule, the name of a preset, or the path of a JSON file.
        backend: ``"torch"``; ``"auto"`` takes it.

    Raises:
        RerouteError: an unknown family, backend or schedule; a schedule this backend does not run; a model that is
            already routed. The model is untouched then.
    """
    _check_backend(backend)
    family = family_of(model)
    decoder = Decoder(*text_decoder_of(model))
    if router_of(decoder.module) is not None:
        raise RerouteError("model", "is already routed", "call remove(model) first")
    loaded = (
        schedule if isinstance(schedule, Schedule) else Schedule.load(schedule, num_layers=decoder.num_layers)
    )
    loaded.validate(decoder.num_layers)
    check_applicable(decoder, family, loaded)
    router = Router(model, decoder, family, loaded)
    handles = _hooks(model, family, loaded)
    top, text = type(model), type(decoder.module)
    decoder.module.__class__ = routed_class(text, router)
    model.__class__ = _generating_class(top, router, handles, (top, text))
    return Routed(router)


def remove(model: nn.Module) -> None:
    """Give ``model`` back as it was before :func:`apply`.

    Raises:
        RerouteError: it is not routed, or a forward of it is running.
    """
    module = text_decoder_of(model)[0]
    router = router_of(module)
    if router is None:
        raise RerouteError("model", "is not routed", "call apply(model, schedule) first")
    router.check_module(module)
    lock = router.hold()
    try:
        handles, (top, text) = getattr(type(model), "_reroute_undo")  # noqa: B009  # a dynamic class, unknown to mypy
        for handle in handles:
            handle.remove()
        model.__class__, module.__class__ = top, text
    finally:
        lock.release()


@contextmanager
def routed(model: nn.Module, schedule: Schedule | str | Path, *, backend: str = "auto") -> Iterator[Routed]:
    """:func:`apply` for the length of a ``with`` block; yields the :class:`Routed`, which stays readable after it."""
    result = apply(model, schedule, backend=backend)
    try:
        yield result
    finally:
        if router_of(text_decoder_of(model)[0]) is result._router:
            remove(model)


def _check_backend(backend: str) -> None:
    if backend == "triton":
        raise RerouteError("backend", "'triton' is not built yet", "use 'torch'")
    if backend not in ("auto", "torch"):
        raise RerouteError("backend", f"{backend!r} is not known", "known: 'auto', 'torch', 'triton'")


def _hooks(model: nn.Module, family: Family, schedule: Schedule) -> list[RemovableHandle]:
    """The hooks that find placeholders before they are merged away, and that refuse ``labels`` under ``delete``."""
    handles = []
    if family.merger is not None:
        merger = model.get_submodule(family.merger)

        def find_placeholders(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            input_ids = _argument(module, args, kwargs, "input_ids")
            # a single row is never routable; a decode step needs no mask
            if input_ids is None or (isinstance(input_ids, Tensor) and input_ids.shape[-1] == 1):
                return args, kwargs
            check_prompt(model, family, input_ids, kwargs)
            if kwargs.get("visual_mask") is None:
                kwargs = {**kwargs, "visual_mask": placeholder_mask(model, input_ids)}
            return args, kwargs

        handles.append(merger.register_forward_pre_hook(find_placeholders, with_kwargs=True))
    if schedule.action == "delete":

        def refuse_labels(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if _argument(module, args, kwargs, "labels") is not None:
                raise RerouteError(
                    "labels",
                    "removed rows have no logits under action 'delete'",
                    "leave labels out, or use 'reroute'",
                )

        handles.append(model.register_forward_pre_hook(refuse_labels, with_kwargs=True))
    return handles


def _argument(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
    if name in kwargs or not args:
        return kwargs.get(name)
    return inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments.get(name)


def _generating_class(
    base: Any, router: Router, handles: list[RemovableHandle], undo: tuple[type, type]
) -> type[nn.Module]:
    """A subclass of the model's class, of the same name (saving writes it), whose ``generate`` refuses what cannot be."""

    @functools.wraps(base.generate)
    def generate(
        self: nn.Module, inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        check_generation(self, generation_config, kwargs)
        router.generating = True
        try:
            return base.generate(self, inputs, generation_config, *args, **kwargs)
        finally:
            router.generating = False

    namespace = {"generate": generate, "_reroute_undo": (handles, undo), "__module__": base.__module__}
    return type(base.__name__, (base,), {**namespace, "__doc__": base.__doc__})
