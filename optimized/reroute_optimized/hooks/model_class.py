"""Makes the subclass that a routed model with a head becomes: its ``generate`` refuses what is not defined and marks its steps.

The class also refuses pickling and continuous batching. Where processes divide the heads, calling the model raises an
error that says so when another process is gone.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

from reroute_reference.families import Family, placeholder_mask
from reroute_spec import RerouteError
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..fused.engine import Fused
from ..fused.weights import Joined
from ..parallel.shards import Shards, lost_processes_told
from ..turn.source import sizes_of
from .generate_call import GENERATION, Generation
from .placeholders import Placeholders, check_companions
from .refusals import check_generation
from .swapped import Swapped

_CONTINUOUS = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


def generating_class(
    base: Any,
    placeholders: Placeholders | None,
    family: Family,
    shards: Shards | None,
    undo: tuple[Sequence[RemovableHandle | Swapped | Joined | Fused], tuple[type, type]],
) -> type[nn.Module]:
    """A subclass of the model's class, of the same name (saving writes it).

    What belongs to one call of ``generate`` goes down to its own forwards as a keyword argument, as transformers hands
    on all it does not know: forwards of others, in a logits processor or another thread, have no part in it.
    """

    @functools.wraps(base.generate)
    def generate(
        self: nn.Module, inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        cached = check_generation(self, generation_config, kwargs)
        check_companions(family, {"input_ids": inputs, **kwargs})
        mask, images = kwargs.pop("visual_mask", None), kwargs.pop("visual_images", None)
        ids, embeddings = kwargs.get("input_ids", inputs), kwargs.get("inputs_embeds")
        if mask is None and placeholders is not None and _belong(ids, embeddings):
            mask = placeholder_mask(self, ids)
        if images is None and placeholders is not None:
            images = placeholders.images_to_generate(ids, kwargs)
        own = {**kwargs, GENERATION: Generation(cached, mask, images, sizes=sizes_of(family, kwargs))}
        return base.generate(self, inputs, generation_config, *args, **own)

    def _validate_model_kwargs(self: nn.Module, model_kwargs: dict[str, Any]) -> None:
        base._validate_model_kwargs(self, {k: v for k, v in model_kwargs.items() if k != GENERATION})

    def _prepare_position_ids_for_generation(
        self: nn.Module, inputs_tensor: Tensor, model_kwargs: dict[str, Any]
    ) -> Any:
        prepare = functools.partial(base._prepare_position_ids_for_generation, self)
        if placeholders is None:
            return prepare(inputs_tensor, model_kwargs)
        return placeholders.positions_to_generate(prepare, inputs_tensor, model_kwargs)

    namespace = {
        "generate": generate,
        "__deepcopy__": _copied,
        "__reduce_ex__": _refuse_pickling,
        **{name: _refuse_continuous for name in _CONTINUOUS if hasattr(base, name)},
        "_validate_model_kwargs": _validate_model_kwargs,
        "_prepare_position_ids_for_generation": _prepare_position_ids_for_generation,
        "_reroute_undo": undo,
        "__module__": base.__module__,
        "__doc__": base.__doc__,
    }
    if shards is not None:
        namespace["__call__"] = _telling(base, shards)
    return type(base.__name__, (base,), namespace)


def _telling(base: Any, shards: Shards) -> Callable[..., Any]:
    """A call of the model that says so where another process is gone."""

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with lost_processes_told(shards):
            return base.__call__(self, *args, **kwargs)

    return call


def _copied(self: Any, memo: dict[int, Any]) -> Any:
    copied = memo[id(self)] = self.__class__.__new__(self.__class__)
    copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
    return copied


def _refuse_pickling(self: nn.Module, protocol: Any) -> Any:
    remedy = "remove routing, then save the model; or save its state_dict"
    raise RerouteError("model", "is routed, which a pickle cannot hold", remedy)


def _refuse_continuous(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    remedy = "give generate a batch, or remove routing"
    raise RerouteError("model", "continuous batching is not defined for routed models", remedy)


def _belong(ids: Any, embeddings: Any) -> bool:
    """Whether ``embeddings`` [B, S, d] are given beside the ids [B, S] that they were made of."""
    return isinstance(ids, Tensor) and isinstance(embeddings, Tensor) and ids.shape == embeddings.shape[:2]
