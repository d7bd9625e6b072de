"""Adapts the backends ``torch`` and ``triton`` to the target protocol of the conformance suite.

A target need only have the members that the protocol names, so this package and the suite do not import each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from reroute_spec import RerouteError, Schedule, plan
from reroute_spec.canonical import CanonicalConfig
from torch import Tensor, nn

from ..api import routed
from ..kernels.operand_checks import interpreted
from ..kernels.ops import select_compact
from ..stages.selection import select_places
from ..turn.probe import Probe, Replay
from . import canonical
from .devices import placed
from .first_stage import first_stage
from .ranks import in_processes, processes, shared
from .session import Session
from .timed_work import prepared

Model = nn.Module | tuple[CanonicalConfig, dict[str, Tensor]]
"""A described transformers model, or the canonical decoder as configuration and weights."""


class TorchTarget:
    """The target of backend ``torch``.

    ``profiles`` and ``families`` say which parts of the suite it claims. It takes a described transformers model, or a
    canonical decoder as configuration and weights, which it builds as a transformers model.
    """

    name = "optimized-torch"
    backend = "torch"
    profiles = frozenset(
        {
            "core",
            "stagewise",
            "gqa",
            "mrope",
            "batch",
            "cache",
            "session",
            "methods",
            "presets",
            "nuwa",
            "prefix",
            "shards",
            "low-precision",
            "hf",
        }
    )
    families = frozenset({"llava", "qwen2_5_vl", "qwen3_vl", "qwen3_5"})

    @property
    def device(self) -> str:
        """Where the suite's models are."""
        count = processes() if "shards" in self.profiles else 1
        return "cpu" if count == 1 else f"cpu, heads divided among {count} processes where they can be"

    def select(self, scores: Tensor, k: int) -> list[int]:
        """The engine's own selection on ``scores`` [n]: k places, ascending.

        Raises:
            RerouteError: a NaN score, or ``k`` out of range.
        """
        if not 0 <= k <= len(scores):
            raise RerouteError(
                "k", f"{k} of {len(scores)} candidates", f"give an integer from 0 to {len(scores)}"
            )
        places, has_nan = self._selected(scores, k)
        if bool(has_nan.any()):
            raise RerouteError("scores", "hold a NaN", "a NaN is never ordered; find the block that made it")
        selected: list[int] = places.tolist()
        return selected

    def _selected(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Places [k], and whether they mean nothing: flags of NaN scores."""
        slots = torch.arange(k, device=scores.device)[None]
        return select_places(scores[None], slots)[0], scores.isnan()

    def plan(
        self, schedule: Mapping[str, Any], num_layers: int, visual: Sequence[bool], images: Sequence[int]
    ) -> tuple[int, ...]:
        """Rows that every block runs for a request of this layout, from the schedule as plain data.

        Raises:
            RerouteError: a schedule or layout that is refused.
        """
        return plan(Schedule.from_dict(schedule), num_layers, visual, images).kv_rows

    @torch.no_grad()
    def run(
        self,
        model: Model,
        inputs: Mapping[str, Tensor],
        schedule: Schedule,
        *,
        decisions: Replay | None = None,
        continuation: Tensor | None = None,
    ) -> list[dict[str, Any]]:
        """One prefill and, with ``continuation`` [B, T], T teacher-forced decode steps.

        Args:
            model: see ``Model``.
            inputs: what the model's processor returns; for the canonical decoder ``inputs_embeds`` [B, S, d],
                ``visual_mask`` [B, S] bool, ``attention_mask`` [B, S].
            schedule: to run.
            decisions: per request, per decision, ascending ordinals to replay.
            continuation: token ids.

        Returns:
            Per request: ``trace``; ``residuals`` {layer: [rows, d]} at the input of the request's decision blocks and,
            under Λ, after the last block; ``logits`` [rows, vocab]; ``keys`` and ``values``, per block [Hkv, rows,
            head_dim] after prefill; ``decode_logits`` [T, vocab] with ``continuation``.
        """
        network: Any = self._network(model)
        with routed(network, schedule, backend=self.backend) as result:
            session = Session(network, result)
            answers = session.forward(inputs, None, Probe(decisions))
            steps = []
            for token in continuation.unbind(1) if continuation is not None else ():
                steps.append(session.decode(token))
        if steps:
            for answer, *logits in zip(answers, *steps, strict=True):
                answer["decode_logits"] = torch.cat([step["logits"] for step in logits])
        return answers

    @torch.no_grad()
    def generate(
        self, model: nn.Module, inputs: Mapping[str, Tensor], schedule: Schedule, max_new_tokens: int
    ) -> Tensor:
        """Greedy, exactly ``max_new_tokens`` per request, EOS ignored: prompt and new tokens, [B, S + new]."""
        network: Any = self._network(model)
        config, ends = network.generation_config, network.generation_config.eos_token_id
        config.eos_token_id = None
        try:
            with routed(network, schedule, backend=self.backend):
                tokens: Tensor = network.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        finally:
            config.eos_token_id = ends
        return tokens

    @torch.no_grad()
    def session(
        self, model: Model, schedule: Schedule, operations: Sequence[Mapping[str, Any]]
    ) -> list[list[dict[str, Any]] | Exception]:
        """Operations one after another on one model and one cache.

        Args:
            model: see ``Model``.
            schedule: of every prefill and of every turn with visual rows.
            operations: each has ``op``: ``prefill`` or ``turn`` with ``inputs``, ``decode`` with ``tokens`` [B],
                ``crop`` with ``rows``, ``reorder`` or ``select`` with ``order``, ``repeat`` with ``times``.

        Returns:
            Per operation what refused it, or per request what :meth:`run` returns, of the new rows, with ``length`` and
            all that is cached.
        """
        network: Any = self._network(model)
        done: list[list[dict[str, Any]] | Exception] = []
        with routed(network, schedule, backend=self.backend) as result:
            session = Session(network, result)
            for operation in operations:
                try:
                    done.append(session.step(operation))
                except RerouteError as refusal:
                    done.append(refusal)
        return done

    @torch.no_grad()
    def run_prefix(
        self, model: Model, inputs: Sequence[Mapping[str, Tensor]], schedule: Schedule, rows: int
    ) -> list[list[dict[str, Any]]]:
        """As :meth:`run`, of one batch after another, all of which start after the first ``rows`` rows of the first one.

        Raises:
            RerouteError: a batch that does not begin with those rows.
        """
        network: Any = self._network(model)
        beginning = {
            name: tensor[:, :rows] if name != "position_ids" else tensor[..., :rows]
            for name, tensor in inputs[0].items()
        }
        with routed(network, schedule, backend=self.backend) as result, result.prefix(beginning):
            return [Session(network, result).forward(batch, None, Probe()) for batch in inputs]

    def schedule(
        self,
        given: str | Mapping[str, Any],
        num_layers: int,
        attention_blocks: Sequence[int] | None = None,
    ) -> Mapping[str, Any]:
        """The schedule, as plain data, that a preset's name stands for or that data reads as.

        Raises:
            RerouteError: no such preset, or none for such a decoder; data that is no schedule.
        """
        if isinstance(given, str):
            return Schedule.load(given, num_layers, attention_blocks).to_dict()
        return Schedule.from_dict(given).validate(num_layers, attention_blocks).to_dict()

    @torch.no_grad()
    def first_stage(self, model: nn.Module, inputs: Mapping[str, Any], tier: str) -> Mapping[str, Any]:
        """What Nüwa's first stage makes of a batch: embeddings, masks and positions of what it leaves."""
        return first_stage(model, inputs, tier)

    def run_shards(
        self, model: Model, inputs: Mapping[str, Tensor], schedule: Schedule, shards: int
    ) -> list[list[dict[str, Any]]]:
        """What each of ``shards`` processes returns of :meth:`run`, with the heads divided among them.

        Raises:
            RerouteError: a transformers model: such a one does not travel to another process whole.
        """
        if not isinstance(model, tuple):
            raise RerouteError("model", "is a module", "give a canonical decoder")
        return in_processes(self.run, shards, model, inputs, schedule)

    def prepare(self, work: str, given: Mapping[str, Any]) -> Callable[[], object] | None:
        """The work that a benchmark times, see ``timed_work.prepared``."""
        return prepared(work, given, self._network, self.backend)

    def _network(self, model: Model) -> nn.Module:
        network = model if isinstance(model, nn.Module) else canonical.build(*model)
        return shared(network) if "shards" in self.profiles else network


def torch_target() -> TorchTarget:
    """The target of backend ``torch``."""
    return TorchTarget()


class TritonTarget(TorchTarget):
    """The target of backend ``triton``, on a GPU or in Triton's interpreter on a CPU.

    Where there is a GPU, models and tensors are moved to it for every call. The profile ``shards`` is not claimed,
    because the kernels reduce the heads of one process only.
    """

    name = "optimized-triton"
    backend = "triton"
    profiles = TorchTarget.profiles - {"shards"}  # its kernels reduce the heads of one process

    @property
    def place(self) -> torch.device:
        """Where the suite's models are moved to."""
        return torch.device("cuda" if torch.cuda.is_available() and not interpreted() else "cpu")

    @property
    def device(self) -> str:
        """Where the suite's models run."""
        if self.place.type == "cuda":
            return torch.cuda.get_device_name()
        return "cpu, in Triton's interpreter" if interpreted() else "none"

    @property
    def unavailable(self) -> dict[str, str]:
        """What cannot be asked for here, and why: everything without a GPU and interpreter, bfloat16 in the interpreter."""
        if self.place.type == "cuda":
            return {}
        if interpreted():
            return {"bfloat16": "Triton's interpreter computes bfloat16 wrongly; needs a GPU"}
        reason = "the Triton kernels need a GPU, or TRITON_INTERPRET=1 to run slowly on a CPU"
        return dict.fromkeys(self.profiles, reason)

    def _selected(self, scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
        count, scores = len(scores), scores.to(self.place)
        everything = torch.arange(count, dtype=torch.int32, device=self.place)
        ends, kept = (torch.tensor([0, n], dtype=torch.int32, device=self.place) for n in (count, k))
        never = torch.zeros(count, dtype=torch.bool, device=self.place)
        selected, *_, has_nan = select_compact(
            scores, everything, ends, kept, never, ends, kept, k, k, count, count
        )
        return selected, has_nan

    run = placed(TorchTarget.run)
    generate = placed(TorchTarget.generate)
    session = placed(TorchTarget.session)
    run_prefix = placed(TorchTarget.run_prefix)
    first_stage = placed(TorchTarget.first_stage)

    @property
    def untimed(self) -> str:
        """Why its times mean nothing here; empty where they do."""
        if self.place.type == "cuda":
            return ""
        if interpreted():
            return "Triton's interpreter says whether kernels are right, not how fast they are"
        return "the Triton kernels need a GPU"


def triton_target() -> TritonTarget:
    """The target of backend ``triton``."""
    return TritonTarget()
