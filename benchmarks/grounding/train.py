"""Train one model on grounding, on a CPU: ``python -m benchmarks.grounding.train --seed 0 --out FOLDER --threads 2 --minutes 40``.

It may be killed at any time; the same command goes on from its last checkpoint. FOLDER then holds ``model.safetensors`` (float16) and
``config.json``, ``log.jsonl`` and, until it is done, ``checkpoint.pt``. The learning rate falls along a cosine of the time spent, or of
the steps with ``--steps``, which is then the same run every time on one machine, stopped in between or not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from .answers import Answers, ask
from .batches import batch
from .items import items
from .learning import Heads, losses
from .model import BLOCKS, WIDTH, build, load, save
from .options import folder_to_write, minutes, whole

RATE, PICTURES = 3e-3, 32
_WARM_UP = 0.02  # of the run
_CLIP = 1.0
_LOGGED, _SAVED = 20, 60.0  # steps, seconds
_VALIDATED = 16  # times over a run
_FINAL_ITEMS = 500


class Training:
    """A run: model, optimizers, and how far it is.

    Attributes:
        step, spent: steps made, and seconds of training in all, pauses left out.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, options.out
        self.model: Any = build(options.seed, blocks=options.blocks, width=options.width)
        self.heads = Heads(options.width)
        self.optimizers = optimizers(self.model, self.heads)
        self.precision = torch.bfloat16 if fast_bfloat16() else torch.float32
        self.step, self.spent, self.validations = 0, 0.0, 0
        self.stopping = False

    @property
    def checkpoint(self) -> Path:
        """Everything that the next step depends on."""
        return self.out / "checkpoint.pt"

    def fraction(self) -> float:
        """How much of the run is behind it, 0 to 1."""
        if self.options.steps:
            return min(1.0, self.step / self.options.steps)
        return min(1.0, self.spent / (60 * self.options.minutes))

    def log(self, **entry: Any) -> None:
        """One line of ``log.jsonl``."""
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, "spent_s": round(self.spent, 1), **entry}) + "\n")

    def keep(self) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "settings": _settings(self.options),
            "step": self.step,
            "spent": self.spent,
            "validations": self.validations,
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.checkpoint)

    def resume(self) -> bool:
        """Go on from the checkpoint, if there is one.

        Raises:
            SystemExit: it is of other settings.
        """
        if not self.checkpoint.exists():
            return False
        try:
            state = torch.load(self.checkpoint, weights_only=True)
        except Exception as error:  # whatever is wrong with the file
            sys.exit(
                f"{self.checkpoint} cannot be read ({error}): remove it to begin anew, or give another --out"
            )
        if state["settings"] != _settings(self.options):
            sys.exit(f"{self.checkpoint} is of {state['settings']}: give those, or another --out")
        self.step, self.spent, self.validations = state["step"], state["spent"], state["validations"]
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return True

    def learn(self) -> dict[str, float]:
        """One step; the batch is that of its number, whenever it is made."""
        given = batch(f"{self.options.seed}/{self.step}", PICTURES)
        rate = RATE * _rate(self.fraction())
        self.model.train()
        with torch.autocast("cpu", self.precision, enabled=self.precision != torch.float32):
            found = losses(self.model, self.heads, given)
        found["loss"].backward()
        parameters = [*self.model.parameters(), *self.heads.parameters()]
        norm = torch.nn.utils.clip_grad_norm_(parameters, _CLIP)
        if not bool(norm.isfinite()):
            sys.exit(
                f"step {self.step}: the gradient is {float(norm)}; a checkpoint of before, if any, stays"
            )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return {**{name: float(value.detach()) for name, value in found.items()}, "lr": rate}

    def validate(self, count: int, model: Any = None) -> dict[str, Any]:
        """Accuracy on the first validation items, unrouted."""
        asked = (model or self.model).eval()
        return summary(ask(asked, items("validation", count), None))


def optimizers(model: nn.Module, heads: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of blocks and projector, AdamW for tables, norms, biases and heads, at one learning rate."""
    matrices = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and "embed" not in name and "lm_head" not in name
    }
    others = [parameter for name, parameter in model.named_parameters() if name not in matrices]
    return [
        torch.optim.Muon(matrices.values(), RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([*others, *heads.parameters()], RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def summary(answers: Answers) -> dict[str, Any]:
    """The figures of a set of answers."""
    return {
        "items": len(answers.iou),
        "accuracy": round(float((answers.iou >= 0.5).mean()), 4),
        "mean_iou": round(float(answers.iou.mean()), 4),
        "gist": round(float(answers.gist.mean()), 4),
    }


def fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 by itself; elsewhere it would be slower than float32."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    names = ("seed", "minutes", "steps", "blocks", "width")
    return {name: getattr(options, name) for name in names}


def _rate(fraction: float) -> float:
    """Warm up, then a cosine to nothing."""
    if fraction < _WARM_UP:
        return 0.02 + 0.98 * fraction / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (fraction - _WARM_UP) / (1 - _WARM_UP)))


def run(training: Training, console: Console) -> bool:
    """Train to the end. Returns whether it got there."""
    began, saved = time.monotonic(), time.monotonic()
    before = training.spent
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>5.1f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=1.0, completed=training.fraction())
        while training.fraction() < 1:
            if training.stopping:
                training.keep()
                return False
            found = training.learn()
            training.spent = before + time.monotonic() - began
            done = training.fraction()
            progress.update(
                task, completed=done, description=f"step {training.step}, loss {found['loss']:.3f}"
            )
            if training.step % _LOGGED == 0:
                training.log(**{name: round(value, 6) for name, value in found.items()})
            if done >= (training.validations + 1) / _VALIDATED and done < 1:
                training.validations = int(done * _VALIDATED)
                paused = time.monotonic()
                figures = training.validate(training.options.validation)
                began += time.monotonic() - paused  # no part of the training's time
                training.log(validation=figures)
                console.print(f"{done:.0%}, step {training.step}: {figures}")
            if time.monotonic() - saved > _SAVED:
                training.keep()
                saved = time.monotonic()
    return True


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--seed", type=int, default=0, help="of weights and batches")
    found.add_argument(
        "--out", required=True, type=folder_to_write, help="folder of weights, log and checkpoint"
    )
    found.add_argument("--threads", type=whole(1), default=2)
    found.add_argument("--minutes", type=minutes, default=40.0, help="of training, validation not counted")
    found.add_argument("--steps", type=whole(0), default=0, help="this many instead of minutes")
    found.add_argument("--blocks", type=whole(1), default=BLOCKS, help="of the decoder")
    found.add_argument("--width", type=whole(32), default=WIDTH, help="of decoder and tower")
    found.add_argument("--validation", type=whole(1), default=128, help="items, now and then")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 when trained, 3 when stopped before."""
    reader = parser()
    options = reader.parse_args(arguments)
    if options.width % 32:
        reader.error(f"argument --width: {options.width}: give a multiple of 32, the width of a head")
    if not options.steps and not options.minutes:
        reader.error("argument --minutes: 0: give a time, or --steps")
    torch.set_num_threads(options.threads)
    console = Console()
    weights = options.out / "model.safetensors"
    if weights.exists() and not (options.out / "checkpoint.pt").exists():
        sys.exit(f"{weights} is trained already: remove it, or give another --out")
    training = Training(options)
    resumed = training.resume()
    training.log(
        started={
            **_settings(options),
            "resumed": resumed,
            "threads": options.threads,
            "precision": str(training.precision),
            "parameters": sum(p.numel() for p in training.model.parameters()),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
    )

    def stop(number: int, frame: FrameType | None) -> None:
        training.stopping = True  # after the step that is running

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        finished = run(training, console)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not finished:
        console.print(f"stopped after step {training.step}: the same command goes on from there")
        return 3
    save(training.model, training.out)
    # of the weights as they are shipped
    figures = training.validate(min(_FINAL_ITEMS, 4 * options.validation), load(training.out))
    training.log(final=figures)
    training.checkpoint.unlink(missing_ok=True)
    console.print(f"trained, {training.step} steps: {figures} on validation; {weights}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
