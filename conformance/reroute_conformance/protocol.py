"""What the suite asks of an implementation. A target is any object with these members; it need not import this module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from reroute_spec import Schedule
from reroute_spec.canonical import CanonicalConfig
from torch import Tensor, nn

PROFILES: Mapping[str, str] = {
    "core": "schedules, selection, budgets, single requests of the canonical decoder",
    "stagewise": "given decisions are replayed",
    "gqa": "grouped heads, biases, query and key norms",
    "mrope": "positions of three coordinates",
    "batch": "several requests, padding",
    "cache": "decode",
    "session": "later turns of text and images, crop, requests moved in the batch",
    "methods": "the original methods' score source and positions: previous, renumber",
    "presets": "schedules by name, for any depth and any kinds of blocks",
    "nuwa": "Nüwa's first stage in the vision tower",
    "prefix": "a prefix is computed once for many requests",
    "shards": "heads are sharded over processes",
    "low-precision": "float16 and bfloat16",
    "hf": "transformers models of the claimed families",
}
"""What a target may claim, in the order of the report, and what it means."""

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
"""Model families of profile ``hf``; a target that does not say which it runs claims the first."""

DTYPES = ("float16", "bfloat16")
"""What profile ``low-precision`` computes in; a target that does not say which claims both."""

MEMBERS: Mapping[str, tuple[str, ...]] = {
    "core": ("select", "plan", "run"),
    "hf": ("generate",),
    "session": ("session",),
    "presets": ("schedule",),
    "nuwa": ("first_stage",),
    "prefix": ("run_prefix",),
    "shards": ("run_shards",),
}
"""The members of :class:`Target` that a profile needs; profiles that are not listed need no others than those of ``core``."""

Model: TypeAlias = nn.Module | tuple[CanonicalConfig, dict[str, Tensor]]
"""A transformers model, or a canonical decoder as configuration and weights."""

Inputs: TypeAlias = Mapping[str, Any]
"""A batch as a processor returns it; of a canonical decoder, embeddings and masks."""

Decisions: TypeAlias = Sequence[Sequence[Sequence[int]]] | None
"""Selections to run in place of the scores' own, per request and decision; None: the scores decide."""

Answer: TypeAlias = dict[str, Any]
"""What a target shows of one request; :meth:`Target.run` lists it."""


class Target(Protocol):
    """An implementation under test.

    Members of profiles that it does not claim may be missing (:func:`missing_members`). With ``conform --nproc`` each process
    of one gloo group has such an object, all are asked the same in the same order, and each returns the whole answer.

    Attributes:
        name: shown in the report.
        profiles: the part of :data:`PROFILES` it claims; a check of another profile is not run.
        families: the part of :data:`FAMILIES` it claims with profile ``hf``; may be missing.
        dtypes: the part of :data:`DTYPES` it claims with profile ``low-precision``; may be missing.
        device: where it computes, in its own words, for the report; may be missing.
        unavailable: what it claims and cannot be asked for here, a name of :data:`PROFILES` or :data:`DTYPES`, and why; may be
            missing. Nothing of it is run, and a verdict on it is INCOMPLETE.
    """

    name: str
    profiles: frozenset[str]

    def select(self, scores: Tensor, k: int) -> Sequence[int]:
        """Positions of the ``k`` selected of ``scores`` [n], ascending. A NaN score raises."""
        ...

    def plan(
        self, schedule: Mapping[str, Any], num_layers: int, visual: Sequence[bool], images: Sequence[int]
    ) -> Sequence[int]:
        """Rows that every block runs for a request, from the schedule as plain data (``schemas/schedule.json``).

        Args:
            schedule: right or wrong. A wrong one raises an error with the attributes ``field`` and ``remedy``.
            num_layers: blocks of the decoder.
            visual: a flag per real prompt row.
            images: feature count of every image, adding up to the flagged rows.
        """
        ...

    def run(
        self,
        model: Model,
        inputs: Inputs,
        schedule: Schedule,
        *,
        decisions: Decisions = None,
        continuation: Tensor | None = None,
    ) -> list[Answer]:
        """Prefill of a batch, then ``continuation`` [B, T] token by token. NaN in the inputs raises.

        Args:
            model: see :data:`Model`.
            inputs: what a processor returns; for a canonical decoder ``inputs_embeds`` [B, S, d], ``visual_mask``
                [B, S] and ``attention_mask`` [B, S]. A model may also be given ``labels`` [B, S], and what has to be
                refused: ``past_key_values`` of any kind, any of these in a form that cannot be read, a model in
                training mode or of another family. A refusal is an error with the attributes ``field`` (the name of
                the input, ``model``, ``model.training``) and ``remedy``, and leaves model and inputs as they were.
            schedule: what to decide where.
            decisions: selections to run instead of the scores' own (profile ``stagewise``).
            continuation: tokens to feed after the prefill.

        Returns:
            Per request a dict with

            - ``trace``: a RoutingTrace;
            - ``residuals``: {layer: [rows, d]} at every decision's input, and at key L after the last block, before the
              final norm; real rows in prompt order, under ``delete`` those alive;
            - ``logits``: [rows, V], all real rows, under ``delete`` the survivors;
            - ``keys``, ``values``: per block [K, rows, h] as cached after the prefill; [0, 0, 0] of a block of linear
              attention;
            - ``decode_logits``: [T, V].
        """
        ...

    def generate(self, model: nn.Module, inputs: Inputs, schedule: Schedule, max_new_tokens: int) -> Tensor:
        """Greedy decoding, exactly ``max_new_tokens``; prompt and new tokens [B, S + new].

        ``inputs`` may also hold options of ``transformers``' ``generate`` that have to be refused by their name, such as
        ``prefill_chunk_size``, ``assistant_model`` and ``cache_implementation``.
        """
        ...

    def session(
        self, model: Model, schedule: Schedule, operations: Sequence[Mapping[str, Any]]
    ) -> list[list[Answer] | Exception]:
        """Operations one after another on one model and one cache (profile ``session``).

        Args:
            model: see :data:`Model`.
            schedule: of every prefill and of every turn with visual rows.
            operations: each has ``op``, one of

                - ``prefill``: ``inputs`` as for :meth:`run`; whatever was cached before is dropped;
                - ``turn``: ``inputs`` of the new rows alone, without padding, text or new images;
                - ``decode``: ``tokens`` [B], one per request;
                - ``crop``: ``rows``, how many of the newest rows every request forgets;
                - ``reorder`` and ``select``: ``order``, which request of the batch stands at each place afterwards;
                - ``repeat``: ``times``, every request stands that often, one after another.

        Returns:
            Per operation the exception that it was refused with, which leaves everything as it was, or per request
            what :meth:`run` returns, of the new rows: ``trace`` and ``residuals`` after a prefill or turn, ``logits`` after
            those and after decode; and always ``length``, the logical length, and ``keys`` and ``values``, all that
            every block has cached by then.
        """
        ...

    def schedule(
        self, given: str | Mapping[str, Any], num_layers: int, attention_blocks: Sequence[int] | None = None
    ) -> Mapping[str, Any]:
        """The schedule, as plain data, that a preset's name stands for or that data reads as (profile ``presets``).

        Args:
            given: a name, or a schedule as data.
            num_layers: blocks of the decoder.
            attention_blocks: those with plain attention; all unless given.
        """
        ...

    def first_stage(self, model: nn.Module, inputs: Inputs, tier: str) -> Mapping[str, Any]:
        """What Nüwa's first stage makes of a batch (profile ``nuwa``).

        Returns:
            ``inputs_embeds`` [B, S', d], ``visual_mask``, ``attention_mask`` and ``position_ids`` [B, S']; per image in the
            order of the batch its ``metric`` [images, 576] and ``pillars``, a list of patches.
        """
        ...

    def run_prefix(
        self, model: Model, inputs: Sequence[Inputs], schedule: Schedule, rows: int
    ) -> list[list[Answer]]:
        """As :meth:`run`, of one batch after another, all served from the first ``rows`` rows of the first one, which
        are computed once (profile ``prefix``). A batch that does not begin with those rows raises.
        """
        ...

    def run_shards(self, model: Model, inputs: Inputs, schedule: Schedule, shards: int) -> list[list[Answer]]:
        """As :meth:`run`, with the heads sharded over ``shards`` processes: what each of them returns (profile
        ``shards``). ``shards`` divides the key heads; ``keys`` and ``values`` are of all heads.
        """
        ...


WORKS: Mapping[str, str] = {
    "select": "places of the ``k`` selected of ``scores`` [n]",
    "score": "scores of the first decision of ``schedule``, at whose block the rows of ``inputs`` stand",
    "prefill": "a prefill of ``inputs`` into a new cache, and the logits of its last row",
    "decode": "``tokens`` [B, T] one by one after a prefill; the cache is as before afterwards",
    "reorder": "the requests of a prefill's cache in ``order`` [B]",
}
"""What ``vlm-reroute bench`` times. All but ``select`` are also given ``model``, ``inputs`` and ``schedule``."""


class Timed(Protocol):
    """What a target may have besides, so that ``vlm-reroute bench`` times what a user waits for and nothing else.

    Without ``prepare``, ``select`` and ``prefill`` are timed by what :meth:`Target.select` and :meth:`Target.run` take, with all
    that the suite makes them return.

    Attributes:
        untimed: why its times mean nothing where it runs now, an interpreter for example; empty, or missing, where they do.
    """

    untimed: str

    def prepare(self, work: str, given: Mapping[str, Any]) -> Callable[[], object] | None:
        """A call that does ``work`` once more each time; what happens before it is not timed.

        Args:
            work: of :data:`WORKS`.
            given: what it is about. The model is a Llama of transformers where the target claims ``hf``, else a canonical
                decoder; its modules are the target's own, to be changed and left so, its weights are everybody's.
                ``inputs`` are ``inputs_embeds`` [B, S, d] and ``visual_mask`` [B, S], all on one device.

        Returns:
            None where the target does not do this by itself: it is then not timed.
        """
        ...


def missing_members(target: Any) -> list[str]:
    """What a target lacks for the profiles that it claims."""
    claimed = getattr(target, "profiles", ())
    claimed = claimed if isinstance(claimed, (set, frozenset, list, tuple)) else ()
    needed = ["name", "profiles", *MEMBERS["core"]]
    needed += [member for profile, members in MEMBERS.items() if profile in claimed for member in members]
    return [member for member in dict.fromkeys(needed) if not hasattr(target, member)]


def families_of(target: Target) -> tuple[str, ...]:
    """The model families that a target claims with profile ``hf``, in the order of :data:`FAMILIES`."""
    if "hf" not in target.profiles:
        return ()
    claimed = getattr(target, "families", FAMILIES[:1])
    return tuple(family for family in FAMILIES if family in claimed)


def dtypes_of(target: Target) -> tuple[str, ...]:
    """The precisions that a target claims with profile ``low-precision``, in the order of :data:`DTYPES`."""
    claimed = getattr(target, "dtypes", DTYPES)
    return tuple(dtype for dtype in DTYPES if dtype in claimed)


def unavailable_of(target: Target, profiles: Iterable[str]) -> dict[str, str]:
    """Which of ``profiles``, and of the precisions of profile ``low-precision``, a target cannot be asked for here, and why."""
    reasons: Mapping[str, str] = getattr(target, "unavailable", {})
    asked = list(profiles)
    if "low-precision" in asked and "low-precision" not in reasons:
        asked += dtypes_of(target)
    return {name: reasons[name] for name in asked if name in reasons}
