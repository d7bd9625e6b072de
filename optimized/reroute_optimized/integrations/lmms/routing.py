"""Adds routing to a model class of lmms-eval, and raises the errors that lmms-eval would turn into empty answers.

The class takes the argument ``reroute`` and routes the model that it loads. The rows that its prompts run and cache are
counted, and their means are written among lmms-eval's results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms_eval.models.model_utils.gen_metrics import log_metrics
from loguru import logger
from reroute_spec import RerouteError, Schedule
from reroute_spec.schedule_file import SUFFIXES

from ...api import Routed, apply, check_backend


class Failed(BaseException):
    """An error on its way past lmms-eval's ``except Exception``, which would turn it into an empty answer.

    The error itself is its ``__cause__``.
    """


@dataclass
class Rows:
    """The numbers of rows that the prompts so far have run and cached.

    Attributes:
        prompts: number of prompts.
        visual: visual rows of all prompts.
        visual_run: visual rows that ran, each prompt's averaged over the blocks.
        cached: rows that the blocks of all prompts have cached.
        cached_unrouted: rows that the same blocks cache when the model is not routed.
    """

    prompts: int = 0
    visual: float = 0
    visual_run: float = 0
    cached: int = 0
    cached_unrouted: int = 0

    def add(self, routed: Routed) -> None:
        """Count the prompts of the last batch.

        Raises:
            RerouteError: their scores were NaN.
        """
        for plan, trace in zip(routed.plan, routed.traces, strict=True):
            self.prompts += 1
            self.visual += plan.num_visual
            self.visual_run += float(plan.average_visual)
            self.cached += sum(trace.kv_rows)
            self.cached_unrouted += plan.num_rows * sum(rows > 0 for rows in trace.kv_rows)

    def means(self) -> dict[str, float]:
        """Means per prompt, which lmms-eval writes under ``throughput``."""
        return {
            "reroute_visual_rows": self.visual / self.prompts,
            "reroute_visual_rows_run": self.visual_run / self.prompts,
            "reroute_kv_share": self.cached / self.cached_unrouted,
        }


class Routing:
    """A base class that adds routing to the class of lmms-eval that follows it among the bases.

    Args:
        reroute: the name of a preset or the path of a schedule file. If it is empty, the model runs unrouted.
        reroute_backend: the ``backend`` of :func:`reroute_optimized.apply`.
        model_args: the arguments of lmms-eval's class.

    Raises:
        RerouteError: an unknown preset, a file that holds no schedule, or an unknown backend. All are refused before
            the model is loaded.
    """

    model: Any  # of lmms-eval's class: what it loaded, without accelerate's wrappers

    def __init__(self, *, reroute: str = "", reroute_backend: str = "auto", **model_args: Any) -> None:
        _check(reroute)
        check_backend(reroute_backend)
        super().__init__(**model_args)
        self.routed: Routed | None = None
        if not reroute:
            logger.warning("reroute is not given: the model runs unrouted")
            return
        self.routed = apply(self.model, reroute, backend=reroute_backend)
        logger.info(f"routed by {reroute}, backend {self.routed.backend}")

    def generate_until(self, requests: Any) -> Any:
        """Generate as lmms-eval's class does, with the routed model, and raise what fails."""
        with self._surfacing():
            return super().generate_until(requests)  # type: ignore[misc]  # lmms-eval's class comes next

    def generate_until_multi_round(self, requests: Any) -> Any:
        """Generate as lmms-eval's class does, where it has this method; every round is a prompt of its own."""
        with self._surfacing():
            return super().generate_until_multi_round(requests)  # type: ignore[misc]

    def loglikelihood(self, requests: Any) -> Any:
        """Answer as lmms-eval's class does where the model is not routed.

        Raises:
            RerouteError: the model is routed.
        """
        if self.routed is not None:
            raise RerouteError(
                "loglikelihood",
                "lmms-eval runs a prompt and its answer as one: the answer would choose the rows that it is judged by",
                "take tasks with output_type generate_until, or leave reroute out",
            )
        return super().loglikelihood(requests)  # type: ignore[misc]

    def clean(self) -> None:
        """Lets go of the model, which the routing holds too."""
        self.routed = None
        super().clean()  # type: ignore[misc]

    @contextmanager
    def _surfacing(self) -> Iterator[None]:
        """For the length of a run ``model.generate`` fails past lmms-eval's handlers, and what it ran is counted."""
        generate, rows = self.model.generate, Rows()

        def observed(*args: Any, **kwargs: Any) -> Any:
            try:
                tokens = generate(*args, **kwargs)
                if self.routed is not None:
                    rows.add(self.routed)
            except Exception as error:
                raise Failed from error
            return tokens

        self.model.generate, failure = observed, None
        try:
            yield
        except Failed as failed:
            failure = failed.__cause__
        finally:
            del self.model.generate
        if failure is not None:
            raise failure
        if rows.prompts:
            log_metrics(0.0, 0, 0.0, additional_metrics=rows.means())


def one_at_a_time(model_args: Mapping[str, Any]) -> None:
    """Refuse a batch size above 1 for a class that does not run it.

    Raises:
        RerouteError: naming it.
    """
    size = model_args.get("batch_size")
    if size is not None and str(size) != "1":  # "auto" is lmms-eval's too
        raise RerouteError("batch_size", f"{size} of a model that lmms-eval asks one by one", "give 1")


def _check(reroute: str) -> None:
    """Whether there is such a schedule; that it fits the decoder shows once that is loaded."""
    if not isinstance(reroute, str):  # lmms-eval reads 64 and true as an int and a bool
        raise RerouteError("reroute", f"is {reroute!r}", "give a preset or the path of a schedule file")
    path = Path(reroute)
    if path.suffix.lower() in SUFFIXES:
        Schedule.from_file(path)
    elif reroute:
        Schedule.load(reroute)
