"""Routes a transformers model in place and gives it back as it was: ``apply``, ``remove``, ``routed`` and ``Routed``.

``apply`` gives the model and its text decoder subclasses of their own classes, and leaves the model untouched where it
fails. ``remove`` undoes every change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from reroute_reference.families import Family, family_of, text_decoder_of, vision_tower_of
from reroute_spec import Plan, RerouteError, RoutingTrace, Schedule, presets
from reroute_view import Shown
from torch import nn
from torch.utils.hooks import RemovableHandle

from .fused.attention import attention_of
from .fused.blocks import check_fusable
from .fused.engine import Fused
from .fused.weights import Joined, fuse
from .hooks.decoder_class import routed_class, router_of
from .hooks.model_class import generating_class
from .hooks.placeholders import Placeholders, arguments
from .hooks.refusals import check_applicable, check_decoder
from .hooks.router import Router
from .hooks.swapped import Swapped, become
from .model.decoder import Decoder
from .nuwa.vision_tower import FirstStage
from .parallel.shards import Shards, check_shards
from .prefix.handle import Prefix, make_prefix
from .showing.view import view_of
from .turn.records import Prefill


class Routed:
    """The handle of a routed model, on which the decisions of its last prefill can be read.

    It shows the last prefill that has finished, and the next one replaces it. It stays readable after the model is
    given back.
    """

    def __init__(self, router: Router, shards: Shards | None) -> None:
        self._router = router
        self._shards = shards

    @property
    def backend(self) -> str:
        """The backend that was taken: ``"torch"``, or ``"triton (attention: sdpa)"`` or ``"triton (attention: varlen)"``
        by what serves the packed rows of the model where it is now; ``"triton (attention: modules)"`` where blocks are called
        whole, as those of Qwen3.5.
        """
        if self._router.fused is None:
            return "torch"
        return f"triton (attention: {attention_of(self._router.decoder)})"

    @property
    def shards(self) -> int:
        """Processes among which the heads are divided; 1 where each has the whole model, as it has of a family without a
        tensor-parallel plan.
        """
        return 1 if self._shards is None else self._shards.size

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
        return tuple(max(rows) for rows in zip(*self._last("kv_lengths").kv_rows(), strict=True))

    @property
    def plan(self) -> list[Plan]:
        """The plan of every batch row."""
        return list(self._last("plan").layout.plans)

    @torch.no_grad()
    def prefix(self, inputs: Mapping[str, Any]) -> Prefix:
        """Run the beginning that many prompts share once, through the blocks before the first decision.

        Every row runs those blocks. Inside ``with prefix:`` prefills start after it; see :class:`Prefix`. The last
        prefill stays readable.

        Args:
            inputs: what the model's processor returns for the beginning of a prompt, images included; or one request's
                ``inputs_embeds`` [1, P, d].

        Raises:
            RerouteError: several requests, padding, a cache or labels; another prefix is in use; the routing was
                removed.
        """
        return make_prefix(self._router, inputs)

    def show(
        self,
        inputs: Mapping[str, Any] | None = None,
        processor: Any = None,
        *,
        request: int = 0,
        beside: Routed | None = None,
    ) -> Shown:
        """Draw the last prefill: which patches ran, were deferred and re-entered, decision by decision.

        A notebook displays what is returned. Its ``save`` writes it as a page (``.html``), a figure (``.png``) or data
        (``.json``) that draws elsewhere, without the model. Without inputs the grid is drawn, and no picture.

        Args:
            inputs: what the prefill was given, for its pictures.
            processor: the processor that made the inputs.
            request: place in the batch.
            beside: another routing of the same inputs, such as the pruning method.

        Raises:
            RerouteError: no prefill yet, no such request, inputs without a processor, another prompt beside it.
        """
        if not isinstance(beside, Routed | None):
            raise RerouteError(
                "beside", f"is a {type(beside).__name__}", "give what apply or routed returned"
            )
        other = None if beside is None else (beside._router, beside._last("beside"))
        return Shown(view_of(self._router, self._last("show"), request, inputs, processor, other))

    def _repr_html_(self) -> str | None:
        """Draw the first request of the last prefill for a notebook; None before there is one."""
        return None if self._router.last is None else self.show()._repr_html_()

    def _last(self, what: str) -> Prefill:
        if self._router.last is None:
            raise RerouteError(what, "no prefill has finished yet", "run the model first")
        return self._router.last


def apply(model: nn.Module, schedule: Schedule | str | Path, *, backend: str = "auto") -> Routed:
    """Route ``model`` from its next forward on.

    Parameters, their names, dtype, device and hooks stay as they are; ``model.generate`` works as before. Under ``"triton"``
    weights that are multiplied together share memory until :func:`remove`; each stays a parameter of its own.

    Args:
        model: a transformers model of a described family, in eval mode when it runs.
        schedule: a Schedule, the name of a preset, or the path of a JSON file.
        backend: ``"torch"``, which ``"auto"`` takes, or ``"triton"``.

    Raises:
        RerouteError: an unknown family, backend or schedule; a schedule this backend does not run; a model that is
            already routed. The model is untouched then.
    """
    check_backend(backend)
    model = base_of(model)
    family = family_of(model)
    decoder = Decoder(*text_decoder_of(model))
    if router_of(decoder.module) is not None:
        raise RerouteError("model", "is already routed", "call remove(model) first")
    check_decoder(decoder)
    loaded = _loaded(schedule, decoder)
    check_applicable(decoder, family, loaded)
    shards = check_shards(decoder)
    if backend == "triton":
        if shards is not None:
            problem = f"'triton' scores by the heads of one process, here {shards.size} share them"
            raise RerouteError("backend", problem, "use backend='torch'")
        check_fusable(decoder)
    stage = _first_stage(model, family, schedule)
    fused = Fused(decoder, loaded) if backend == "triton" else None
    router = Router(model, decoder, family, loaded, stage, fused)
    placeholders = None
    if family.merger is not None:
        placeholders = Placeholders(model, family, loaded, router, stage is not None)
    # first: all that can fail, here as in remove, while nothing else is changed
    handles: list[RemovableHandle | Swapped | Joined | Fused] = []
    if fused is not None:
        handles += [fused] if fused.as_modules else [fuse(decoder), fused]
    if placeholders is not None:
        handles += placeholders.register()
    if stage is not None:
        handles += stage.register()
    if loaded.action == "delete" or stage is not None:
        handles.append(model.register_forward_pre_hook(_refuse_labels, with_kwargs=True))
    top, text = type(model), type(decoder.module)
    become(decoder.module, routed_class(text, router))
    model.__class__ = generating_class(top, placeholders, family, shards, (handles, (top, text)))
    return Routed(router, shards)


def remove(model: nn.Module) -> None:
    """Give ``model`` back as it was before :func:`apply`.

    Raises:
        RerouteError: it is not routed, or a forward of it is running.
    """
    model = base_of(model)
    module = text_decoder_of(model)[0]
    router = router_of(module)
    if router is None:
        raise RerouteError("model", "is not routed", "call apply(model, schedule) first")
    router.check_module(module)
    with router.claimed():
        handles, (top, text) = getattr(type(model), "_reroute_undo")  # noqa: B009  # a dynamic class, unknown to mypy
        for handle in handles:
            handle.remove()
        become(module, text)
        model.__class__ = top


@contextmanager
def routed(model: nn.Module, schedule: Schedule | str | Path, *, backend: str = "auto") -> Iterator[Routed]:
    """:func:`apply` for the length of a ``with`` block; yields the :class:`Routed`, which stays readable after it."""
    result = apply(model, schedule, backend=backend)
    try:
        yield result
    finally:
        if router_of(text_decoder_of(base_of(model))[0]) is result._router:
            remove(model)


def base_of(model: nn.Module) -> nn.Module:
    """The transformers model inside a PEFT model, whose adapters stay where they are; any other model itself."""
    base = getattr(model, "get_base_model", None)
    inner: nn.Module = base() if callable(base) else model
    return inner


def check_backend(backend: str) -> None:
    """Refuse a backend that :func:`apply` does not know.

    Raises:
        RerouteError: naming those it knows.
    """
    if backend not in ("auto", "torch", "triton"):
        raise RerouteError("backend", f"{backend!r} is not known", "known: 'auto', 'torch', 'triton'")


def _loaded(schedule: Schedule | str | Path, decoder: Decoder) -> Schedule:
    """The schedule for ``decoder``: presets follow its depth and its blocks, others are checked against them."""
    attention = decoder.attention_layers if decoder.hybrid else None
    if isinstance(schedule, Schedule):
        return schedule.validate(decoder.num_layers, attention)
    return Schedule.load(schedule, decoder.num_layers, attention)


def _first_stage(model: nn.Module, family: Family, schedule: Schedule | str | Path) -> FirstStage | None:
    """The first stage in the vision tower that belongs to a preset of Nüwa; None for any other schedule or model."""
    if not isinstance(schedule, str) or schedule not in presets() or family.tower is None:
        return None
    method, _, tier = schedule.rpartition("-")
    return FirstStage(model, vision_tower_of(model), tier) if method in ("nuwa", "reroute-nuwa") else None


def _refuse_labels(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if arguments(module, args, kwargs).get("labels") is not None:
        raise RerouteError(
            "labels",
            "removed rows have no logits, under action 'delete' and after Nüwa's first stage",
            "leave labels out, or use another schedule",
        )
