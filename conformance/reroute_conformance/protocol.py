"""Defines the target protocol: the members through which the suite asks an implementation, and what they take and return.

A target is any object with these members. It need not import this module.
"""

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
"""The profiles that a target may claim, in the order of the report, with what each means."""

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
"""The model families of profile ``hf``. A target that does not say which it runs claims the first."""

DTYPES = ("float16", "bfloat16")
"""The precisions of profile ``low-precision``. A target that does not say which it runs claims both."""

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
"""The answer to one request; :meth:`Target.run` lists its entries."""


class Target(Protocol):
    """An implementation under test, as the suite sees it.

    A target may lack the members of profiles that it does not claim; :func:`missing_members` names those that it lacks
    and needs. With ``conform --nproc`` every process of one gloo group has such an object. All of these objects are
    asked the same in the same order, and each of them returns the whole answer.

    Attributes:
        name: the name that the report shows.
        profiles: the part of :data:`PROFILES` that the target claims. A check of another profile is not run.
        families: the part of :data:`FAMILIES` that it claims with profile ``hf``. It may be missing, which claims the
            first one.
        dtypes: the part of :data:`DTYPES` that it claims with profile ``low-precision``. It may be missing, which
            claims both.
        device: where the target computes, in its own words, for the report. It may be missing.
        unavailable: what the target claims but cannot be asked for where it runs, as a mapping from names of
            :data:`PROFILES` or :data:`DTYPES` to the reason. It may be missing. The suite runs nothing of what it
            names, and a verdict on it is INCOMPLETE.
    """

    name: str
    profiles: frozenset[str]

    def select(self, scores: Tensor, k: int) -> Sequence[int]:
        """Return the positions of the ``k`` selected of ``scores`` [n], ascending. A NaN score raises an error."""
        ...

    def plan(
        self, schedule: Mapping[str, Any], num_layers: int, visual: Sequence[bool], images: Sequence[int]
    ) -> Sequence[int]:
        """Return how many rows every block runs for a request under a schedule.

        Args:
            schedule: a schedule as plain data (``schemas/schedule.json``), right or wrong. A wrong one raises an error
                with the attributes ``field`` and ``remedy``.
            num_layers: number of blocks of the decoder.
            visual: one flag for each real prompt row.
            images: the feature count of every image; the counts add up to the number of flagged rows.
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
        """Run the prefill of a batch, then feed ``continuation`` [B, T] token by token. NaN in the inputs raises an error.

        Args:
            model: see :data:`Model`.
            inputs: what a processor returns. For a canonical decoder these are ``inputs_embeds`` [B, S, d],
                ``visual_mask`` [B, S] and ``attention_mask`` [B, S]. A model may also be given ``labels`` [B, S]. The
                suite also gives what has to be refused: ``past_key_values`` of any kind, any of these inputs in a form
                that cannot be read, a model in training mode, or a model of another family. A refusal is an error with
                the attributes ``field`` (the name of the input, ``model`` or ``model.training``) and ``remedy``. It
                leaves model and inputs as they were.
            schedule: says at which blocks to decide, and how many rows to keep.
            decisions: selections to run in place of the scores' own (profile ``stagewise``).
            continuation: tokens to feed after the prefill.

        Returns:
            A dict for each request, with

            - ``trace``: a RoutingTrace;
            - ``residuals``: {layer: [rows, d]} at every decision's input, and at key L after the last block, before the
              final norm. The rows are the real rows in prompt order, under ``delete`` those that are still there;
            - ``logits``: [rows, V] of all real rows, under ``delete`` of the survivors;
            - ``keys``, ``values``: per block [K, rows, h] as cached after the prefill; [0, 0, 0] of a block of linear
              attention;
            - ``decode_logits``: [T, V].
        """
        ...

    def generate(self, model: nn.Module, inputs: Inputs, schedule: Schedule, max_new_tokens: int) -> Tensor:
        """Decode exactly ``max_new_tokens`` tokens greedily, and return prompt and new tokens [B, S + new].

        ``inputs`` may also hold options of ``transformers``' ``generate`` that have to be refused by their name, such
        as ``prefill_chunk_size``, ``assistant_model`` and ``cache_implementation``.
        """
        ...

    def session(
        self, model: Model, schedule: Schedule, operations: Sequence[Mapping[str, Any]]
    ) -> list[list[Answer] | Exception]:
        """Do operations one after another on one model and one cache (profile ``session``).

        Args:
            model: see :data:`Model`.
            schedule: the schedule of every prefill and of every later turn with visual rows.
            operations: each has ``op``, which is one of

                - ``prefill``: ``inputs`` as for :meth:`run`; whatever was cached before is dropped;
                - ``turn``: ``inputs`` of the new rows alone, without padding; they are text or new images;
                - ``decode``: ``tokens`` [B], one for each request;
                - ``crop``: ``rows``, how many of the newest rows every request forgets;
                - ``reorder`` and ``select``: ``order``, which request of the batch stands at each place afterwards;
                - ``repeat``: ``times``; every request stands that often, one after another.

        Returns:
            A list with an entry for each operation. Where the operation was refused, the entry is the exception, and
            the refusal leaves everything as it was. Otherwise the entry has for each request a dict of what :meth:`run`
            returns, of the new rows: ``trace`` and ``residuals`` after a prefill or turn, ``logits`` after those and
            after decode. The dict always has ``length``, the logical length, and ``keys`` and ``values``, all that
            every block has cached by then.
        """
        ...

    def schedule(
        self, given: str | Mapping[str, Any], num_layers: int, attention_blocks: Sequence[int] | None = None
    ) -> Mapping[str, Any]:
        """Return, as plain data, the schedule of a preset or of given data (profile ``presets``).

        Args:
            given: the name of a preset, or a schedule as data, which is read and written again.
            num_layers: number of blocks of the decoder.
            attention_blocks: the blocks with plain attention; all blocks unless given.
        """
        ...

    def first_stage(self, model: nn.Module, inputs: Inputs, tier: str) -> Mapping[str, Any]:
        """Run Nüwa's first stage on a batch and return what it makes of it (profile ``nuwa``).

        Returns:
            ``inputs_embeds`` [B, S', d], and ``visual_mask``, ``attention_mask`` and ``position_ids`` [B, S']. In the
            order of the images of the batch also ``metric`` [images, 576] and ``pillars``, a list of patches for each
            image.
        """
        ...

    def run_prefix(
        self, model: Model, inputs: Sequence[Inputs], schedule: Schedule, rows: int
    ) -> list[list[Answer]]:
        """Run one batch after another as :meth:`run` does, all served from a shared prefix (profile ``prefix``).

        The prefix is the first ``rows`` rows of the first batch, which are computed once. A batch that does not begin
        with those rows raises an error.
        """
        ...

    def run_shards(self, model: Model, inputs: Inputs, schedule: Schedule, shards: int) -> list[list[Answer]]:
        """Run as :meth:`run` does, with the heads sharded over ``shards`` processes (profile ``shards``).

        The result is what each of the processes returns. ``shards`` divides the number of key heads. ``keys`` and
        ``values`` are those of all heads.
        """
        ...


WORKS: Mapping[str, str] = {
    "select": "places of the ``k`` selected of ``scores`` [n]",
    "score": "scores of the first decision of ``schedule``, at whose block the rows of ``inputs`` stand",
    "prefill": "a prefill of ``inputs`` into a new cache, and the logits of its last row",
    "decode": "``tokens`` [B, T] one by one after a prefill; the cache is as before afterwards",
    "reorder": "the requests of a prefill's cache in ``order`` [B]",
}
"""The works that ``vlm-reroute bench`` times. All but ``select`` are also given ``model``, ``inputs`` and ``schedule``."""


class Timed(Protocol):
    """An optional part of a target, with which ``vlm-reroute bench`` times what a user waits for and nothing else.

    For a target without ``prepare`` the bench times ``select`` and ``prefill`` by calls of :meth:`Target.select` and
    :meth:`Target.run`, and these times include all that the suite makes them return.

    Attributes:
        untimed: why times of this target mean nothing where it runs now, for example because an interpreter runs it. It
            is empty or missing where they do mean something.
    """

    untimed: str

    def prepare(self, work: str, given: Mapping[str, Any]) -> Callable[[], object] | None:
        """Return a function that does ``work`` once more at each call. What this method does beforehand is not timed.

        Args:
            work: a name of :data:`WORKS`.
            given: what the work is about. The model is a Llama of transformers where the target claims ``hf``, else a
                canonical decoder. The model's modules are the target's own: it may change them and leave them changed.
                Its weights are shared with everybody. ``inputs`` are ``inputs_embeds`` [B, S, d] and ``visual_mask``
                [B, S], all on one device.

        Returns:
            The function; None where the target does not do this work by itself, which is then not timed.
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
